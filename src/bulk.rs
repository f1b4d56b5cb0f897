//! Bodies of bulk requests: many events, of which each may be unreadable on its own.

use std::str::FromStr;

use serde_json::value::RawValue;

use crate::event::Event;

/// Most events in one request. A request is counted whole or not, so it has to fit into what may wait.
pub const MAX_EVENTS: usize = 10_000;

/// What is read, in words for a client.
pub const MEDIA_TYPES: &str = "send application/x-ndjson or application/json";

/// How the events of a body are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MediaType {
    /// `application/x-ndjson`: an event a line.
    NdJson,
    /// `application/json`: an array of events.
    JsonArray,
}

/// A media type that is not read here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the content type {0:?} is not read here: {MEDIA_TYPES}")]
pub struct UnknownMediaType(String);

impl FromStr for MediaType {
    type Err = UnknownMediaType;

    fn from_str(named: &str) -> Result<Self, Self::Err> {
        // Parameters, as in "; charset=utf-8", say nothing JSON does not.
        let essence = named.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        match &*essence {
            "application/x-ndjson" => Ok(Self::NdJson),
            "application/json" => Ok(Self::JsonArray),
            _ => Err(UnknownMediaType(essence)),
        }
    }
}

/// Why nothing of a body is read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is not an array.
    #[error("the body is not a JSON array of events: {0}")]
    Unreadable(serde_json::Error),
    /// It has more than [`MAX_EVENTS`].
    #[error("a request has at most {MAX_EVENTS} events")]
    TooMany,
    /// It has no line.
    #[error("the body has no event")]
    Empty,
}

/// The events of a body in their order, or what is wrong with each that is none. Blank lines are no events.
///
/// # Errors
///
/// Says why nothing can be read.
pub fn events(
    body: &[u8],
    media_type: MediaType,
) -> Result<impl ExactSizeIterator<Item = serde_json::Result<Event>>, Error> {
    let events: Vec<&[u8]> = match media_type {
        MediaType::NdJson => {
            let lines: Vec<&[u8]> = lines(body).take(MAX_EVENTS + 1).collect();
            if lines.is_empty() {
                return Err(Error::Empty);
            }
            lines
        }
        MediaType::JsonArray => {
            let elements: Vec<&RawValue> = serde_json::from_slice(body).map_err(Error::Unreadable)?;
            elements.into_iter().map(|element| element.get().as_bytes()).collect()
        }
    };
    if events.len() > MAX_EVENTS {
        return Err(Error::TooMany);
    }
    Ok(events.into_iter().map(serde_json::from_slice))
}

fn lines(body: &[u8]) -> impl Iterator<Item = &[u8]> {
    body.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii).filter(|line| !line.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(body: &str, media_type: MediaType) -> Result<Vec<Result<String, String>>, String> {
        let events = events(body.as_bytes(), media_type).map_err(|error| error.to_string())?;
        let name = |event: Event| format!("{} {} {}", event.domain, event.outcome.as_str(), event.count);
        Ok(events.map(|event| event.map(name).map_err(|error| error.to_string())).collect())
    }

    #[test]
    fn media_types_are_told_by_their_essence() {
        assert_eq!("Application/X-NDJSON; charset=utf-8".parse(), Ok(MediaType::NdJson));
        assert_eq!("application/json".parse(), Ok(MediaType::JsonArray));
        assert!("text/plain".parse::<MediaType>().is_err());
    }

    #[test]
    fn each_line_is_read_on_its_own() {
        let body = "{\"domain\":\"a.com\",\"event\":\"bounced\"}\r\n\n  \nx\n{\"domain\":\"b.com\",\"event\":\"delivered\",\"count\":2}";
        let events = read(body, MediaType::NdJson).unwrap();
        assert_eq!(events[0], Ok("a.com bounced 1".into()));
        assert!(events[1].as_ref().unwrap_err().contains("expected value"));
        assert_eq!(events[2], Ok("b.com delivered 2".into()));
        assert_eq!(events.len(), 3);
    }

    #[test]
    fn each_element_is_read_on_its_own_but_the_array_is_whole() {
        let events =
            read(r#"[{"domain":"a.com","event":"bounced"}, 7, {"domain":"b"}]"#, MediaType::JsonArray);
        let events = events.unwrap();
        assert_eq!(events[0], Ok("a.com bounced 1".into()));
        assert!(events[1].is_err() && events[2].is_err());
        assert_eq!(read("[]", MediaType::JsonArray), Ok(vec![]));
        for broken in ["", "{}", "[", r#"[{"domain":"a.com","event":"bounced"}"#, "[]x"] {
            assert!(read(broken, MediaType::JsonArray).unwrap_err().contains("not a JSON array"), "{broken}");
        }
        assert_eq!(read(" \n\n", MediaType::NdJson), Err("the body has no event".into()));
    }

    #[test]
    fn the_limit_is_in_events() {
        let line = "{\"domain\":\"a.com\",\"event\":\"bounced\"}\n";
        assert_eq!(read(&line.repeat(MAX_EVENTS), MediaType::NdJson).unwrap().len(), MAX_EVENTS);
        assert!(read(&line.repeat(MAX_EVENTS + 1), MediaType::NdJson).unwrap_err().contains("at most 10000"));
        let array = format!("[{}0]", "0,".repeat(MAX_EVENTS));
        assert!(read(&array, MediaType::JsonArray).unwrap_err().contains("at most 10000"));
    }

    proptest! {
        #[test]
        fn both_forms_say_the_same(names in prop::collection::vec("[a-z]{1,5}\\.com|[a-z]{1,3}", 1..20)) {
            let lines: Vec<String> =
                names.iter().map(|name| format!("{{\"domain\":\"{name}\",\"event\":\"bounced\"}}")).collect();
            let by_line = read(&lines.join("\n"), MediaType::NdJson).unwrap();
            let by_element = read(&format!("[{}]", lines.join(",")), MediaType::JsonArray).unwrap();
            prop_assert_eq!(by_line, by_element);
        }
    }
}
