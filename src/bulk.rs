//! Bodies of bulk requests: many events, each of which is accepted or rejected separately.

use std::fmt;
use std::str::FromStr;

use serde::de::{self, Deserializer, SeqAccess, Visitor};
use serde_json::value::RawValue;

use crate::event::{Event, EventError, unexpected_string};
use crate::excerpt::excerpt;

/// Most events in one request. The readable events of a request are accepted together or not at all, so they
/// must fit within the limit of waiting events.
pub const MAX_EVENTS: usize = 10_000;

/// The supported media types, as errors name them.
pub const MEDIA_TYPES: &str = "send application/x-ndjson or application/json";

/// How the events of a body are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MediaType {
    /// `application/x-ndjson`: one event per line.
    NdJson,
    /// `application/json`: an array of events.
    JsonArray,
}

/// An unsupported media type: an excerpt of it, in quotes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the content type {0} is not supported: {MEDIA_TYPES}")]
pub struct UnknownMediaType(String);

impl FromStr for MediaType {
    type Err = UnknownMediaType;

    fn from_str(named: &str) -> Result<Self, Self::Err> {
        // Parameters such as "; charset=utf-8" add nothing: JSON is always UTF-8.
        let essence = named.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        match &*essence {
            "application/x-ndjson" => Ok(Self::NdJson),
            "application/json" => Ok(Self::JsonArray),
            _ => Err(UnknownMediaType(excerpt(format_args!("{essence:?}")))),
        }
    }
}

/// Why a whole body is refused.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// It is not an array.
    #[error("the body is not a JSON array of events: {0}")]
    Unreadable(#[source] serde_json::Error),
    /// It has more than [`MAX_EVENTS`].
    #[error("a request has at most {MAX_EVENTS} events")]
    TooMany,
    /// It has no line with an event.
    #[error("the body has no event")]
    Empty,
}

/// The events of a body, in order; an invalid event yields its error. Blank lines are skipped.
///
/// At most [`MAX_EVENTS`] + 1 events are read, and no error repeats a value of the body, so the cost of an
/// error does not grow with the body.
///
/// # Errors
///
/// The reason why the whole body is refused.
pub fn events(
    body: &[u8],
    media_type: MediaType,
) -> Result<impl ExactSizeIterator<Item = Result<Event, EventError>>, BodyError> {
    let events: Vec<&[u8]> = match media_type {
        MediaType::NdJson => {
            let lines: Vec<&[u8]> = lines(body).take(MAX_EVENTS + 1).collect();
            if lines.is_empty() {
                return Err(BodyError::Empty);
            }
            lines
        }
        MediaType::JsonArray => elements(body)?,
    };
    if events.len() > MAX_EVENTS {
        return Err(BodyError::TooMany);
    }
    Ok(events.into_iter().map(Event::from_json))
}

/// The elements of a JSON array. Reading stops at the first element beyond [`MAX_EVENTS`].
///
/// # Errors
///
/// When it is not an array, or has more elements.
pub fn elements(body: &[u8]) -> Result<Vec<&[u8]>, BodyError> {
    struct Elements<'a, 'de>(&'a mut Vec<&'de [u8]>);

    impl<'de> Visitor<'de> for Elements<'_, 'de> {
        type Value = ();

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an array")
        }

        fn visit_str<E: de::Error>(self, _: &str) -> Result<(), E> {
            Err(unexpected_string(&self))
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut array: A) -> Result<(), A::Error> {
            while let Some(element) = array.next_element::<&RawValue>()? {
                self.0.push(element.get().as_bytes());
                if self.0.len() > MAX_EVENTS {
                    return Err(de::Error::custom(BodyError::TooMany));
                }
            }
            Ok(())
        }
    }

    let mut found = Vec::new();
    let mut json = serde_json::Deserializer::from_slice(body);
    match json.deserialize_any(Elements(&mut found)).and_then(|()| json.end()) {
        Ok(()) => Ok(found),
        Err(_) if found.len() > MAX_EVENTS => Err(BodyError::TooMany),
        Err(error) => Err(BodyError::Unreadable(error)),
    }
}

fn lines(body: &[u8]) -> impl Iterator<Item = &[u8]> {
    body.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii).filter(|line| !line.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::excerpt::MAX_EXCERPT;
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
        let body = "{\"domain\":\"a.com\",\"event\":\"bounced\"}\r\n\n  \nx\n\
            {\"domain\":\"b.com\",\"event\":\"delivered\",\"count\":2}";
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

    /// Most bytes of an error beside its excerpt: the words around it, and the position.
    const WORDS: usize = 100;

    /// Hostile text in any place of a body.
    fn anything() -> impl Strategy<Value = String> {
        let unit = prop_oneof![
            "[\u{7f}\u{1}a\u{e4}\u{2028}\\\\\"]{1,3}"
                .prop_map(|text| { serde_json::to_string(&text).unwrap().trim_matches('"').to_owned() })
        ];
        let long = (unit, 0..2000_usize).prop_map(|(unit, times)| unit.repeat(times));
        prop_oneof![
            long.clone().prop_map(|text| format!("\"{text}\"")),
            (0..2000_usize, "[-.e]?").prop_map(|(digits, more)| format!("{}{more}", "7".repeat(digits))),
            (0..200_usize).prop_map(|depth| "[".repeat(depth)),
            (0..200_usize).prop_map(|depth| format!("{}0{}", "[".repeat(depth), "]".repeat(depth))),
            long.prop_map(|text| format!("{{\"{text}\":{{}}}}")),
            "\\PC{0,400}",
        ]
    }

    #[test]
    fn no_error_repeats_a_value_of_megabytes() {
        let text = format!("\"{}\"", "\u{7f}".repeat(1024 * 1024));
        for body in [
            text.clone(),
            format!("{{{text}:{text}}}"),
            format!("{{\"count\":{text}}}"),
            format!("{{\"domain\":{text}}}"),
            format!("{{\"event\":{text}}}"),
            format!("{{\"id\":{text}}}"),
            format!("{{\"count\":{}}}", "7".repeat(1024 * 1024)),
            format!("{text}{text}"),
        ] {
            let by_line = read(&body, MediaType::NdJson).unwrap().remove(0).unwrap_err();
            let by_element = read(&format!("[{body}]"), MediaType::JsonArray);
            let by_element = by_element.map_or_else(|error| error, |events| events[0].clone().unwrap_err());
            let whole = read(&body, MediaType::JsonArray).unwrap_err();
            let message = crate::batch::Batch::from_json(body.as_bytes()).unwrap_err().to_string();
            for error in [by_line, by_element, whole, message] {
                assert!(error.len() < MAX_EXCERPT + WORDS, "{} bytes: {error:.300}", error.len());
            }
        }
    }

    #[test]
    fn a_string_is_named_as_what_it_is_not() {
        for (body, expected) in [
            ("\"x\"", "invalid type: a string, expected an event"),
            (r#"{"domain":"a.com","event":"bounced","count":"3"}"#, "a string, expected a count from 1 to"),
        ] {
            let error = read(body, MediaType::NdJson).unwrap().remove(0).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
        let error = read("\"x\"", MediaType::JsonArray).unwrap_err();
        assert!(error.contains("invalid type: a string, expected an array"), "{error}");
    }

    #[test]
    fn an_array_is_not_read_beyond_the_limit() {
        // The text after the limit is not even JSON.
        let array = format!("[{}#", "0,".repeat(MAX_EVENTS + 1));
        assert!(read(&array, MediaType::JsonArray).unwrap_err().contains("at most 10000"));
        let array = format!("[{}#", "0,".repeat(MAX_EVENTS));
        assert!(read(&array, MediaType::JsonArray).unwrap_err().contains("not a JSON array"));
    }

    proptest! {
        #[test]
        fn no_error_is_long(
            (before, what, after) in (0..6_usize, anything(), "[}\\]]?").prop_map(|(place, what, end)| {
                let before = ["", "{\"domain\":", "{\"event\":", "{\"count\":", "{\"id\":", "{"][place];
                (before, what, end)
            }),
        ) {
            let event = format!("{before}{what}{after}");
            let mut errors = vec![];
            for (body, media_type) in [
                (event.clone(), MediaType::NdJson),
                (event.clone(), MediaType::JsonArray),
                (format!("[{event}]"), MediaType::JsonArray),
            ] {
                match read(&body, media_type) {
                    Ok(events) => errors.extend(events.into_iter().filter_map(Result::err)),
                    Err(error) => errors.push(error),
                }
            }
            let message = crate::batch::Batch::from_json(event.as_bytes());
            errors.extend(message.err().map(|error| error.to_string()));
            errors.extend(event.parse::<MediaType>().err().map(|error| error.to_string()));
            for error in errors {
                prop_assert!(error.len() < MAX_EXCERPT + WORDS, "{} bytes: {error}", error.len());
            }
        }

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
