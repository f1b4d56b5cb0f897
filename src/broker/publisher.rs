//! Publishing that returns after the confirm.

use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::message::Message;
use super::publish_request::{PublishError, Request};
use super::supervisor::Supervisor;
use super::url::Config;
use crate::batch::Batch;
use crate::health::Dependency;
use crate::idempotency_key::IdempotencyKey;
use crate::store::{BatchSink, NotAccepted};

/// One connection with one confirming channel, owned and kept open by a task of its own.
///
/// Any number of requests may be on their way at once, from any task: a broker that is slow to confirm is not kept
/// waiting for more. Whoever publishes may give up waiting; the request goes on, and its answer is dropped.
#[derive(Debug)]
pub struct Publisher(mpsc::UnboundedSender<Request>);

impl Publisher {
    /// Begins to connect under `name` and keeps connected until the publisher is dropped. `broker` is told
    /// whenever messages are taken or not. A connection that owes confirms and has sent none for as long as `silence`
    /// is given up.
    #[must_use]
    pub fn connect(config: Config, name: String, broker: Dependency, silence: Duration) -> Self {
        // Each request is awaited by who makes it, which is what bounds them.
        let (requests, queue) = mpsc::unbounded_channel();
        tokio::spawn(Supervisor::new(config, name, broker, silence, queue).run());
        Self(requests)
    }

    /// Publishes all messages and returns once every one of them is confirmed, on disk on a majority of the
    /// queue's nodes. A message whose fate is lost with a connection is published again under the same id.
    ///
    /// # Errors
    ///
    /// Says why not all are confirmed at the deadline, or sooner when waiting is no use.
    pub async fn publish(&self, messages: Vec<Message>, deadline: Instant) -> Result<(), PublishError> {
        self.publish_each(messages, deadline).await.into_iter().collect()
    }

    /// The same, and tells of each message whether it is confirmed, in their order: for messages that stand
    /// each for itself.
    pub async fn publish_each(
        &self,
        messages: Vec<Message>,
        deadline: Instant,
    ) -> Vec<Result<(), PublishError>> {
        let unknown = vec![Err(PublishError::Unconfirmed); messages.len()];
        let (answer, outcomes) = oneshot::channel();
        // The task ends before its publisher only with the event loop, and then nobody is left to hear it.
        let _ = self.0.send(Request { messages, deadline, answer });
        outcomes.await.unwrap_or(unknown)
    }
}

impl BatchSink for Publisher {
    async fn accept(&self, batch: Batch, deadline: Instant) -> Result<(), NotAccepted> {
        let message = |body| Message::events(body, Some(IdempotencyKey::fresh()));
        let messages = batch.to_json().into_iter().map(message).collect();
        drop(batch);
        Ok(self.publish(messages, deadline).await?)
    }
}
