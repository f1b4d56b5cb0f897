//! The two seams: where a batch that was accepted goes, and where counters are read.
//!
//! Roles know only these traits. Behind them are today the broker, from which a worker counts into the [`ledger`] on the
//! Postgres primary, and the Postgres [`replica`]. Each method is one that its callers use, and an implementation may be
//! put in the place of another without a change of any role.

pub mod postgres;
pub mod schema;
pub mod ledger;
pub mod replica;

use std::fmt::Display;
use std::sync::Arc;

use tokio::time::Instant;

use crate::batch::Batch;
use crate::counters::Counters;
use crate::domain_name::DomainName;

/// Where a batch goes that is to be counted.
pub trait BatchSink: Send + Sync + 'static {
    /// Takes the events of a batch. Once this returns `Ok`, all of them are durable and each will be counted exactly once.
    /// It may be dropped while it waits; the batch then may be counted or not.
    ///
    /// # Errors
    ///
    /// Says what is known of the batch at the deadline, or sooner when waiting is no use.
    fn accept(&self, batch: Batch, deadline: Instant)
    -> impl Future<Output = Result<(), NotAccepted>> + Send;
}

/// What is known of a batch that was not accepted. The reason is for operators; whoever sent the events is told by the
/// variant.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAccepted {
    /// Nothing of it was counted, and nothing will be.
    #[error("nothing was counted: {0}")]
    NotCounted(Arc<str>),
    /// It may have been counted, or will be: only the same keys make it safe to send it again.
    #[error("it may have been counted: {0}")]
    MaybeCounted(Arc<str>),
    /// There is no more room at present. Of a batch of several messages some may have been counted.
    #[error("there is no room: {0}")]
    Full(Arc<str>),
}

/// Where counters are read.
pub trait CounterSource: Send + Sync + 'static {
    /// The counters of each of the names, in their order. A name that was never seen has had no events.
    ///
    /// # Errors
    ///
    /// When they cannot be read now.
    fn counters(
        &self,
        names: &[DomainName],
    ) -> impl Future<Output = Result<Vec<Counters>, Unreadable>> + Send;
}

/// Counters could not be read, for a reason that is for operators.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unreadable(Arc<str>);

impl Unreadable {
    /// For this reason.
    pub(crate) fn new(reason: impl Display) -> Self {
        Self(reason.to_string().into())
    }
}
