//! Tests of what passes the filter, and how the client library reads it.

use super::*;
use crate::broker::message::{BODY_SIZE_HEADER, UNREADABLE_HEADER};
use amq_protocol::frame::{AMQPFrame, gen_frame, parse_frame};
use amq_protocol::protocol::{AMQPClass, basic};
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldArray, FieldTable, ShortString};
use proptest::collection::vec;
use proptest::prelude::*;

const LARGEST: u64 = 1000;

fn filter() -> FrameFilter {
    FrameFilter::new(LARGEST, 128 << 10)
}

/// The output of the filter when `stream` arrives at once.
fn filtered(stream: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    filter().push(stream, &mut out);
    out
}

/// The frames that the client library parses.
fn parsed(mut stream: &[u8]) -> Vec<AMQPFrame> {
    let mut frames = Vec::new();
    while !stream.is_empty() {
        let (rest, frame) = parse_frame(stream).unwrap_or_else(|error| panic!("{frames:?}, then {error:?}"));
        frames.push(frame);
        stream = rest;
    }
    frames
}

fn frame(kind: u8, channel: u16, payload: &[u8]) -> Vec<u8> {
    let size = u32::try_from(payload.len()).unwrap();
    [&[kind][..], &channel.to_be_bytes(), &size.to_be_bytes(), payload, &[FRAME_END]].concat()
}

fn short(text: &[u8]) -> Vec<u8> {
    [&[u8::try_from(text.len()).unwrap()], text].concat()
}

fn long(bytes: &[u8]) -> Vec<u8> {
    [&u32::try_from(bytes.len()).unwrap().to_be_bytes(), bytes].concat()
}

fn delivery(channel: u16, key: &[u8]) -> Vec<u8> {
    let arguments = [&short(b"c")[..], &1_u64.to_be_bytes(), &[0], &short(b"catchall.events"), &short(key)];
    frame(METHOD_FRAME, channel, &[&DELIVER[..], &arguments.concat()].concat())
}

fn content(channel: u16, size: u64, flags: u16, properties: &[u8]) -> Vec<u8> {
    let payload = [&[0, 60, 0, 0][..], &size.to_be_bytes(), &flags.to_be_bytes(), properties].concat();
    frame(HEADER_FRAME, channel, &payload)
}

fn body(channel: u16, bytes: &[u8]) -> Vec<u8> {
    frame(BODY_FRAME, channel, bytes)
}

fn header(name: &[u8], kind: u8, value: &[u8]) -> Vec<u8> {
    [&short(name)[..], &[kind], value].concat()
}

fn nested(depth: usize) -> Vec<u8> {
    (0..depth).fold(b"V".to_vec(), |inner, _| [&b"A"[..], &long(&inner)].concat())
}

/// The only message of a stream: its routing key, its properties, its body.
fn message(stream: &[u8]) -> (String, BasicProperties, Vec<u8>) {
    let (mut key, mut properties, mut bytes) = (None, None, Vec::new());
    for frame in parsed(stream) {
        match frame {
            AMQPFrame::Method(_, AMQPClass::Basic(basic::AMQPMethod::Deliver(deliver))) => {
                assert!(key.replace(deliver.routing_key.to_string()).is_none());
            }
            AMQPFrame::Header(_, header) => assert!(properties.replace(header.properties).is_none()),
            AMQPFrame::Body(_, payload) => bytes.extend(payload),
            AMQPFrame::Heartbeat => {}
            other => panic!("{other:?}"),
        }
    }
    (key.unwrap(), properties.unwrap(), bytes)
}

fn defects(properties: &BasicProperties) -> Option<String> {
    match properties.headers().as_ref()?.inner().get(UNREADABLE_HEADER)? {
        AMQPValue::LongString(defects) => Some(defects.to_string()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_routing_key_that_is_not_utf_8_is_escaped() {
    let stream = [delivery(1, b"m\xfcller.de"), content(1, 2, 0, &[]), body(1, b"{}")].concat();
    let (key, properties, bytes) = message(&filtered(&stream));
    assert_eq!((&*key, &*bytes), ("m\\xfcller.de", &b"{}"[..]));
    assert_eq!(defects(&properties).unwrap(), "its routing key is not UTF-8 (m\\xfcller.de)");
    let (key, properties, _) =
        message(&filtered(&[delivery(1, &[0xff; 255]), content(1, 0, 0, &[])].concat()));
    assert_eq!(key.len(), 255);
    assert!(defects(&properties).unwrap().len() < 310);
}

#[test]
fn only_the_message_that_is_meant_has_defects() {
    // Interleaved frames of two channels, and a later message on the same channel.
    let stream = [
        delivery(1, b"\xff"),
        delivery(2, b"a.com"),
        content(2, 1, 0, &[]),
        content(1, 0, 0, &[]),
        body(2, b"2"),
        delivery(1, b"b.com"),
        content(1, 1, 0, &[]),
        body(1, b"1"),
    ]
    .concat();
    let headers: Vec<_> = parsed(&filtered(&stream))
        .into_iter()
        .filter_map(|frame| match frame {
            AMQPFrame::Header(channel, header) => Some((channel, defects(&header.properties).is_some())),
            _ => None,
        })
        .collect();
    assert_eq!(headers, [(2, false), (1, true), (1, false)]);
}

#[test]
fn what_can_be_read_of_properties_and_headers_stays() {
    let table = [
        header(b"x-death", b'A', &long(&[&b"F"[..], &long(&header(b"queue", b'S', &long(b"q")))].concat())),
        header(b"deep", nested(18_000)[0], &nested(18_000)[1..]),
        header(b"n\xe4me", b'I', &[0, 0, 0, 1]),
        header(b"torn", b'F', &long(&[5, b'x'])),
        header(b"number", b'I', &[0, 0, 0, 7]),
    ]
    .concat();
    let flags = 1 << 15 | 1 << 13 | 1 << 12 | 1 << 7 | 1 << 6;
    let properties =
        [&short(b"text/csv")[..], &long(&table), &[2], &short(b"m-\xff"), &7_u64.to_be_bytes()].concat();
    let stream = [delivery(1, b"a.com"), content(1, 0, flags, &properties)].concat();
    let (key, properties, _) = message(&filtered(&stream));
    let told = defects(&properties).unwrap();
    for defect in ["header deep is nested too deeply", "n\\xe4me has a name that is not", "torn is cut off"] {
        assert!(told.contains(defect), "{told}");
    }
    assert_eq!((&*key, properties.timestamp(), properties.delivery_mode()), ("a.com", &Some(7), &Some(2)));
    assert_eq!(properties.content_type().as_ref().unwrap().as_str(), "text/csv");
    assert_eq!(properties.message_id().as_ref().unwrap().as_str(), "m-\\xff");
    let headers = properties.headers().as_ref().unwrap().inner();
    assert_eq!(
        headers.keys().map(ShortString::as_str).collect::<Vec<_>>(),
        [UNREADABLE_HEADER, "number", "x-death"]
    );
}

#[test]
fn a_body_that_is_too_large_is_never_handed_on() {
    let part = [b'x'; 400];
    let large = |channel, size| {
        let head = [delivery(channel, b"a.com"), content(channel, size, 1 << 12, &[2])].concat();
        [head, body(channel, &part).repeat(3)].concat()
    };
    let stream =
        [large(1, 1200), delivery(1, b"b.com"), content(1, 1000, 0, &[]), body(1, &[b'y'; 1000])].concat();
    let frames = parsed(&filtered(&stream));
    assert_eq!(frames.iter().filter(|frame| matches!(frame, AMQPFrame::Heartbeat)).count(), 3);
    let bodies: Vec<_> = frames.iter().filter(|frame| matches!(frame, AMQPFrame::Body(..))).collect();
    assert_eq!(bodies, [&AMQPFrame::Body(1, vec![b'y'; 1000])]);
    let headers: Vec<_> = frames
        .iter()
        .filter_map(|frame| match frame {
            AMQPFrame::Header(_, header) => Some(header),
            _ => None,
        })
        .collect();
    assert_eq!(headers.iter().map(|header| header.body_size).collect::<Vec<_>>(), [0, 1000]);
    let table = headers[0].properties.headers().as_ref().unwrap().inner();
    assert_eq!(table.get(BODY_SIZE_HEADER), Some(&AMQPValue::LongLongInt(1200)));
    assert_eq!(
        defects(&headers[0].properties).unwrap(),
        "its body of 1200 bytes is larger than 1000 and was not read"
    );
    assert_eq!(defects(&headers[1].properties), None);
}

#[test]
fn headers_leave_room_for_those_of_a_dead_letter() {
    let large = |size: usize| {
        let table =
            [header(b"a", b'S', &long(&vec![b'a'; size])), header(b"b", b'I', &[0, 0, 0, 1])].concat();
        [delivery(1, b"a.com"), content(1, 0, 1 << 13, &long(&table))].concat()
    };
    assert_eq!(filtered(&large(119 << 10)), large(119 << 10));
    // The broker adds headers to a message, so its frames may be larger than those it accepts.
    for size in [121 << 10, 128 << 10, MAX_HELD, 2 * MAX_HELD] {
        let out = filtered(&large(size));
        assert!(out.len() < 2000, "{size}: {} bytes", out.len());
        let (_, properties, _) = message(&out);
        let headers = properties.headers().as_ref().unwrap().inner();
        assert!(defects(&properties).unwrap().contains("large"), "{size}");
        assert!(!headers.contains_key("a"));
        // Nothing can be read after the part of a frame that is dropped.
        assert_eq!(headers.contains_key("b"), size < MAX_HELD, "{size}");
    }
    // The smallest frame limit that a broker may set.
    let tune = frame(METHOD_FRAME, 0, &[&TUNE[..], &[7, 255, 0, 0, 16, 0, 0, 60]].concat());
    let texts = [&long(&[])[..], &short(&[b'x'; 255]).repeat(8)].concat();
    let flags = 1 << 13 | 0b0000_0111_1011_1100;
    let stream = [tune, delivery(1, b"\xff"), content(1, 0, flags, &texts)].concat();
    let out = filtered(&stream);
    parsed(&out);
    assert!(out.len() < 4096 + 100, "{}", out.len());
}

#[test]
fn bytes_that_are_not_amqp_pass_unchanged() {
    for stream in [&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], b"AMQP\0\0\x09\x01", b"A", b"\x05\0\0", b""] {
        assert_eq!(filtered(stream), stream);
    }
    let mut torn = content(1, 0, 1 << 13, &long(&header(b"x", b'z', b"")));
    *torn.last_mut().unwrap() = 0;
    let stream = [torn, delivery(1, b"\xff")].concat();
    assert_eq!(filtered(&stream), stream);
}

fn value() -> impl Strategy<Value = AMQPValue> {
    let leaf = prop_oneof![
        any::<bool>().prop_map(AMQPValue::Boolean),
        any::<i32>().prop_map(AMQPValue::LongInt),
        any::<u64>().prop_map(AMQPValue::Timestamp),
        vec(any::<u8>(), 0..20).prop_map(|bytes| AMQPValue::LongString(bytes.into())),
        Just(AMQPValue::Void),
    ];
    leaf.prop_recursive(20, 40, 4, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(|values| AMQPValue::FieldArray(FieldArray::from(values))),
            vec(("\\PC{0,8}", inner), 0..4).prop_map(|entries| {
                let mut table = FieldTable::default();
                for (name, value) in entries {
                    table.insert(name.into(), value);
                }
                AMQPValue::FieldTable(table)
            }),
        ]
    })
}

fn clean_stream() -> impl Strategy<Value = Vec<u8>> {
    let message = (any::<u16>(), "\\PC{0,20}", vec(("\\PC{0,8}", value()), 0..4), 0..=LARGEST);
    vec(message, 0..4).prop_map(|messages| {
        let mut stream = Vec::new();
        for (channel, key, headers, size) in messages {
            let mut table = FieldTable::default();
            for (name, value) in headers {
                table.insert(name.into(), value);
            }
            let properties =
                BasicProperties::default().with_headers(table).with_message_id(key.clone().into());
            let header = amq_protocol::frame::AMQPContentHeader { class_id: 60, body_size: size, properties };
            let header = gen_frame(&AMQPFrame::Header(channel, header))(vec![].into()).unwrap();
            stream.extend(delivery(channel, key.as_bytes()));
            stream.extend(header.into_inner().0);
            stream.extend(body(channel, &vec![b'x'; usize::try_from(size).unwrap()]));
            stream.extend(HEARTBEAT);
        }
        stream
    })
}

/// Table entries with every possible defect.
fn hostile_table() -> impl Strategy<Value = Vec<u8>> {
    let text = || prop_oneof![vec(any::<u8>(), 0..20), "[a-z]{0,20}".prop_map(String::into_bytes)];
    let entry = prop_oneof![
        (text(), any::<u8>(), vec(any::<u8>(), 0..12))
            .prop_map(|(name, kind, value)| header(&name, kind, &value)),
        (text(), text()).prop_map(|(name, value)| header(&name, b'S', &long(&value))),
        (text(), 0..60_usize).prop_map(|(name, depth)| [short(&name), nested(depth)].concat()),
        (text(), prop_oneof![Just(b'A'), Just(b'F')], vec(any::<u8>(), 0..12))
            .prop_map(|(name, kind, inner)| header(&name, kind, &long(&inner))),
    ];
    vec(entry, 0..6).prop_map(|entries| entries.concat())
}

/// Messages that no proper client sends.
fn hostile_stream() -> impl Strategy<Value = Vec<u8>> {
    let properties = (any::<u16>(), vec(any::<u8>(), 0..6), hostile_table(), vec(any::<u8>(), 0..60));
    let message = (1..3_u16, vec(any::<u8>(), 0..20), properties, 0..3000_u64);
    vec(message, 1..5).prop_map(|messages| {
        let mut stream = Vec::new();
        for (channel, key, (flags, before, table, after), size) in messages {
            // Half of them contain a table.
            let flags = if flags & 1 == 0 { flags & !(3 << 14) | 1 << 13 } else { flags };
            let before = if flags & 1 == 0 { vec![] } else { before };
            stream.extend(delivery(channel, &key));
            stream.extend(content(channel, size, flags, &[before, long(&table), after].concat()));
            stream.extend(body(channel, &vec![b'x'; usize::try_from(size).unwrap()]));
        }
        stream
    })
}

proptest! {
    #[test]
    fn what_is_well_passes_as_it_is(stream in clean_stream()) {
        prop_assert_eq!(filtered(&stream), stream);
    }

    #[test]
    fn the_library_can_read_what_comes_out(stream in hostile_stream()) {
        parsed(&filtered(&stream));
    }

    #[test]
    fn a_message_that_the_library_can_read_has_no_defects(stream in hostile_stream()) {
        // Frame by frame: a header is rewritten if and only if the library could not read it, or for another
        // reason.
        let mut rest = &stream[..];
        while !rest.is_empty() {
            let size = HEAD + u32::from_be_bytes([rest[3], rest[4], rest[5], rest[6]]) as usize + 1;
            let (frame, later) = rest.split_at(size);
            rest = later;
            let oversize = frame[0] == HEADER_FRAME && frame[HEAD + 4..HEAD + 12] > LARGEST.to_be_bytes()[..];
            let deep = frame.split(|byte| *byte == b'A').count() > 32;
            if !oversize && !deep {
                prop_assert_eq!(filtered(frame) == frame, parse_frame(frame).is_ok());
            }
        }
    }

    #[test]
    fn it_does_not_matter_in_which_pieces_it_comes(
        stream in prop_oneof![hostile_stream(), clean_stream(), vec(any::<u8>(), 0..200)],
        sizes in vec(1..50_usize, 1..20),
    ) {
        let mut filter = filter();
        let (mut out, mut rest) = (Vec::new(), &stream[..]);
        for size in sizes.iter().cycle() {
            let (piece, later) = rest.split_at(rest.len().min(*size));
            filter.push(piece, &mut out);
            rest = later;
            if rest.is_empty() {
                break;
            }
        }
        prop_assert_eq!(out, filtered(&stream));
    }

    #[test]
    fn nothing_is_kept_that_has_no_bound(kind in 0..9_u8, stream in vec(any::<u8>(), 0..500)) {
        let mut filter = filter();
        let mut out = Vec::new();
        let chunk = vec![0; 64 << 10];
        // A frame without an end octet, of any kind.
        filter.push(&[kind, 0, 1, 0xff, 0xff, 0xff, 0xff], &mut out);
        filter.push(&stream, &mut out);
        for _ in 0..40 {
            filter.push(&chunk, &mut out);
        }
        prop_assert!(filter.held.len() <= MAX_HELD);
        prop_assert!(filter.held.capacity() <= 2 * MAX_HELD);
    }
}
