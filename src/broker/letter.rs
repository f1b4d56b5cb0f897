//! One dead letter: what it says of its death, and what it was before.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use lapin::BasicProperties;
use lapin::message::Delivery;
use lapin::types::{AMQPValue, FieldTable, LongString, ShortString};
use serde_json::{Map, Value};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use uuid::Uuid;

use super::EVENTS;
use super::content::{BODY_SIZE_HEADER, UNREADABLE_HEADER};
use super::dead_letters::Place;
use super::publisher::PERSISTENT;
use crate::event::IdempotencyKey;
use crate::excerpt::excerpt;

/// What the headers begin with that are ours.
const OURS: &str = "catchall-";

/// The header that says why a letter is one. The broker writes none: what has no reason it has moved itself.
const REASON_HEADER: &str = "catchall-reason";

/// The header that says when a letter became one.
const DIED_HEADER: &str = "catchall-died";

/// The header with the identity of a letter whose message had none.
const LETTER_HEADER: &str = "catchall-letter";

/// The header that says who published the message. The property of that name can only be used by that user.
const USER_HEADER: &str = "catchall-user-id";

/// Where the broker writes how often a message died, where, when and of what.
const DEATHS_HEADER: &str = "x-death";

/// What else the broker writes into the headers of a message that has died or come back.
const TRACES: [&str; 4] = ["x-first-death-", "x-last-death-", "x-delivery-count", "x-acquired-count"];

/// The namespace of references. Never change it: they are in people's notes.
const REFERENCES: Uuid = Uuid::from_u128(0x7d1f_6f0e_58c4_4f0b_9d3a_c0a7_ca11_0002);

/// A time as AMQP has it, in whole seconds since 1970. It prints as of RFC 3339.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp(u64);

impl Timestamp {
    fn now() -> Self {
        Self(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs())
    }

    /// How long after the beginning of 1970.
    #[must_use]
    pub fn since_epoch(self) -> Duration {
        Duration::from_secs(self.0)
    }
}

impl From<SystemTime> for Timestamp {
    fn from(time: SystemTime) -> Self {
        Self(time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs())
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = i64::try_from(self.0).ok().and_then(|secs| OffsetDateTime::from_unix_timestamp(secs).ok());
        match time.and_then(|time| time.format(&Rfc3339).ok()) {
            Some(time) => f.write_str(&time),
            // Some clients put milliseconds there.
            None => write!(f, "{} s after 1970", self.0),
        }
    }
}

/// A dead letter that was looked at. It stays in the queue unless it is [taken](super::DeadLetters::take).
#[derive(Debug)]
pub struct Letter {
    delivery: Delivery,
    place: Place,
}

impl Letter {
    pub(super) fn new(delivery: Delivery, place: Place) -> Self {
        Self { delivery, place }
    }

    /// Where it is in the queue, by which it can be taken.
    #[must_use]
    pub fn place(&self) -> Place {
        self.place
    }

    /// The message's body.
    #[must_use]
    pub fn body(&self) -> &[u8] {
        &self.delivery.data
    }

    /// The size of a body that was too large to be read, in bytes; [`body`](Self::body) is empty then.
    #[must_use]
    pub fn unread(&self) -> Option<u64> {
        match self.header(BODY_SIZE_HEADER)? {
            AMQPValue::LongLongInt(size) if self.body().is_empty() => u64::try_from(*size).ok(),
            _ => None,
        }
    }

    /// The size of its body, in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.unread().unwrap_or(self.body().len() as u64)
    }

    /// The name of the letter: the same whenever it is looked at, and shared only by letters that have the same
    /// id, or none, and the same body, or bodies of the same size that were not read.
    #[must_use]
    pub fn reference(&self) -> Uuid {
        let id = self.id().unwrap_or_default();
        // No id is so long that its length does not fit; the length keeps id and body apart.
        let length = u8::try_from(id.len()).unwrap_or(u8::MAX);
        let unread = self.unread().map(|size| format!("{size} bytes that were not read"));
        let body = unread.as_ref().map_or(self.body(), |unread| unread.as_bytes());
        Uuid::new_v5(&REFERENCES, &[&[length], id.as_bytes(), body].concat())
    }

    /// Under which id it counts once: the publisher's, else its own.
    #[must_use]
    pub fn id(&self) -> Option<&str> {
        self.message_id().or_else(|| self.letter_id())
    }

    /// The publisher's identity of the message.
    #[must_use]
    pub fn message_id(&self) -> Option<&str> {
        let id = self.delivery.properties.message_id().as_ref()?.as_str();
        Some(id).filter(|id| !id.is_empty())
    }

    /// The identity the letter got because its message has none.
    #[must_use]
    pub fn letter_id(&self) -> Option<&str> {
        self.text(LETTER_HEADER).filter(|id| id.parse::<IdempotencyKey>().is_ok())
    }

    /// When it became a letter, as far as it tells.
    #[must_use]
    pub fn died(&self) -> Option<Timestamp> {
        self.buried_at().max(self.moved_at())
    }

    /// Whether the broker moved it. Such a message may have been counted: the worker may have ended again and
    /// again before it could accept what it had counted.
    #[must_use]
    pub fn is_moved_by_broker(&self) -> bool {
        // A letter that somebody has put back by other means still has the reason of its first death.
        self.text(REASON_HEADER).is_none() || self.moved_at() > self.buried_at()
    }

    /// Why it is a letter.
    #[must_use]
    pub fn reason(&self) -> String {
        // As seen from here, whatever it died of.
        if let Some(defects) = self.text(UNREADABLE_HEADER) {
            return excerpt(format_args!("it cannot be read whole: {defects}"));
        }
        if let Some(reason) = self.text(REASON_HEADER).filter(|_| !self.is_moved_by_broker()) {
            return excerpt(reason);
        }
        let last = self.deaths().max_by_key(|death| timestamp(death.get("time")));
        match last.and_then(|death| text(death.get("reason")?)) {
            // The broker's words for the two ways it has to give a message up.
            Some("rejected") => "moved by the broker: rejected by a worker".into(),
            Some("delivery_limit") => "moved by the broker: handed out too often".into(),
            Some(reason) => excerpt(format_args!("moved by the broker: {reason}")),
            None => "not known: it came without a reason".into(),
        }
    }

    /// The routing key it was published under.
    #[must_use]
    pub fn routing_key(&self) -> &str {
        self.delivery.routing_key.as_str()
    }

    /// The properties that are set, but for the headers.
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
            ("timestamp", properties.timestamp().map(|time| Timestamp(time).to_string().into())),
            ("type", text(properties.kind())),
            ("user_id", text(properties.user_id())),
            ("app_id", text(properties.app_id())),
            ("cluster_id", text(properties.cluster_id())),
        ];
        properties.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
    }

    /// The headers, ours and the broker's among them.
    #[must_use]
    pub fn headers(&self) -> Map<String, Value> {
        self.delivery.properties.headers().as_ref().map(object).unwrap_or_default()
    }

    pub(super) fn revived(&self) -> BasicProperties {
        let mut headers = FieldTable::default();
        for (name, value) in self.delivery.properties.headers().iter().flat_map(FieldTable::inner) {
            let theirs = name.as_str();
            let trace = TRACES.iter().any(|trace| theirs.starts_with(trace)) || theirs == DEATHS_HEADER;
            if !trace && !theirs.starts_with(OURS) {
                headers.insert(name.clone(), value.clone());
            }
        }
        let properties = kept(&self.delivery.properties).with_headers(headers);
        match self.id() {
            Some(id) => properties.with_message_id(id.into()),
            None => properties,
        }
    }

    pub(super) fn into_parts(self) -> (ShortString, Vec<u8>) {
        (self.delivery.routing_key, self.delivery.data)
    }

    fn header(&self, name: &str) -> Option<&AMQPValue> {
        self.delivery.properties.headers().as_ref()?.inner().get(name)
    }

    fn text(&self, name: &str) -> Option<&str> {
        self.header(name).and_then(text)
    }

    fn buried_at(&self) -> Option<Timestamp> {
        timestamp(self.header(DIED_HEADER))
    }

    fn moved_at(&self) -> Option<Timestamp> {
        self.deaths().filter_map(|death| timestamp(death.get("time"))).max()
    }

    /// The deaths in the queue of events: those elsewhere are the publisher's business.
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

/// The properties of the dead letter of a message that the worker cannot read.
pub(super) fn buried(
    properties: &BasicProperties,
    message_id: Option<&str>,
    reason: &str,
) -> BasicProperties {
    let string = |text: &str| AMQPValue::LongString(LongString::from(text));
    let mut headers = properties.headers().clone().unwrap_or_default();
    headers.insert(REASON_HEADER.into(), string(&excerpt(reason)));
    headers.insert(DIED_HEADER.into(), AMQPValue::Timestamp(Timestamp::now().0));
    if message_id.is_none() {
        headers.insert(LETTER_HEADER.into(), string(&IdempotencyKey::fresh().to_string()));
    }
    if let Some(user) = properties.user_id() {
        headers.insert(USER_HEADER.into(), string(user.as_str()));
    }
    kept(properties).with_headers(headers)
}

/// The properties of a message that go with it to wherever it is published again, all but its headers. Not the
/// expiration: what is kept until a person decides, and what was sent back by one, must not vanish. Not the user
/// either: the broker breaks the connection of anybody else who names them.
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

fn text(value: &AMQPValue) -> Option<&str> {
    match value {
        AMQPValue::LongString(text) => std::str::from_utf8(text.as_bytes()).ok(),
        AMQPValue::ShortString(text) => Some(text.as_str()),
        _ => None,
    }
}

fn timestamp(value: Option<&AMQPValue>) -> Option<Timestamp> {
    match value? {
        AMQPValue::Timestamp(secs) => Some(Timestamp(*secs)),
        _ => None,
    }
}

fn object(table: &FieldTable) -> Map<String, Value> {
    table.inner().iter().map(|(name, value)| (name.to_string(), json(value))).collect()
}

/// A header's value as JSON has it.
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
        AMQPValue::Timestamp(secs) => Value::from(Timestamp(*secs).to_string()),
        AMQPValue::FieldTable(table) => Value::Object(object(table)),
        AMQPValue::ByteArray(bytes) => Value::from(bytes.as_slice().escape_ascii().to_string()),
        AMQPValue::Void => Value::Null,
    }
}
