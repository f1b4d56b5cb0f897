//! Requests to the ledger to count, and their errors.

use uuid::Uuid;

use super::super::postgres::DatabaseError;
use super::clock::Moment;
use crate::batch::Batch;
use crate::idempotency_key::IdempotencyKey;

/// Messages to count, and the conditions for counting them.
#[derive(Debug, Default)]
pub struct ApplyRequest {
    /// The contents of messages, in the order of their arrival.
    pub entries: Vec<Entry>,
    /// Ids of watermark messages that were handed out with them: see
    /// [`Ledger::begin_watermark`](super::Ledger::begin_watermark).
    pub watermark_ids: Vec<Uuid>,
    /// The last moment at which they may be counted: after it, the claims they rely on may be pruned.
    pub before: Option<Moment>,
}

/// The content of one message.
#[derive(Clone, Debug, Default)]
pub struct Entry {
    /// Identifies the message to the caller. The ledger does not use it.
    pub tag: u64,
    /// The id under which the message counts once, if it has one.
    pub id: Option<IdempotencyKey>,
    /// Its events.
    pub batch: Batch,
}

impl Entry {
    /// How many rows the message can touch: its own claim, and those of its events.
    #[must_use]
    pub fn rows(&self) -> usize {
        1 + self.batch.rows()
    }
}

/// Why a request was not counted.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The database could not do it, or its response was lost. Repeating the request is safe for all messages
    /// that have an id.
    #[error(transparent)]
    Transient(DatabaseError),
    /// Like [`Transient`](Self::Transient), but a statement took too long. A smaller range may succeed.
    #[error(transparent)]
    Late(DatabaseError),
    /// The database refuses something in the request, and would refuse it again.
    #[error(transparent)]
    Refused(DatabaseError),
    /// The messages were held for longer than claims are certain to be kept.
    #[error("the messages were held too long to be distinguished from duplicates")]
    TooLate,
}
