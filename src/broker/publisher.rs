//! Publishing that returns after the confirm.

use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::message::Message;
use super::publish_request::{PublishError, PublishRequest, together};
use super::supervisor::Supervisor;
use super::url::BrokerConfig;
use crate::batch::Batch;
use crate::health::Dependency;
use crate::idempotency_key::IdempotencyKey;
use crate::store::{BatchSink, NotAccepted};

/// One connection with one confirming channel, owned and kept open by a separate task.
///
/// Any number of requests from any task may be on their way at once, so a broker that is slow to confirm
/// still receives more. A caller may stop waiting; its request goes on, and the answer is dropped.
#[derive(Debug)]
pub struct Publisher(mpsc::UnboundedSender<PublishRequest>);

impl Publisher {
    /// Begins to connect under `name` and stays connected until the publisher is dropped. `broker` is updated
    /// whenever the broker starts or stops accepting messages. A connection with outstanding confirms that
    /// has sent none for `silence` is dropped.
    #[must_use]
    pub fn connect(config: BrokerConfig, name: String, broker: Dependency, silence: Duration) -> Self {
        // Each caller awaits its request, which bounds the channel.
        let (requests, queue) = mpsc::unbounded_channel();
        tokio::spawn(Supervisor::new(config, name, broker, silence, queue).run());
        Self(requests)
    }

    /// Publishes all messages and returns once every one is confirmed: on disk on a majority of the queue's
    /// nodes. A message that loses its connection before its confirm is published again under the same id.
    ///
    /// # Errors
    ///
    /// The reason why not all messages were confirmed, at the deadline or earlier if waiting cannot help.
    pub async fn publish(&self, messages: Vec<Message>, deadline: Instant) -> Result<(), PublishError> {
        together(self.publish_each(messages, deadline).await)
    }

    /// The same with an outcome for each message, in order: for messages that are independent of each other.
    pub async fn publish_each(
        &self,
        messages: Vec<Message>,
        deadline: Instant,
    ) -> Vec<Result<(), PublishError>> {
        let unknown = vec![Err(PublishError::Unconfirmed); messages.len()];
        let (answer, outcomes) = oneshot::channel();
        // Only the end of the event loop ends the task before its publisher, and then no caller is left.
        let _ = self.0.send(PublishRequest { messages, deadline, answer });
        outcomes.await.unwrap_or(unknown)
    }
}

impl BatchSink for Publisher {
    async fn accept(&self, batch: Batch, deadline: Instant) -> Result<(), NotAccepted> {
        let message = |body| Message::events(body, Some(IdempotencyKey::fresh()));
        let messages = batch.to_json().into_iter().map(message).collect();
        // Its memory is not needed while the confirm is awaited.
        drop(batch);
        Ok(self.publish(messages, deadline).await?)
    }
}
