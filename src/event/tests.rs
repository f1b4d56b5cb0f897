//! Tests of how an event is read.

use super::*;
use proptest::prelude::*;

fn read(json: &str) -> Result<Event, String> {
    let read = Event::from_json(json.as_bytes()).map_err(|error| error.to_string());
    // Messages are read through `Deserialize`.
    let batch: Result<Event, _> = serde_json::from_str(json);
    assert_eq!(batch.map_err(|error| without_place(&error)), read);
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
    let event = read(r#"{"id": "a", "count": 1000000000, "event": "bounced", "domain": "ex\u0061mple.com"}"#);
    assert_eq!(event.as_ref().map(|e| (e.outcome, e.count)), Ok((Outcome::Bounced, MAX_COUNT)));
    assert_eq!(event.unwrap().key, Some("a".parse().unwrap()));
    assert_eq!(read(r#"{"domain":"a.com","event":"bounced","id":null}"#).unwrap().key, None);
}

#[test]
fn a_whole_number_counts_however_it_is_written() {
    for (count, expected) in [("3", 3), ("3.0", 3), ("3e2", 300), ("1000000000.0", MAX_COUNT)] {
        let event = read(&format!(r#"{{"domain":"a.com","event":"bounced","count":{count}}}"#)).unwrap();
        assert_eq!(event.count, expected, "{count}");
    }
    for count in ["0.0", "-1.0", "1000000001.0", "1e300", "0.5", "-0.0"] {
        let json = format!(r#"{{"domain":"a.com","event":"bounced","count":{count}}}"#);
        assert!(read(&json).unwrap_err().contains("a count from 1 to"), "{count}");
    }
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
        assert!(error.contains(reason) && !error.contains(" at line "), "{json}: {error}");
    }
    assert!(serde_json::from_slice::<Event>(b"{\"domain\":\"a\xff.com\",\"event\":\"bounced\"}").is_err());
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
