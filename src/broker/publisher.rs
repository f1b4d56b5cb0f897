//! Publishing that returns after the confirm.

use std::sync::Arc;
use std::time::Duration;

use lapin::BasicProperties;
use lapin::options::BasicPublishOptions;
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{Channel, Confirmation};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use uuid::Uuid;

use super::letter::{self, Letter};
use super::supervisor::Supervisor;
use super::{Config, DEAD, Delivery, EVENTS};
use crate::domain_name::DomainName;
use crate::event::IdempotencyKey;
use crate::health::Dependency;

/// AMQP's mark of a message that has to survive a restart of the broker.
pub(super) const PERSISTENT: u8 = 2;

/// The header that makes a message a mark. It is a mark only if the ledger knows its id: nobody else's message
/// can pass for one.
pub(super) const MARK_HEADER: &str = "catchall-mark";

/// One AMQP message, ready to be published.
#[derive(Clone, Debug)]
pub struct Message {
    exchange: &'static str,
    routing_key: ShortString,
    properties: BasicProperties,
    body: Vec<u8>,
}

impl Message {
    pub(super) fn id(&self) -> Option<&ShortString> {
        self.properties.message_id().as_ref()
    }

    /// A message of events. It counts once under `id`, however often it is published or delivered.
    #[must_use]
    pub fn events(body: Vec<u8>, id: Option<IdempotencyKey>) -> Self {
        let properties = BasicProperties::default()
            .with_delivery_mode(PERSISTENT)
            .with_content_type("application/json".into());
        let properties = match id {
            Some(id) => properties.with_message_id(id.to_string().into()),
            None => properties,
        };
        Self { exchange: EVENTS, routing_key: ShortString::default(), properties, body }
    }

    /// The same under the routing key a direct publisher would choose.
    #[must_use]
    pub fn routed_by(mut self, domain: &DomainName) -> Self {
        self.routing_key = domain.as_str().into();
        self
    }

    /// A message without events that shows, when it arrives, that all before it of its class of priorities have been
    /// handed out.
    #[must_use]
    pub fn mark(id: Uuid, priority: Priority) -> Self {
        let mut headers = FieldTable::default();
        headers.insert(MARK_HEADER.into(), AMQPValue::LongString(id.to_string().into()));
        let mut mark = Self::events(b"[]".into(), None);
        mark.properties = mark.properties.with_headers(headers).with_priority(priority as u8);
        mark
    }

    /// A copy of `delivery` for the dead letters: as it came, with the reason why it cannot be read in its
    /// headers, when that was found, and an identity if it has none of its own, so that a replay counts once.
    #[must_use]
    pub fn dead_letter(delivery: &Delivery, reason: &str) -> Self {
        Self {
            exchange: DEAD,
            routing_key: delivery.routing_key().into(),
            properties: letter::buried(delivery.properties(), delivery.message_id(), reason),
            body: delivery.body().to_vec(),
        }
    }

    /// The message that a dead letter was, under its own id or the one it got with its death.
    #[must_use]
    pub fn replay(letter: Letter) -> Self {
        let properties = letter.revived();
        let (routing_key, body) = letter.into_parts();
        Self { exchange: EVENTS, routing_key, properties, body }
    }
}

/// The ends of the scale of priorities, whatever classes the broker makes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Priority {
    /// None is lower. It is not what a message has that names none.
    Lowest = 0,
    /// None is higher: from 4.3 on the broker takes all above 31 for 31.
    Highest = u8::MAX,
}

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

/// Whether each message of a request was confirmed, in their order.
pub(super) type Outcomes = Vec<Result<(), PublishError>>;

/// Messages that are answered together.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) messages: Vec<Message>,
    pub(super) deadline: Instant,
    pub(super) answer: oneshot::Sender<Outcomes>,
}

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

/// The first await writes to the socket, the second is the confirm. `mandatory` makes the broker return
/// what no queue takes instead of confirming that it dropped it.
pub(super) async fn confirmed(channel: &Channel, message: &Message) -> lapin::Result<Confirmation> {
    let Message { exchange, routing_key, properties, body } = message;
    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    channel
        .basic_publish((*exchange).into(), routing_key.clone(), options, body, properties.clone())
        .await?
        .await
}
