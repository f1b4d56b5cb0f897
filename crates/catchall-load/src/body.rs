//! Bodies of many events, written as any client would write them.
//!
//! They arrive in the spelling of the workload, and the tool is a second opinion on the format.

use uuid::Uuid;

use crate::run::Parcel;
use crate::workload::Names;

/// Room for one event, a key included: names are at most 21 letters long.
const EVENT: usize = 128;

/// An event a line.
pub(crate) fn lines(names: Names, parcel: &Parcel) -> Vec<u8> {
    let mut body = Vec::with_capacity(parcel.draws.len() * EVENT);
    write_events(names, parcel, b"\n", &mut body);
    body
}

/// A JSON array of events.
pub(crate) fn array(names: Names, parcel: &Parcel) -> Vec<u8> {
    let mut body = Vec::with_capacity(parcel.draws.len() * EVENT);
    body.push(b'[');
    write_events(names, parcel, b",", &mut body);
    body.push(b']');
    body
}

/// Writes the events, each with its key if there is one for each.
fn write_events(names: Names, parcel: &Parcel, separator: &[u8], body: &mut Vec<u8>) {
    let each_has_a_key = parcel.keys.len() == parcel.draws.len();
    for (place, draw) in parcel.draws.iter().enumerate() {
        if place > 0 {
            body.extend_from_slice(separator);
        }
        body.extend_from_slice(br#"{"domain":""#);
        names.spell(draw.domain, body);
        body.extend_from_slice(br#"","event":""#);
        body.extend_from_slice(draw.kind.as_str().as_bytes());
        if each_has_a_key {
            body.extend_from_slice(br#"","id":""#);
            let key = parcel.keys[place].hyphenated();
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

    fn parcel(shape: Shape, keys: usize) -> Parcel {
        let mut workload = Workload::new(shape, 5, 1000);
        let mut parcel = Parcel::new();
        parcel.draws.extend((0..50).map(|_| workload.draw()));
        parcel.keys.extend((0..keys).map(|_| Uuid::now_v7()));
        parcel
    }

    fn check(parcel: &Parcel, names: Names, events: &[Event]) {
        assert_eq!(events.len(), parcel.draws.len());
        for (place, (Draw { domain, kind }, event)) in parcel.draws.iter().zip(events).enumerate() {
            assert_eq!((event.outcome.as_str(), event.count), (kind.as_str(), 1));
            assert_eq!(event.domain.as_str(), names.canonical(*domain));
            assert_eq!(
                event.key.map(catchall::event::IdempotencyKey::as_uuid),
                parcel.keys.get(place).copied()
            );
        }
    }

    #[test]
    fn the_services_read_what_is_written() {
        for shape in [Shape::Waves, Shape::Zipf] {
            let names = Names::new(shape, 5);
            for keys in [0, 50] {
                let parcel = parcel(shape, keys);
                let lines = String::from_utf8(lines(names, &parcel)).unwrap();
                let events: Vec<Event> =
                    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
                check(&parcel, names, &events);
                let array: Vec<Event> = serde_json::from_slice(&array(names, &parcel)).unwrap();
                check(&parcel, names, &array);
            }
        }
    }

    #[test]
    fn waves_are_sent_in_mixed_case() {
        let body = lines(Names::new(Shape::Waves, 5), &parcel(Shape::Waves, 0));
        assert!(body.iter().any(u8::is_ascii_uppercase));
    }
}
