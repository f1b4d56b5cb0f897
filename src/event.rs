//! One event and its JSON: the vocabulary of submitters and publishers.
//!
//! ```json
//! {"domain": "example.com", "event": "delivered", "count": 3, "id": "optional-unique-string"}
//! ```
//!
//! `domain` and `event` are required, `count` is 1 unless given, `id` makes the event count once. Other
//! fields are ignored, so a publisher may add its own.

use std::cell::Cell;
use std::fmt;
use std::marker::PhantomData;
use std::str::FromStr;

use serde::de::{self, Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde::ser::{Serialize, SerializeStruct, Serializer};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::domain_name::{DomainName, DomainSpelling};
use crate::excerpt::excerpt;
use crate::idempotency_key::{IdempotencyKey, KeySpelling};

/// Most messages one event may stand for. It keeps the sums of a batch far below 64 bits, so a publisher's
/// mistake is refused here and never reaches the ledger.
pub const MAX_COUNT: u64 = 1_000_000_000;

/// Whether a message was delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, ToSchema)]
#[schema(rename_all = "lowercase")]
pub enum Outcome {
    /// The receiving server accepted it.
    Delivered,
    /// The receiving server refused it.
    Bounced,
}

impl Outcome {
    /// The word in JSON and in the URL path.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Bounced => "bounced",
        }
    }
}

/// A word that is neither `delivered` nor `bounced`: an excerpt of it, in quotes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown event {0}: it must be \"delivered\" or \"bounced\"")]
pub struct UnknownOutcome(String);

impl FromStr for Outcome {
    type Err = UnknownOutcome;

    fn from_str(word: &str) -> Result<Self, Self::Err> {
        match word {
            "delivered" => Ok(Self::Delivered),
            "bounced" => Ok(Self::Bounced),
            _ => Err(UnknownOutcome(excerpt(format_args!("{word:?}")))),
        }
    }
}

/// The outcome of one or more messages to one domain.
#[derive(Clone, Debug, PartialEq, Eq, ToSchema)]
#[schema(examples(json!({"domain": "example.com", "event": "delivered", "count": 3, "id": "message-4711"})))]
pub struct Event {
    /// The domain the messages were sent to.
    #[schema(value_type = DomainSpelling)]
    pub domain: DomainName,
    /// Whether they were delivered.
    #[schema(rename = "event")]
    pub outcome: Outcome,
    /// How many messages, 1 to 1,000,000,000; 1 if it is missing.
    // Not as a `default`: the generator of TypeScript clients makes members with a default required.
    #[schema(required = false, minimum = 1, maximum = 1_000_000_000)]
    pub count: u64,
    /// The key under which the event counts once; without one it counts each time it is sent.
    #[schema(rename = "id", value_type = Option<KeySpelling>)]
    pub key: Option<IdempotencyKey>,
}

/// Why some JSON is not an event.
#[derive(Debug, thiserror::Error)]
#[error("{}", without_place(source))]
pub struct EventError {
    /// The invalid part.
    pub invalid: Invalid,
    source: serde_json::Error,
}

/// What is wrong with an event, without the place: serde counts lines and columns from the beginning of the
/// event, but a client would look for them in the body.
fn without_place(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    text.strip_suffix(&place).map(str::to_owned).unwrap_or(text)
}

/// The part of an event that is not valid.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Invalid {
    /// Its `domain`.
    Domain,
    /// Its `id`.
    Key,
    /// Anything else.
    #[default]
    Event,
}

impl Event {
    /// Reads an event from the JSON of one object.
    ///
    /// # Errors
    ///
    /// States what is wrong, and in which part of the event.
    pub fn from_json(json: &[u8]) -> Result<Self, EventError> {
        let reading = Cell::default();
        let mut deserializer = serde_json::Deserializer::from_slice(json);
        let event = deserializer.deserialize_any(EventVisitor { reading: &reading });
        let event = event.and_then(|event| deserializer.end().map(|()| event));
        event.map_err(|source| EventError { invalid: reading.get(), source })
    }
}

impl<'de> Deserialize<'de> for Event {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(EventVisitor { reading: &Cell::default() })
    }
}

impl Serialize for Event {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { domain, outcome, count, key } = self;
        EventRef { domain, outcome: *outcome, count: *count, key: *key }.serialize(serializer)
    }
}

/// An [`Event`] that borrows its domain, so a sum is written without a copy.
pub(crate) struct EventRef<'a> {
    pub(crate) domain: &'a DomainName,
    pub(crate) outcome: Outcome,
    pub(crate) count: u64,
    pub(crate) key: Option<IdempotencyKey>,
}

impl Serialize for EventRef<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut event = serializer.serialize_struct("Event", 4)?;
        event.serialize_field("domain", self.domain)?;
        event.serialize_field("event", self.outcome.as_str())?;
        if self.count != 1 {
            event.serialize_field("count", &self.count)?;
        }
        if let Some(key) = &self.key {
            event.serialize_field(
                "id",
                &*key.as_uuid().hyphenated().encode_lower(&mut Uuid::encode_buffer()),
            )?;
        }
        event.end()
    }
}

/// Reads an event only from a JSON object: serde's derived code would also accept an array.
struct EventVisitor<'a> {
    /// The part being read, which is the invalid one if reading fails.
    reading: &'a Cell<Invalid>,
}

impl EventVisitor<'_> {
    fn value<'de, T: Deserialize<'de>, A: MapAccess<'de>>(
        &self,
        part: Invalid,
        map: &mut A,
    ) -> Result<T, A::Error> {
        self.reading.set(part);
        let value = map.next_value()?;
        self.reading.set(Invalid::Event);
        Ok(value)
    }
}

impl<'de> Visitor<'de> for EventVisitor<'_> {
    type Value = Event;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an event, as in {\"domain\": \"example.com\", \"event\": \"delivered\"}")
    }

    fn visit_str<E: de::Error>(self, _: &str) -> Result<Event, E> {
        Err(unexpected_string(&self))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Event, A::Error> {
        let (mut domain, mut outcome, mut count, mut key) = (None, None, None, None);
        while let Some(field) = map.next_key()? {
            match field {
                Field::Domain => {
                    once("domain", &mut domain, self.value::<Text<_>, _>(Invalid::Domain, &mut map)?.0)?;
                }
                Field::Event => once("event", &mut outcome, map.next_value::<Text<_>>()?.0)?,
                Field::Count => once("count", &mut count, map.next_value::<EventCount>()?.0)?,
                Field::Id => once("id", &mut key, self.value::<Option<Text<_>>, _>(Invalid::Key, &mut map)?)?,
                Field::Other => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(Event {
            domain: domain.ok_or_else(|| de::Error::missing_field("domain"))?,
            outcome: outcome.ok_or_else(|| de::Error::missing_field("event"))?,
            count: count.unwrap_or(1),
            key: key.flatten().map(|Text(key)| key),
        })
    }
}

/// The error for a string where something else is expected. Serde's own error repeats the whole string,
/// whatever its length, and a JSON deserializer that is asked for a particular type returns that error before
/// a visitor sees the string. So every visitor of client bytes is driven by `deserialize_any`, and answers a
/// string with this error.
pub(crate) fn unexpected_string<E: de::Error>(expected: &dyn de::Expected) -> E {
    E::invalid_type(de::Unexpected::Other("a string"), expected)
}

/// Refuses a second value for a field: neither of the two can be trusted.
fn once<T, E: de::Error>(field: &'static str, slot: &mut Option<T>, value: T) -> Result<(), E> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(E::duplicate_field(field)),
    }
}

#[derive(serde::Deserialize)]
#[serde(field_identifier, rename_all = "lowercase")]
enum Field {
    Domain,
    Event,
    Count,
    Id,
    #[serde(other)]
    Other,
}

/// A JSON string that is parsed in place, without a copy.
struct Text<T>(T);

impl<'de, T: FromStr<Err: fmt::Display>> Deserialize<'de> for Text<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextVisitor<T>(PhantomData<T>);

        impl<T: FromStr<Err: fmt::Display>> Visitor<'_> for TextVisitor<T> {
            type Value = Text<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Text<T>, E> {
                text.parse().map(Text).map_err(E::custom)
            }
        }

        deserializer.deserialize_any(TextVisitor(PhantomData))
    }
}

/// A whole number from 1 to [`MAX_COUNT`].
struct EventCount(u64);

impl<'de> Deserialize<'de> for EventCount {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct CountVisitor;

        impl Visitor<'_> for CountVisitor {
            type Value = EventCount;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a count from 1 to {MAX_COUNT}")
            }

            fn visit_str<E: de::Error>(self, _: &str) -> Result<EventCount, E> {
                Err(unexpected_string(&self))
            }

            fn visit_u64<E: de::Error>(self, count: u64) -> Result<EventCount, E> {
                if (1..=MAX_COUNT).contains(&count) {
                    Ok(EventCount(count))
                } else {
                    Err(E::invalid_value(de::Unexpected::Unsigned(count), &self))
                }
            }

            /// JSON has one kind of number, and some programs write a whole one as `3.0`.
            fn visit_f64<E: de::Error>(self, count: f64) -> Result<EventCount, E> {
                #[expect(clippy::cast_precision_loss, reason = "the limit is far below 2^53")]
                let most = MAX_COUNT as f64;
                if count.fract() == 0.0 && (1.0..=most).contains(&count) {
                    #[expect(
                        clippy::cast_possible_truncation,
                        clippy::cast_sign_loss,
                        reason = "just checked"
                    )]
                    let count = count as u64;
                    Ok(EventCount(count))
                } else {
                    Err(E::invalid_value(de::Unexpected::Float(count), &self))
                }
            }
        }

        deserializer.deserialize_any(CountVisitor)
    }
}

#[cfg(test)]
mod tests;
