//! One event and its JSON: the vocabulary of submitters and publishers.
//!
//! ```json
//! {"domain": "example.com", "event": "delivered", "count": 3, "id": "optional-unique-string"}
//! ```
//!
//! `domain` and `event` are required, `count` is 1 unless given, `id` makes the event count once. Other
//! fields are ignored, so that a publisher may send its own along.

use std::cell::Cell;
use std::fmt;
use std::marker::PhantomData;
use std::str::FromStr;

use serde::de::{self, Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde::ser::{Serialize, SerializeStruct, Serializer};
use uuid::Uuid;

use crate::domain_name::DomainName;
use crate::excerpt::excerpt;
use crate::idempotency_key::IdempotencyKey;

/// Most messages one event may stand for. It keeps a sum of a batch far from the end of 64 bits, so that a
/// publisher's mistake is refused here and not found in the ledger.
pub const MAX_COUNT: u64 = 1_000_000_000;

/// What became of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// The receiving server took it.
    Delivered,
    /// The receiving server refused it.
    Bounced,
}

impl Outcome {
    /// The word on the wire and in the path.
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
#[error("unknown event {0}: it is \"delivered\" or \"bounced\"")]
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

/// What became of one or more messages to one domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Where the messages went.
    pub domain: DomainName,
    /// What became of them.
    pub outcome: Outcome,
    /// How many messages, 1 to [`MAX_COUNT`].
    pub count: u64,
    /// The key under which the event counts once; without one it counts each time it is sent.
    pub key: Option<IdempotencyKey>,
}

/// Why some JSON is not an event.
#[derive(Debug, thiserror::Error)]
#[error("{source}")]
pub struct EventError {
    /// Which part of it is to blame.
    pub invalid: Invalid,
    source: serde_json::Error,
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
    /// Says what is wrong, where, and in which part of the event.
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

/// An [`Event`] whose domain is somebody else's: what a sum is written from without a copy.
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

/// Reads an event from a JSON object and from nothing else: serde's derived code would take an array too.
struct EventVisitor<'a> {
    /// The part that is being read, which is to blame when that fails.
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
                    once("domain", &mut domain, self.value::<Text<_>, _>(Invalid::Domain, &mut map)?.0)?
                }
                Field::Event => once("event", &mut outcome, map.next_value::<Text<_>>()?.0)?,
                Field::Count => once("count", &mut count, map.next_value::<Count>()?.0)?,
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

/// A string where something else is expected. Serde's own error repeats the string, whatever its length, and a
/// deserializer of JSON that is asked for anything in particular makes that error before a visitor sees the string.
/// So every visitor that a client's bytes come to is asked by `deserialize_any`, and ends a string by this.
pub(crate) fn unexpected_string<E: de::Error>(expected: &dyn de::Expected) -> E {
    E::invalid_type(de::Unexpected::Other("a string"), expected)
}

/// Of two values for one field neither can be believed.
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

/// A JSON string that is parsed where it stands, without a copy.
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
struct Count(u64);

impl<'de> Deserialize<'de> for Count {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct CountVisitor;

        impl Visitor<'_> for CountVisitor {
            type Value = Count;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a count from 1 to {MAX_COUNT}")
            }

            fn visit_str<E: de::Error>(self, _: &str) -> Result<Count, E> {
                Err(unexpected_string(&self))
            }

            fn visit_u64<E: de::Error>(self, count: u64) -> Result<Count, E> {
                if (1..=MAX_COUNT).contains(&count) {
                    Ok(Count(count))
                } else {
                    Err(E::invalid_value(de::Unexpected::Unsigned(count), &self))
                }
            }
        }

        deserializer.deserialize_any(CountVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(json: &str) -> Result<Event, String> {
        let read = Event::from_json(json.as_bytes()).map_err(|error| error.to_string());
        // A message is read by this other way.
        let batch: Result<Event, _> = serde_json::from_str(json);
        assert_eq!(batch.map_err(|error| error.to_string()), read);
        read
    }

    #[test]
    fn an_error_names_the_part_that_is_to_blame() {
        for (json, invalid) in [
            (r#"{"domain":"localhost","event":"bounced"}"#, Invalid::Domain),
            (r#"{"event":"bounced","domain":7}"#, Invalid::Domain),
            (r#"{"id":"","domain":"a.com","event":"bounced"}"#, Invalid::Key),
            (r#"{"id":7,"domain":"a.com","event":"bounced"}"#, Invalid::Key),
            (r#"{"domain":"a.com","event":"opened"}"#, Invalid::Event),
            (r#"{"domain":"a.com","id":"x"}"#, Invalid::Event),
            (r#"{"domain":"a.com","id":"x","event":"bounced"} x"#, Invalid::Event),
            (r#"{"domain":"a.com","domain":"b.com","event":"bounced"}"#, Invalid::Event),
            ("7", Invalid::Event),
        ] {
            assert_eq!(Event::from_json(json.as_bytes()).unwrap_err().invalid, invalid, "{json}");
        }
    }

    #[test]
    fn count_and_id_are_optional_and_other_fields_are_ignored() {
        let event = read(r#"{"domain": "Example.com.", "event": "delivered", "sent": {"by": ["mta-1"]}}"#);
        let domain = DomainName::parse("example.com").unwrap();
        assert_eq!(event, Ok(Event { domain, outcome: Outcome::Delivered, count: 1, key: None }));
        let event =
            read(r#"{"id": "a", "count": 1000000000, "event": "bounced", "domain": "ex\u0061mple.com"}"#);
        assert_eq!(event.as_ref().map(|e| (e.outcome, e.count)), Ok((Outcome::Bounced, MAX_COUNT)));
        assert_eq!(event.unwrap().key, Some("a".parse().unwrap()));
        assert_eq!(read(r#"{"domain":"a.com","event":"bounced","id":null}"#).unwrap().key, None);
    }

    #[test]
    fn what_is_no_event_says_why() {
        for (json, reason) in [
            ("", "EOF while parsing a value"),
            ("7", "expected an event"),
            (r#"["a.com", "delivered"]"#, "expected an event"),
            ("{}", "missing field `domain`"),
            (r#"{"domain":"a.com"}"#, "missing field `event`"),
            (r#"{"event":"bounced"}"#, "missing field `domain`"),
            (r#"{"domain":7,"event":"bounced"}"#, "expected a string"),
            (r#"{"domain":"localhost","event":"bounced"}"#, "at least two labels"),
            (r#"{"domain":"a.com","domain":"b.com","event":"bounced"}"#, "duplicate field `domain`"),
            (r#"{"domain":"a.com","event":"opened"}"#, "unknown event \"opened\""),
            (r#"{"domain":"a.com","event":{"bounced":null}}"#, "expected a string"),
            (r#"{"domain":"a.com","event":"bounced","count":0}"#, "a count from 1 to 1000000000"),
            (r#"{"domain":"a.com","event":"bounced","count":-1}"#, "a count from 1 to 1000000000"),
            (r#"{"domain":"a.com","event":"bounced","count":1.5}"#, "a count from 1 to 1000000000"),
            (r#"{"domain":"a.com","event":"bounced","count":"3"}"#, "a count from 1 to 1000000000"),
            (r#"{"domain":"a.com","event":"bounced","count":null}"#, "a count from 1 to 1000000000"),
            (r#"{"domain":"a.com","event":"bounced","count":1000000001}"#, "a count from 1 to 1000000000"),
            (r#"{"domain":"a.com","event":"bounced","id":""}"#, "1 to 255 bytes, this one has 0"),
            (r#"{"domain":"a.com","event":"bounced","id":5}"#, "expected a string"),
            (r#"{"domain":"a.com","event":"bounced"} x"#, "trailing characters"),
        ] {
            let error = read(json).unwrap_err();
            assert!(error.contains(reason), "{json}: {error}");
        }
        assert!(
            serde_json::from_slice::<Event>(b"{\"domain\":\"a\xff.com\",\"event\":\"bounced\"}").is_err()
        );
    }

    proptest! {
        #[test]
        fn an_event_survives_the_wire(
            name in "[a-z]{1,10}\\.(com|net)",
            delivered in any::<bool>(),
            count in 1..=MAX_COUNT,
            key in prop::option::of("\\PC{1,60}"),
        ) {
            let event = Event {
                domain: DomainName::parse(&name).unwrap(),
                outcome: if delivered { Outcome::Delivered } else { Outcome::Bounced },
                count,
                key: key.map(|key| key.parse().unwrap()),
            };
            let json = serde_json::to_string(&event).unwrap();
            prop_assert_eq!(read(&json), Ok(event));
        }

    }
}
