//! The two seams of the system: where accepted batches go, and where counters are read.
//!
//! Roles know only these traits. Each has two implementations: in a cluster the broker, from which a worker
//! counts into the [`ledger`] on the Postgres primary, and the Postgres [`replica`]; in the standalone the
//! one [data file](sqlite). Every method has a caller.

mod applied;
mod event_retention;
mod schema;
pub mod postgres;
pub mod ledger;
pub mod replica;
pub mod sqlite;
pub mod moving;

use std::fmt::Display;
use std::sync::Arc;

use tokio::time::Instant;

use crate::batch::Batch;
use crate::counters::Counters;
use crate::domain_name::DomainName;

pub use applied::Applied;
pub use event_retention::EventRetention;

/// Where batches go to be counted.
pub trait BatchSink: Send + Sync + 'static {
    /// Takes the events of a batch. Once this returns `Ok`, all of them are durable, and each will be counted
    /// exactly once. The future may be dropped while it waits; the batch may then be counted or not.
    ///
    /// # Errors
    ///
    /// Says what is known of the batch at the deadline, or sooner when waiting is useless.
    fn accept(&self, batch: Batch, deadline: Instant)
    -> impl Future<Output = Result<(), NotAccepted>> + Send;
}

/// What is known of a batch that was not accepted. The reason is for operators. The sender of the events is
/// told only the variant.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAccepted {
    /// Nothing of it was counted, and nothing will be.
    #[error("nothing was counted: {0}")]
    NotCounted(Arc<str>),
    /// It may have been counted, or may still be: sending it again is safe only under the same keys.
    #[error("it may have been counted: {0}")]
    MaybeCounted(Arc<str>),
    /// The sink is full at present. If the batch became several messages, some of them may have been counted.
    #[error("the queue is full: {0}")]
    Full(Arc<str>),
}

/// Where counters are read.
pub trait CounterSource: Send + Sync + 'static {
    /// The counters of each name, in the order of `names`. A name that was never seen has had no events.
    ///
    /// # Errors
    ///
    /// When the counters cannot be read at present.
    fn counters(
        &self,
        names: &[DomainName],
    ) -> impl Future<Output = Result<Vec<Counters>, Unreadable>> + Send;
}

/// Counters could not be read. The reason is for operators.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unreadable(Arc<str>);

impl Unreadable {
    /// An error with this reason.
    pub(crate) fn new(reason: impl Display) -> Self {
        Self(reason.to_string().into())
    }
}
