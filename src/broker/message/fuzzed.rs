//! A target for fuzzing: any message that a publisher may send.

use amq_protocol::frame::{AMQPContentHeader, AMQPFrame, gen_frame, parse_frame};
use lapin::BasicProperties;
use lapin::types::{FieldTable, ShortString};

use super::super::filter::FrameFilter;
use super::{Delivery, Message, OURS, TRACES, original};
use crate::batch::Batch;
use crate::excerpt::MAX_EXCERPT;

const BASIC: u16 = 60;
const FRAME: usize = 128 << 10;
const HEADER_FRAME: u8 = 2;
const FRAME_END: u8 = 0xce;

/// Most bytes of an error beside its excerpt: the words around it, and the position.
const WORDS: usize = 100;

/// The two octets that come first say how long the properties are, with their flags; the rest is the body.
pub(in crate::broker) fn message(data: &[u8]) {
    let Some((size, data)) = data.split_first_chunk::<2>() else { return };
    let Some((properties, body)) = data.split_at_checked(usize::from(u16::from_be_bytes(*size))) else {
        return;
    };
    read_properties(properties, body);
    read_body(body);
}

/// Whatever the properties are, the library can read them after the filter; and a message that is written and
/// read again is the same.
fn read_properties(properties: &[u8], body: &[u8]) {
    let payload =
        [&BASIC.to_be_bytes()[..], &[0, 0], &(body.len() as u64).to_be_bytes(), properties].concat();
    let size = u32::try_from(payload.len()).expect("it has some 64 KiB at most");
    let frame = [&[HEADER_FRAME, 0, 1], &size.to_be_bytes()[..], &payload, &[FRAME_END]].concat();
    let mut passed = Vec::new();
    FrameFilter::new(u64::MAX, FRAME).push(&frame, &mut passed);
    if properties.len() < 2 {
        return;
    }
    let properties = parsed(&passed);
    let mut delivery = lapin::message::Delivery::mock(1, "".into(), "".into(), false, body.to_vec());
    delivery.properties = properties;
    let delivery = Delivery(delivery);
    if delivery.unreadable().is_none() {
        assert_eq!(passed, frame, "a good header passes as it is");
    }
    let _ = (delivery.watermark(), delivery.read());
    let dead = Message::dead_letter(&delivery, "because").properties;
    survives(&dead);
    let replayed = original(&dead, Some("id"));
    survives(&replayed);
    assert_eq!(replayed.message_id().as_ref().map(ShortString::as_str), Some("id"));
    for name in replayed.headers().iter().flat_map(FieldTable::inner).map(|(name, _)| name.as_str()) {
        assert!(!name.starts_with(OURS) && !TRACES.iter().any(|trace| name.starts_with(trace)), "{name}");
    }
}

/// What is written is read again as the same. (As bytes: a header may be a number that is not equal to itself.)
fn survives(properties: &BasicProperties) {
    let written_once = written(properties);
    assert_eq!(written(&parsed(&written_once)), written_once);
}

/// The properties of a content header.
fn parsed(frame: &[u8]) -> BasicProperties {
    match parse_frame(frame) {
        Ok(([], AMQPFrame::Header(_, header))) => header.properties,
        other => panic!("{other:?}"),
    }
}

/// A content header with these properties.
fn written(properties: &BasicProperties) -> Vec<u8> {
    let header = AMQPContentHeader { class_id: BASIC, body_size: 0, properties: properties.clone() };
    let frame = gen_frame(&AMQPFrame::Header(1, header))(Vec::new().into());
    frame.expect("writing to memory cannot fail").into_inner().0
}

/// What is written of a batch is read again as the same, and no error is long.
fn read_body(body: &[u8]) {
    let batch = match Batch::from_json(body) {
        Ok(batch) => batch,
        Err(error) => return assert!(error.to_string().len() < MAX_EXCERPT + WORDS, "{error}"),
    };
    let mut again = Batch::default();
    for body in batch.to_json() {
        again.merge(Batch::from_json(&body).expect("it was written here"));
    }
    assert_eq!(again, batch);
}
