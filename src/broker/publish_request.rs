//! A request to a publisher, and its outcomes.

use std::sync::Arc;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::message::Message;
use crate::cause::Cause;
use crate::store::NotAccepted;

/// Why messages were not confirmed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// No connection accepted messages before the deadline, or no confirm could have arrived by then. Nothing
    /// was published.
    #[error("the broker does not accept messages: {0}")]
    Unavailable(Arc<str>),
    /// The confirm did not arrive before the deadline. The broker may or may not have the messages.
    #[error("the broker did not confirm in time")]
    Unconfirmed,
    /// The broker refused a message because the queue is at its length limit. It may have the other messages.
    #[error("the broker refuses messages: the queue is at its limit")]
    Refused,
    /// No queue is bound to the exchange.
    #[error("the broker has no queue bound to the exchange")]
    Unroutable,
}

impl From<PublishError> for NotAccepted {
    fn from(error: PublishError) -> Self {
        let told = match error {
            PublishError::Unavailable(_) | PublishError::Unroutable => Self::NotCounted,
            PublishError::Unconfirmed => Self::MaybeCounted,
            PublishError::Refused => Self::Full,
        };
        told(Cause::new(error))
    }
}

/// Whether each message of a request was confirmed, in order.
pub(super) type Outcomes = Vec<Result<(), PublishError>>;

/// The outcome of the messages of one request together.
pub(super) fn together(outcomes: Outcomes) -> Result<(), PublishError> {
    let is_returned = |outcome: &Result<(), PublishError>| *outcome == Err(PublishError::Unroutable);
    if outcomes.iter().any(is_returned) && !outcomes.iter().all(is_returned) {
        // The queue may have the others.
        return Err(PublishError::Unconfirmed);
    }
    outcomes.into_iter().collect()
}

/// Messages that get one answer together.
#[derive(Debug)]
pub(super) struct PublishRequest {
    pub(super) messages: Vec<Message>,
    pub(super) deadline: Instant,
    pub(super) answer: oneshot::Sender<Outcomes>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_was_counted_only_if_every_message_was_returned() {
        let returned = || Err(PublishError::Unroutable);
        assert_eq!(together(vec![Ok(()), Ok(())]), Ok(()));
        assert_eq!(together(vec![returned(), returned()]), returned());
        assert_eq!(together(vec![Ok(()), returned()]), Err(PublishError::Unconfirmed));
        assert_eq!(together(vec![returned(), Err(PublishError::Refused)]), Err(PublishError::Unconfirmed));
        assert_eq!(together(vec![Ok(()), Err(PublishError::Refused)]), Err(PublishError::Refused));
    }
}
