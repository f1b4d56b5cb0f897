//! The wire format: a message's body, properties and headers, read and written.
//!
//! The body is that of [`Batch`](crate::batch::Batch): one event or an array of events, in JSON. Everything
//! else that catchall reads or writes in a message is here.

#[cfg(any(test, fuzzing))]
pub(super) mod fuzzed;

use std::borrow::Cow;

use lapin::options::BasicPublishOptions;
use lapin::types::{AMQPValue, FieldTable, LongString, ShortString};
use lapin::{BasicProperties, Channel, Confirmation};
use uuid::Uuid;

use super::timestamp::Timestamp;
use crate::batch::Batch;
use crate::classified::DomainReport;
use crate::domain_name::DomainName;
use crate::excerpt::excerpt;
use crate::idempotency_key::{IdempotencyKey, IdempotencyKeyError};
use crate::store::Change;

/// The name of the exchange for events, and of its queue.
pub const EVENTS: &str = "catchall.events";

/// The name of the exchange for dead letters, and of its queue.
pub const DEAD: &str = "catchall.dead";

/// The name of the exchange for changes of status. Subscribers bind queues to it.
pub(super) const CHANGES: &str = "catchall.changes";

/// The header that orders the changes of a domain: a lower number is an older change.
const CHANGED_IN_HEADER: &str = "catchall-changed-in";

/// The namespace of ids of changes that are too long as they are. Never change it: it is documented, and
/// subscribers keep the ids they have seen.
const CHANGE_IDS: Uuid = Uuid::from_u128(0x7d1f_6f0e_58c4_4f0b_9d3a_c0a7_ca11_0003);

/// The content type of every body.
const JSON: &str = "application/json";

/// Content encodings that say that a body is not packed. Some clients put the character encoding there.
const PLAIN: [&str; 2] = ["identity", "utf-8"];

/// The delivery mode of a message that must survive a restart of the broker.
const PERSISTENT: u8 = 2;

/// The header that makes a message a watermark. The ledger must know its id, so no message of another
/// publisher can pose as one.
const WATERMARK_HEADER: &str = "catchall-watermark";

/// The header that names the unreadable parts of a message. The filter writes it on arrival and the broker
/// never does. A message published with this header becomes a dead letter.
pub(super) const UNREADABLE_HEADER: &str = "catchall-unreadable";

/// The header with the size in bytes of a body that was not read.
pub(super) const BODY_SIZE_HEADER: &str = "catchall-body-bytes";

/// The prefix of catchall's own headers.
const OURS: &str = "catchall-";

/// The header with the reason of a dead letter. The broker does not write it, so a dead letter without it was
/// moved by the broker.
pub(super) const REASON_HEADER: &str = "catchall-reason";

/// The header with the time at which a message became a dead letter.
pub(super) const DEAD_LETTERED_AT_HEADER: &str = "catchall-dead-lettered-at";

/// The header with the id given to a dead letter whose message had none.
pub(super) const DEAD_LETTER_ID_HEADER: &str = "catchall-dead-letter-id";

/// The header with the publisher's user. Only that user may set the AMQP property for it.
const USER_HEADER: &str = "catchall-user-id";

/// The broker's header that says how often, where, when and why a message was dead-lettered.
pub(super) const DEATHS_HEADER: &str = "x-death";

/// The prefixes of other headers that the broker adds to a dead-lettered or redelivered message.
const TRACES: [&str; 4] = ["x-first-death-", "x-last-death-", "x-delivery-count", "x-acquired-count"];

/// One AMQP message, ready to be published.
#[derive(Clone, Debug)]
pub struct Message {
    exchange: &'static str,
    routing_key: ShortString,
    properties: BasicProperties,
    body: Vec<u8>,
    /// Whether the broker returns the message if no queue takes it, instead of dropping and confirming it.
    mandatory: bool,
}

impl Message {
    pub(super) fn id(&self) -> Option<&ShortString> {
        self.properties.message_id().as_ref()
    }

    /// A message of events. It counts once under `id`, however often it is published or delivered.
    #[must_use]
    pub fn events(body: Vec<u8>, id: Option<IdempotencyKey>) -> Self {
        let properties =
            BasicProperties::default().with_delivery_mode(PERSISTENT).with_content_type(JSON.into());
        let properties = match id {
            Some(id) => properties.with_message_id(id.to_string().into()),
            None => properties,
        };
        Self { exchange: EVENTS, routing_key: ShortString::default(), properties, body, mandatory: true }
    }

    /// A change of a domain's status, for the exchange of changes. Its routing key is the status, without
    /// spaces. It is for subscribers, of which there may be none.
    ///
    /// # Panics
    ///
    /// Never: a report is made of strings and numbers.
    #[must_use]
    pub fn change(Change { report, place }: &Change) -> Self {
        let mut headers = FieldTable::default();
        headers.insert(CHANGED_IN_HEADER.into(), AMQPValue::LongLongInt(place.transaction));
        let properties = BasicProperties::default()
            .with_delivery_mode(PERSISTENT)
            .with_content_type(JSON.into())
            .with_message_id(change_id(report))
            .with_headers(headers);
        let body = serde_json::to_vec(report).expect("a report is made of strings and numbers");
        let routing_key = report.status.slug().into();
        Self { exchange: CHANGES, routing_key, properties, body, mandatory: false }
    }

    /// The same message, which fails as unroutable if no queue takes it.
    #[must_use]
    pub fn mandatory(self) -> Self {
        Self { mandatory: true, ..self }
    }

    /// Whether it is normal that no queue takes the message, as for changes without subscribers.
    pub(super) fn may_find_no_queue(&self) -> bool {
        self.exchange == CHANGES
    }

    /// The same message under the routing key that a direct publisher would choose.
    #[must_use]
    pub fn routed_by(mut self, domain: &DomainName) -> Self {
        self.routing_key = domain.as_str().into();
        self
    }

    /// A message without events. Its arrival shows that all earlier messages of its priority class have been
    /// handed out.
    #[must_use]
    pub fn watermark(id: Uuid, priority: Priority) -> Self {
        let mut headers = FieldTable::default();
        headers.insert(WATERMARK_HEADER.into(), AMQPValue::LongString(id.to_string().into()));
        let mut watermark = Self::events(b"[]".into(), None);
        watermark.properties = watermark.properties.with_headers(headers).with_priority(priority as u8);
        watermark
    }

    /// A copy of `delivery` for the dead-letter queue. Its headers gain the reason why it cannot be read, the
    /// time of that finding, and an id if it has none, so that a replay counts once.
    #[must_use]
    pub fn dead_letter(delivery: &Delivery, reason: &str) -> Self {
        Self {
            exchange: DEAD,
            routing_key: delivery.0.routing_key.clone(),
            properties: dead_lettered(delivery.properties(), delivery.message_id(), reason),
            body: delivery.body().to_vec(),
            mandatory: true,
        }
    }

    /// The original message of a dead letter, under the id with which it counts once.
    pub(super) fn original(delivery: lapin::message::Delivery, id: Option<&str>) -> Self {
        let properties = original(&delivery.properties, id);
        let (routing_key, body) = (delivery.routing_key, delivery.data);
        Self { exchange: EVENTS, routing_key, properties, body, mandatory: true }
    }

    /// Publishes the message. The first await writes to the socket, the second waits for the confirm.
    pub(super) async fn publish(&self, channel: &Channel) -> lapin::Result<Confirmation> {
        let Message { exchange, routing_key, properties, body, mandatory } = self;
        let options = BasicPublishOptions { mandatory: *mandatory, ..BasicPublishOptions::default() };
        channel
            .basic_publish((*exchange).into(), routing_key.clone(), options, body, properties.clone())
            .await?
            .await
    }
}

/// The lowest and the highest priority, whatever priority classes the broker has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Priority {
    /// The lowest priority. It is not the default of a message without a priority.
    Lowest = 0,
    /// The highest priority: from RabbitMQ 4.3 on, all above 31 count as 31.
    Highest = u8::MAX,
}

/// Why the events of a message can never be read.
#[derive(Debug, thiserror::Error)]
pub enum UnreadableEvents {
    /// It declares another format.
    #[error("the content type {0:?} is not supported: send application/json")]
    ContentType(String),
    /// It declares that it is packed.
    #[error("the content encoding {0:?} is not supported: send none")]
    ContentEncoding(String),
    /// Its id cannot be a key.
    #[error("message_id: {0}")]
    Id(#[from] IdempotencyKeyError),
    /// Its body is not events.
    #[error(transparent)]
    Body(#[from] serde_json::Error),
}

/// One message, not acknowledged yet.
#[derive(Debug)]
pub struct Delivery(pub(super) lapin::message::Delivery);

impl Delivery {
    /// The delivery tag: the message's position within its [`Deliveries`](super::Deliveries).
    #[must_use]
    pub fn tag(&self) -> u64 {
        self.0.delivery_tag
    }

    /// The message's body.
    #[must_use]
    pub fn body(&self) -> &[u8] {
        &self.0.data
    }

    /// The publisher's id of the message. An empty id, which some clients send when none is set, counts as
    /// none.
    #[must_use]
    pub fn message_id(&self) -> Option<&str> {
        set(self.0.properties.message_id().as_ref())
    }

    /// The events in the message, and the key under which it counts once, if it has one.
    ///
    /// # Errors
    ///
    /// When it can never be read.
    pub fn read(&self) -> Result<(Option<IdempotencyKey>, Batch), UnreadableEvents> {
        if let Some(media_type) = set(self.0.properties.content_type().as_ref()) {
            let essence = media_type.split(';').next().unwrap_or_default().trim();
            if !essence.eq_ignore_ascii_case(JSON) {
                return Err(UnreadableEvents::ContentType(media_type.into()));
            }
        }
        let encoding = set(self.0.properties.content_encoding().as_ref());
        let is_plain = |encoding: &str| PLAIN.iter().any(|plain| encoding.eq_ignore_ascii_case(plain));
        if let Some(encoding) = encoding.filter(|encoding| !is_plain(encoding)) {
            return Err(UnreadableEvents::ContentEncoding(encoding.into()));
        }
        let id = self.message_id().map(str::parse).transpose()?;
        Ok((id, Batch::from_json(self.body())?))
    }

    /// The id of the watermark message, if the message claims to be one.
    #[must_use]
    pub fn watermark(&self) -> Option<Uuid> {
        match self.0.properties.headers().as_ref()?.inner().get(WATERMARK_HEADER)? {
            AMQPValue::LongString(id) => Uuid::try_parse_ascii(id.as_bytes()).ok(),
            _ => None,
        }
    }

    /// The parts of the message that the client library could not have read, if any. This delivery is then
    /// incomplete, and no copy of it may replace the original.
    #[must_use]
    pub fn unreadable(&self) -> Option<Cow<'_, str>> {
        match self.0.properties.headers().as_ref()?.inner().get(UNREADABLE_HEADER)? {
            AMQPValue::LongString(defects) => Some(String::from_utf8_lossy(defects.as_bytes())),
            // Only a publisher writes another type; the filter does not.
            _ => Some(UNREADABLE_HEADER.into()),
        }
    }

    pub(super) fn properties(&self) -> &BasicProperties {
        &self.0.properties
    }
}

/// The id of a change: the domain, a space and the status. A domain may have 253 octets, and with its status
/// be longer than AMQP's short strings: the id is then the version 5 UUID of that text.
fn change_id(report: &DomainReport) -> ShortString {
    let text = format!("{} {}", report.domain, report.status.name());
    ShortString::try_new(text.as_str())
        .unwrap_or_else(|_| Uuid::new_v5(&CHANGE_IDS, text.as_bytes()).to_string().into())
}

fn set(property: Option<&ShortString>) -> Option<&str> {
    property.map(ShortString::as_str).filter(|text| !text.is_empty())
}

/// The properties of the dead letter of a message that the worker cannot read.
fn dead_lettered(properties: &BasicProperties, message_id: Option<&str>, reason: &str) -> BasicProperties {
    let string = |text: &str| AMQPValue::LongString(LongString::from(text));
    let mut headers = properties.headers().clone().unwrap_or_default();
    headers.insert(REASON_HEADER.into(), string(&excerpt(reason)));
    headers.insert(DEAD_LETTERED_AT_HEADER.into(), AMQPValue::Timestamp(Timestamp::now().seconds()));
    if message_id.is_none() {
        headers.insert(DEAD_LETTER_ID_HEADER.into(), string(&IdempotencyKey::fresh().to_string()));
    }
    if let Some(user) = properties.user_id() {
        headers.insert(USER_HEADER.into(), string(user.as_str()));
    }
    kept(properties).with_headers(headers)
}

/// The properties that a republished message keeps, without its headers. It loses the expiration, because a
/// message that is kept for a person or replayed by one must not vanish. It loses the user id, because the
/// broker closes a connection that names another user.
fn kept(properties: &BasicProperties) -> BasicProperties {
    type Set<T> = fn(BasicProperties, T) -> BasicProperties;
    fn with<T: Clone>(kept: BasicProperties, value: Option<&T>, set: Set<T>) -> BasicProperties {
        match value {
            Some(value) => set(kept, value.clone()),
            None => kept,
        }
    }
    let kept = BasicProperties::default().with_delivery_mode(PERSISTENT);
    let kept = with(kept, properties.message_id().as_ref(), BasicProperties::with_message_id);
    let kept = with(kept, properties.content_type().as_ref(), BasicProperties::with_content_type);
    let kept = with(kept, properties.content_encoding().as_ref(), BasicProperties::with_content_encoding);
    let kept = with(kept, properties.priority().as_ref(), BasicProperties::with_priority);
    let kept = with(kept, properties.correlation_id().as_ref(), BasicProperties::with_correlation_id);
    let kept = with(kept, properties.reply_to().as_ref(), BasicProperties::with_reply_to);
    let kept = with(kept, properties.timestamp().as_ref(), BasicProperties::with_timestamp);
    let kept = with(kept, properties.kind().as_ref(), BasicProperties::with_type);
    let kept = with(kept, properties.app_id().as_ref(), BasicProperties::with_app_id);
    with(kept, properties.cluster_id().as_ref(), BasicProperties::with_cluster_id)
}

/// The properties of a dead letter's original message, under the id with which it counts once.
fn original(properties: &BasicProperties, id: Option<&str>) -> BasicProperties {
    let mut headers = FieldTable::default();
    for (name, value) in properties.headers().iter().flat_map(FieldTable::inner) {
        let theirs = name.as_str();
        let trace = TRACES.iter().any(|trace| theirs.starts_with(trace)) || theirs == DEATHS_HEADER;
        if !trace && !theirs.starts_with(OURS) {
            headers.insert(name.clone(), value.clone());
        }
    }
    let properties = kept(properties).with_headers(headers);
    // An id of a dead letter is a key, and no key is longer than a short string.
    match id.and_then(|id| ShortString::try_new(id).ok()) {
        Some(id) => properties.with_message_id(id),
        None => properties,
    }
}

#[cfg(test)]
mod tests;
