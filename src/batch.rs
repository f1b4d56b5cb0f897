//! The events of one message: sums of events without a key, and each event with a key.

use std::fmt;

use serde::de::value::MapAccessDeserializer;
use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde::ser::{SerializeSeq, Serializer};

use crate::counters::Counters;
use crate::event::{Event, EventRef, MAX_COUNT, Outcome, unexpected_string};
use crate::idempotency_key::IdempotencyKey;
use crate::tally::Tally;

/// Most events in a message that catchall writes. At some 65 bytes each, a message stays near 64 kB, so the
/// broker and a worker can hold many at a time, and a thousand events share the cost of one message.
pub const MESSAGE_EVENTS: usize = 1000;

/// The events of one message, or of several messages.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// The sum of the events without a key.
    pub plain: Tally,
    /// The events with a key, in order of arrival: of two with the same key, only the first counts.
    pub keyed: Vec<(IdempotencyKey, Event)>,
}

impl Batch {
    /// Adds one event.
    pub fn record(&mut self, event: Event) {
        match event.key {
            None => self.plain.record(event.domain, Counters::of(event.outcome, event.count)),
            Some(key) => self.keyed.push((key, event)),
        }
    }

    /// Adds everything in `other`.
    pub fn merge(&mut self, other: Self) {
        self.plain.merge(other.plain);
        self.keyed.extend(other.keyed);
    }

    /// Whether it holds no event.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.plain.is_empty() && self.keyed.is_empty()
    }

    /// The most rows of the ledger that it can touch. Its memory and cost grow with this number.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.plain.len() + self.keyed.len()
    }

    /// Reads the body of a message: one event or an array of events.
    ///
    /// # Errors
    ///
    /// States what is wrong and where. One unreadable event makes the whole message unreadable: a message is
    /// counted whole or not at all.
    pub fn from_json(body: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(body)
    }

    /// Writes the events as the bodies of as many messages as it takes.
    #[must_use]
    pub fn to_json(&self) -> Vec<Vec<u8>> {
        let plain = self.plain.iter().flat_map(|(domain, counters)| {
            let sums = [(Outcome::Delivered, counters.delivered), (Outcome::Bounced, counters.bounced)];
            sums.into_iter().flat_map(move |(outcome, sum)| {
                counts(sum).map(move |count| EventRef { domain, outcome, count, key: None })
            })
        });
        let keyed = self.keyed.iter().map(|(key, event)| EventRef {
            domain: &event.domain,
            outcome: event.outcome,
            count: event.count,
            key: Some(*key),
        });
        let mut events = plain.chain(keyed).peekable();
        let mut bodies = Vec::new();
        while events.peek().is_some() {
            bodies.push(body(events.by_ref().take(MESSAGE_EVENTS)));
        }
        bodies
    }
}

/// Splits a sum into counts of at most [`MAX_COUNT`], the most that one event may have.
fn counts(sum: u64) -> impl Iterator<Item = u64> {
    let whole = std::iter::repeat_n(MAX_COUNT, usize::try_from(sum / MAX_COUNT).unwrap_or(usize::MAX));
    whole.chain(Some(sum % MAX_COUNT).filter(|rest| *rest > 0))
}

fn body<'a>(events: impl Iterator<Item = EventRef<'a>>) -> Vec<u8> {
    const IN_MEMORY: &str = "writing to memory and from strings and numbers cannot fail";
    let mut body = Vec::new();
    let mut serializer = serde_json::Serializer::new(&mut body);
    let mut array = serializer.serialize_seq(None).expect(IN_MEMORY);
    for event in events {
        array.serialize_element(&event).expect(IN_MEMORY);
    }
    array.end().expect(IN_MEMORY);
    body
}

impl<'de> Deserialize<'de> for Batch {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct BatchVisitor;

        impl<'de> Visitor<'de> for BatchVisitor {
            type Value = Batch;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an event or an array of events")
            }

            fn visit_str<E: de::Error>(self, _: &str) -> Result<Batch, E> {
                Err(unexpected_string(&self))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Batch, A::Error> {
                let mut batch = Batch::default();
                batch.record(Event::deserialize(MapAccessDeserializer::new(map))?);
                Ok(batch)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut events: A) -> Result<Batch, A::Error> {
                let mut batch = Batch::default();
                while let Some(event) = events.next_element()? {
                    batch.record(event);
                }
                Ok(batch)
            }
        }

        deserializer.deserialize_any(BatchVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain_name::DomainName;
    use proptest::prelude::*;

    fn event() -> impl Strategy<Value = Event> {
        let key = prop::option::of("[a-c]{1,2}");
        ("[a-d]{1,2}", any::<bool>(), 1..=MAX_COUNT, key).prop_map(|(name, delivered, count, key)| Event {
            domain: DomainName::parse(&format!("{name}.org")).unwrap(),
            outcome: if delivered { Outcome::Delivered } else { Outcome::Bounced },
            count,
            key: key.map(|key| key.parse().unwrap()),
        })
    }

    fn batch(events: &[Event]) -> Batch {
        let mut batch = Batch::default();
        events.iter().cloned().for_each(|event| batch.record(event));
        batch
    }

    #[test]
    fn a_body_is_one_event_or_an_array() {
        let one = Batch::from_json(br#" {"domain": "a.com", "event": "delivered", "count": 3} "#).unwrap();
        let array =
            br#"[{"domain":"A.com","event":"delivered","count":2},{"domain":"a.com.","event":"delivered"}]"#;
        assert_eq!(Batch::from_json(array).unwrap(), one);
        assert!(Batch::from_json(b"[]").unwrap().is_empty());
    }

    #[test]
    fn one_unreadable_event_makes_the_body_unreadable() {
        for (body, reason) in [
            (&b""[..], "EOF while parsing a value at line 1 column 0"),
            (b"null", "expected an event or an array of events"),
            (b"\"a.com\"", "expected an event or an array of events"),
            (br#"[{"domain":"a.com","event":"delivered"},{"domain":"b.com"}]"#, "missing field `event`"),
            (br#"[{"domain":"a.com","event":"delivered"},[]]"#, "expected an event"),
            (br#"[{"domain":"a.com","event":"delivered"}"#, "EOF while parsing a list"),
            (br#"{"domain":"a.com","event":"delivered"}{}"#, "trailing characters"),
            (b"\x1f\x8b\x08", "expected value"),
        ] {
            let error = Batch::from_json(body).unwrap_err().to_string();
            assert!(error.contains(reason), "{}: {error}", body.escape_ascii());
        }
    }

    #[test]
    fn a_large_batch_becomes_several_messages() {
        let events: Vec<Event> = (0..=2 * MESSAGE_EVENTS)
            .map(|i| Event {
                domain: DomainName::parse(&format!("d{i}.com")).unwrap(),
                outcome: Outcome::Bounced,
                count: 1,
                key: None,
            })
            .collect();
        let bodies = batch(&events).to_json();
        assert_eq!(bodies.len(), 3);
        assert_eq!(Batch::from_json(&bodies[2]).unwrap().rows(), 1);
        assert_eq!(Batch::default().to_json().len(), 0);
    }

    proptest! {
        #[test]
        fn a_batch_survives_the_wire(events in prop::collection::vec(event(), 0..80)) {
            let batch = batch(&events);
            let mut read = Batch::default();
            for body in batch.to_json() {
                read.merge(Batch::from_json(&body).unwrap());
            }
            prop_assert_eq!(read, batch);
        }

        #[test]
        fn no_bytes_panic(body in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = Batch::from_json(&body);
        }
    }
}
