//! One dead letter: why and when it was dead-lettered, and its original message.

use std::collections::BTreeMap;

use lapin::message::Delivery;
use lapin::types::{AMQPValue, FieldTable, ShortString};
use serde_json::{Map, Value};
use uuid::Uuid;

use super::message::{
    BODY_SIZE_HEADER, DEAD_LETTER_ID_HEADER, DEAD_LETTERED_AT_HEADER, DEATHS_HEADER, EVENTS, Message,
    REASON_HEADER, UNREADABLE_HEADER,
};
use super::timestamp::Timestamp;
use crate::excerpt::excerpt;
use crate::idempotency_key::IdempotencyKey;

/// The namespace of references. Never change it: people keep references in their notes.
const REFERENCES: Uuid = Uuid::from_u128(0x7d1f_6f0e_58c4_4f0b_9d3a_c0a7_ca11_0002);

/// The position of a dead letter within its [`DeadLetterQueue`](super::DeadLetterQueue).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeadLetterTag {
    pub(super) channel: usize,
    pub(super) tag: u64,
}

/// A dead letter as read from the queue. It stays there unless it is [taken](super::DeadLetterQueue::take).
#[derive(Debug)]
pub struct DeadLetter {
    delivery: Delivery,
    tag: DeadLetterTag,
}

impl DeadLetter {
    pub(super) fn new(delivery: Delivery, tag: DeadLetterTag) -> Self {
        Self { delivery, tag }
    }

    /// Its position, by which it can be taken.
    #[must_use]
    pub fn tag(&self) -> DeadLetterTag {
        self.tag
    }

    /// The message's body.
    #[must_use]
    pub fn body(&self) -> &[u8] {
        &self.delivery.data
    }

    /// The size in bytes of a body that was too large to be read; [`body`](Self::body) is empty then.
    #[must_use]
    pub fn unread(&self) -> Option<u64> {
        match self.header(BODY_SIZE_HEADER)? {
            AMQPValue::LongLongInt(size) if self.body().is_empty() => u64::try_from(*size).ok(),
            _ => None,
        }
    }

    /// The size of the body in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.unread().unwrap_or(self.body().len() as u64)
    }

    /// The stable name of the dead letter. Dead letters share it only if they have the same id, or both have
    /// none, and the same body, or unread bodies of the same size.
    #[must_use]
    pub fn reference(&self) -> Uuid {
        let id = self.id().unwrap_or_default();
        // An id's length always fits. The length separates id and body.
        let length = u8::try_from(id.len()).unwrap_or(u8::MAX);
        let unread = self.unread().map(|size| format!("{size} bytes that were not read"));
        let body = unread.as_ref().map_or(self.body(), |unread| unread.as_bytes());
        Uuid::new_v5(&REFERENCES, &[&[length], id.as_bytes(), body].concat())
    }

    /// The id under which it counts once: the publisher's, or else its own.
    #[must_use]
    pub fn id(&self) -> Option<&str> {
        self.message_id().or_else(|| self.dead_letter_id())
    }

    /// The publisher's id of the message.
    #[must_use]
    pub fn message_id(&self) -> Option<&str> {
        let id = self.delivery.properties.message_id().as_ref()?.as_str();
        Some(id).filter(|id| !id.is_empty())
    }

    /// The id given to the dead letter because its message has none.
    #[must_use]
    pub fn dead_letter_id(&self) -> Option<&str> {
        self.text(DEAD_LETTER_ID_HEADER).filter(|id| id.parse::<IdempotencyKey>().is_ok())
    }

    /// When it became a dead letter, if its headers say so.
    #[must_use]
    pub fn dead_lettered_at(&self) -> Option<Timestamp> {
        self.kept_at().max(self.moved_at())
    }

    /// Whether the broker moved it. Such a message may have been counted: its workers may have ended, each
    /// time, after counting it and before acknowledging it.
    #[must_use]
    pub fn is_moved_by_broker(&self) -> bool {
        // A dead letter that was requeued by other means keeps the reason of its first dead-lettering.
        self.text(REASON_HEADER).is_none() || self.moved_at() > self.kept_at()
    }

    /// Why it is a dead letter.
    #[must_use]
    pub fn reason(&self) -> String {
        // The filter's finding comes first, whatever the reason of the dead-lettering.
        if let Some(defects) = self.text(UNREADABLE_HEADER) {
            return excerpt(format_args!("it cannot be read whole: {defects}"));
        }
        if let Some(reason) = self.text(REASON_HEADER).filter(|_| !self.is_moved_by_broker()) {
            return excerpt(reason);
        }
        let last = self.deaths().max_by_key(|death| timestamp(death.get("time")));
        match last.and_then(|death| text(death.get("reason")?)) {
            // The broker's words for its two reasons to dead-letter a message.
            Some("rejected") => "moved by the broker: rejected by a worker".into(),
            Some("delivery_limit") => "moved by the broker: handed out too often".into(),
            Some(reason) => excerpt(format_args!("moved by the broker: {reason}")),
            None => "not known: it came without a reason".into(),
        }
    }

    /// The routing key with which it was published.
    #[must_use]
    pub fn routing_key(&self) -> &str {
        self.delivery.routing_key.as_str()
    }

    /// The properties that are set, without the headers.
    #[must_use]
    pub fn properties(&self) -> Map<String, Value> {
        let properties = &self.delivery.properties;
        let text = |value: &Option<ShortString>| value.as_ref().map(|text| text.as_str().into());
        let number = |value: Option<u8>| value.map(Value::from);
        let properties = [
            ("message_id", text(properties.message_id())),
            ("content_type", text(properties.content_type())),
            ("content_encoding", text(properties.content_encoding())),
            ("delivery_mode", number(*properties.delivery_mode())),
            ("priority", number(*properties.priority())),
            ("correlation_id", text(properties.correlation_id())),
            ("reply_to", text(properties.reply_to())),
            ("expiration", text(properties.expiration())),
            ("timestamp", properties.timestamp().map(|secs| Timestamp::of(secs).to_string().into())),
            ("type", text(properties.kind())),
            ("user_id", text(properties.user_id())),
            ("app_id", text(properties.app_id())),
            ("cluster_id", text(properties.cluster_id())),
        ];
        properties.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
    }

    /// All headers, including catchall's and the broker's.
    #[must_use]
    pub fn headers(&self) -> Map<String, Value> {
        self.delivery.properties.headers().as_ref().map(object).unwrap_or_default()
    }

    /// The original message, under its own id or the one given to the dead letter.
    #[must_use]
    pub fn into_original(self) -> Message {
        let id = self.id().map(str::to_owned);
        Message::original(self.delivery, id.as_deref())
    }

    fn header(&self, name: &str) -> Option<&AMQPValue> {
        self.delivery.properties.headers().as_ref()?.inner().get(name)
    }

    fn text(&self, name: &str) -> Option<&str> {
        self.header(name).and_then(text)
    }

    fn kept_at(&self) -> Option<Timestamp> {
        timestamp(self.header(DEAD_LETTERED_AT_HEADER))
    }

    fn moved_at(&self) -> Option<Timestamp> {
        self.deaths().filter_map(|death| timestamp(death.get("time"))).max()
    }

    /// The dead-letterings in the events queue. Those in other queues concern only the publisher.
    fn deaths(&self) -> impl Iterator<Item = &BTreeMap<ShortString, AMQPValue>> {
        let deaths = match self.header(DEATHS_HEADER) {
            Some(AMQPValue::FieldArray(deaths)) => deaths.as_slice(),
            _ => &[],
        };
        let tables = deaths.iter().filter_map(|death| match death {
            AMQPValue::FieldTable(death) => Some(death.inner()),
            _ => None,
        });
        tables.filter(|death| death.get("queue").and_then(text) == Some(EVENTS))
    }
}

fn text(value: &AMQPValue) -> Option<&str> {
    match value {
        AMQPValue::LongString(text) => std::str::from_utf8(text.as_bytes()).ok(),
        AMQPValue::ShortString(text) => Some(text.as_str()),
        _ => None,
    }
}

fn timestamp(value: Option<&AMQPValue>) -> Option<Timestamp> {
    match value? {
        AMQPValue::Timestamp(secs) => Some(Timestamp::of(*secs)),
        _ => None,
    }
}

fn object(table: &FieldTable) -> Map<String, Value> {
    table.inner().iter().map(|(name, value)| (name.to_string(), json(value))).collect()
}

/// A header's value as JSON.
fn json(value: &AMQPValue) -> Value {
    match value {
        AMQPValue::Boolean(value) => Value::from(*value),
        AMQPValue::ShortShortInt(number) => Value::from(*number),
        AMQPValue::ShortShortUInt(number) => Value::from(*number),
        AMQPValue::ShortInt(number) => Value::from(*number),
        AMQPValue::ShortUInt(number) => Value::from(*number),
        AMQPValue::LongInt(number) => Value::from(*number),
        AMQPValue::LongUInt(number) => Value::from(*number),
        AMQPValue::LongLongInt(number) => Value::from(*number),
        AMQPValue::Float(number) => Value::from(*number),
        AMQPValue::Double(number) => Value::from(*number),
        AMQPValue::DecimalValue(number) => Value::from(format!("{}e-{}", number.value, number.scale)),
        AMQPValue::ShortString(text) => Value::from(text.as_str()),
        AMQPValue::LongString(text) => Value::from(String::from_utf8_lossy(text.as_bytes())),
        AMQPValue::FieldArray(values) => values.as_slice().iter().map(json).collect(),
        AMQPValue::Timestamp(secs) => Value::from(Timestamp::of(*secs).to_string()),
        AMQPValue::FieldTable(table) => Value::Object(object(table)),
        AMQPValue::ByteArray(bytes) => Value::from(bytes.as_slice().escape_ascii().to_string()),
        AMQPValue::Void => Value::Null,
    }
}
