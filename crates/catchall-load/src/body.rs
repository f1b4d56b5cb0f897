//! Bodies with many events.
//!
//! They are written here, not by the product, so that domains keep their spelling and the format has a second
//! opinion.

use uuid::Uuid;

use crate::run::Request;
use crate::workload::Names;

/// Bytes reserved for one event with its key: names have at most 21 letters.
const EVENT: usize = 128;

/// One event per line.
pub(crate) fn lines(names: Names, request: &Request) -> Vec<u8> {
    let mut body = Vec::with_capacity(request.draws.len() * EVENT);
    write_events(names, request, b"\n", &mut body);
    body
}

/// A JSON array of events.
pub(crate) fn array(names: Names, request: &Request) -> Vec<u8> {
    let mut body = Vec::with_capacity(request.draws.len() * EVENT);
    body.push(b'[');
    write_events(names, request, b",", &mut body);
    body.push(b']');
    body
}

/// Writes the events, with their keys if each has one.
fn write_events(names: Names, request: &Request, separator: &[u8], body: &mut Vec<u8>) {
    let each_has_a_key = request.keys.len() == request.draws.len();
    for (place, draw) in request.draws.iter().enumerate() {
        if place > 0 {
            body.extend_from_slice(separator);
        }
        body.extend_from_slice(br#"{"domain":""#);
        names.spell(draw.domain, body);
        body.extend_from_slice(br#"","event":""#);
        body.extend_from_slice(draw.kind.as_str().as_bytes());
        if each_has_a_key {
            body.extend_from_slice(br#"","id":""#);
            let key = request.keys[place].hyphenated();
            body.extend_from_slice(key.encode_lower(&mut Uuid::encode_buffer()).as_bytes());
        }
        body.extend_from_slice(br#""}"#);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::{Draw, Shape, Workload};
    use catchall::event::Event;

    fn request(shape: Shape, keys: usize) -> Request {
        let mut workload = Workload::new(shape, 5, 1000);
        let mut request = Request::new();
        request.draws.extend((0..50).map(|_| workload.draw()));
        request.keys.extend((0..keys).map(|_| Uuid::now_v7()));
        request
    }

    fn check(request: &Request, names: Names, events: &[Event]) {
        assert_eq!(events.len(), request.draws.len());
        for (place, (Draw { domain, kind }, event)) in request.draws.iter().zip(events).enumerate() {
            assert_eq!((event.outcome.as_str(), event.count), (kind.as_str(), 1));
            assert_eq!(event.domain.as_str(), names.canonical(*domain));
            assert_eq!(
                event.key.map(catchall::idempotency_key::IdempotencyKey::as_uuid),
                request.keys.get(place).copied()
            );
        }
    }

    #[test]
    fn the_services_read_what_is_written() {
        for shape in [Shape::Waves, Shape::Zipf] {
            let names = Names::new(shape, 5);
            for keys in [0, 50] {
                let request = request(shape, keys);
                let lines = String::from_utf8(lines(names, &request)).unwrap();
                let events: Vec<Event> =
                    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
                check(&request, names, &events);
                let array: Vec<Event> = serde_json::from_slice(&array(names, &request)).unwrap();
                check(&request, names, &array);
            }
        }
    }

    #[test]
    fn waves_are_sent_in_mixed_case() {
        let body = lines(Names::new(Shape::Waves, 5), &request(Shape::Waves, 0));
        assert!(body.iter().any(u8::is_ascii_uppercase));
    }
}
