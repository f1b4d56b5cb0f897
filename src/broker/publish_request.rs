//! What a publisher is asked for, and what it answers.

use std::sync::Arc;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::message::Message;
use crate::store::NotAccepted;

/// Why messages were not accepted, or are not known to be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// No connection took messages before the deadline, or none could have been confirmed by then: nothing was
    /// published.
    #[error("the broker does not take messages: {0}")]
    Unavailable(Arc<str>),
    /// The confirm did not come before the deadline. The messages may or may not be at the broker.
    #[error("the broker did not confirm in time")]
    Unconfirmed,
    /// The broker refused: the queue is at its length limit. What it did not refuse may be there.
    #[error("the broker refuses messages: the queue is at its limit")]
    Refused,
    /// No queue is bound to the exchange.
    #[error("the broker has no queue bound to the exchange")]
    Unroutable,
}

impl From<PublishError> for NotAccepted {
    fn from(error: PublishError) -> Self {
        let reason = error.to_string().into();
        match error {
            PublishError::Unavailable(_) | PublishError::Unroutable => Self::NotCounted(reason),
            PublishError::Unconfirmed => Self::MaybeCounted(reason),
            PublishError::Refused => Self::Full(reason),
        }
    }
}

/// Whether each message of a request was confirmed, in their order.
pub(super) type Outcomes = Vec<Result<(), PublishError>>;

/// Messages that are answered together.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) messages: Vec<Message>,
    pub(super) deadline: Instant,
    pub(super) answer: oneshot::Sender<Outcomes>,
}
