//! The frames that come from the broker, with what the client library cannot take made harmless.
//!
//! The library reads AMQP 0-9-1 without mercy: a routing key in Latin-1 ends the connection, headers that lie in each
//! other 18,000 deep end the process, and a body is in memory before anybody can look at its size. Any publisher can
//! send each of these. So the frames pass through here first. What is well passes as it is; of the rest as much as can
//! be read is handed on under a header that says what is wrong, which makes the message one that cannot be read, and
//! nothing else.

use std::collections::HashMap;

use super::content::{Defects, Limits, Reader, push_text, readable};

/// Octets before a frame's payload: its type, its channel, its size.
const HEAD: usize = 7;

/// Octets by which a method is known.
const METHOD: usize = 4;

/// Most bytes of a frame that are kept to be looked at; the rest of it is taken for unreadable. The broker's own frames
/// have up to 128 KiB, and what it writes into the headers of a message that was handed out before comes on top.
const MAX_HELD: usize = 1 << 20;

/// Memory that is kept for the next frame.
const USUAL_HELD: usize = 4 << 10;

const METHOD_FRAME: u8 = 1;
const HEADER_FRAME: u8 = 2;
const BODY_FRAME: u8 = 3;
const HEARTBEAT_FRAME: u8 = 8;
const FRAME_END: u8 = 0xce;

/// A frame that says nothing: it takes the place of one that is not handed on, so that a connection over which a large
/// body comes does not seem to be dead.
const HEARTBEAT: [u8; 8] = [HEARTBEAT_FRAME, 0, 0, 0, 0, 0, 0, FRAME_END];

/// The methods with texts of whoever has published, and the one that says how large a frame may be.
const RETURN: [u8; METHOD] = [0, 60, 0, 50];
const DELIVER: [u8; METHOD] = [0, 60, 0, 60];
const GET_OK: [u8; METHOD] = [0, 60, 0, 71];
const TUNE: [u8; METHOD] = [0, 10, 0, 30];

/// What follows a method's number.
enum Field {
    Octets(usize),
    Text(&'static str),
}

const RETURN_FIELDS: &[Field] =
    &[Field::Octets(2), Field::Text("reply"), Field::Text("exchange"), Field::Text("routing key")];
const DELIVER_FIELDS: &[Field] =
    &[Field::Text("consumer"), Field::Octets(9), Field::Text("exchange"), Field::Text("routing key")];
const GET_OK_FIELDS: &[Field] = &[Field::Octets(9), Field::Text("exchange"), Field::Text("routing key")];

/// Reads along and rewrites. Its memory is bounded whatever comes: by [`MAX_HELD`], and a few bytes for each channel.
#[derive(Debug)]
pub(super) struct FrameFilter {
    limits: Limits,
    state: State,
    /// The frame that is being looked at, from its first octet on, as far as it has come.
    held: Vec<u8>,
    /// Of channels on which a message is arriving that is not handed on as it is.
    arriving: HashMap<[u8; 2], Arriving>,
}

#[derive(Debug)]
enum State {
    /// A frame begins.
    Head,
    /// So many bytes are handed on.
    Pass(u64),
    /// So many bytes are not.
    Skip(u64),
    /// So many bytes are to come before the frame is looked at.
    Hold(u64),
    /// Whoever is there does not speak AMQP, which the library will say.
    Foreign,
}

#[derive(Debug)]
enum Arriving {
    /// The next header is of a message with these defects.
    Header(Defects),
    /// So many bytes of a body are not to be handed on.
    Unread(u64),
}

impl FrameFilter {
    /// Of a connection whose peer has not spoken yet. `frame` is the largest frame that we let it send.
    pub(super) fn new(largest_body: u64, frame: usize) -> Self {
        Self {
            limits: Limits { body: largest_body, frame },
            state: State::Head,
            held: Vec::new(),
            arriving: HashMap::new(),
        }
    }

    /// Takes the next bytes that came, and appends to `out` those that are handed on.
    pub(super) fn push(&mut self, mut input: &[u8], out: &mut Vec<u8>) {
        while !input.is_empty() {
            let (now, later) = match self.state {
                State::Head => input.split_at(input.len().min(self.head_size() - self.held.len())),
                State::Pass(left) | State::Skip(left) | State::Hold(left) => {
                    input.split_at(usize::try_from(left).unwrap_or(usize::MAX).min(input.len()))
                }
                State::Foreign => (input, &[][..]),
            };
            input = later;
            match &mut self.state {
                State::Head => {
                    self.held.extend(now);
                    self.head(out);
                }
                State::Pass(left) => {
                    out.extend(now);
                    *left -= now.len() as u64;
                }
                State::Skip(left) => *left -= now.len() as u64,
                State::Hold(left) => {
                    *left -= now.len() as u64;
                    let room = MAX_HELD.saturating_sub(self.held.len());
                    self.held.extend(&now[..now.len().min(room)]);
                    if *left == 0 {
                        let end = now.last().copied();
                        self.whole(end, out);
                    }
                }
                State::Foreign => out.extend(now),
            }
            if matches!(self.state, State::Pass(0) | State::Skip(0)) {
                self.state = State::Head;
            }
        }
    }

    /// How many octets tell what is to become of the frame.
    fn head_size(&self) -> usize {
        match self.held[..] {
            [METHOD_FRAME, _, _, a, b, c, d, ..] if u32::from_be_bytes([a, b, c, d]) as usize >= METHOD => {
                HEAD + METHOD
            }
            _ => HEAD,
        }
    }

    /// More of a frame's first octets is there.
    fn head(&mut self, out: &mut Vec<u8>) {
        let kind = self.held[0];
        if !matches!(kind, METHOD_FRAME | HEADER_FRAME | BODY_FRAME | HEARTBEAT_FRAME) {
            self.state = State::Foreign;
            out.append(&mut self.held);
            return;
        }
        if self.held.len() < self.head_size() {
            return;
        }
        let channel = [self.held[1], self.held[2]];
        let size = u32::from_be_bytes([self.held[3], self.held[4], self.held[5], self.held[6]]);
        let left = u64::from(size) + 1 - (self.held.len() - HEAD) as u64;
        let looked_at = match kind {
            METHOD_FRAME => self
                .held
                .get(HEAD..)
                .is_some_and(|method| [RETURN, DELIVER, GET_OK, TUNE].iter().any(|of| of == method)),
            kind => kind == HEADER_FRAME,
        };
        if looked_at {
            self.state = State::Hold(left);
            return;
        }
        if kind == BODY_FRAME && self.is_unread(channel, size) {
            self.held.clear();
            self.state = State::Skip(left);
            out.extend(HEARTBEAT);
            return;
        }
        out.append(&mut self.held);
        self.state = State::Pass(left);
    }

    /// Whether so many bytes of a body on this channel are not to be handed on.
    fn is_unread(&mut self, channel: [u8; 2], size: u32) -> bool {
        let Some(Arriving::Unread(left)) = self.arriving.get_mut(&channel) else { return false };
        *left = left.saturating_sub(size.into());
        if *left == 0 {
            self.arriving.remove(&channel);
        }
        true
    }

    /// The frame is there, all of it or as much as is kept.
    fn whole(&mut self, end: Option<u8>, out: &mut Vec<u8>) {
        self.state = State::Head;
        let frame = std::mem::take(&mut self.held);
        let (head, payload) = frame.split_at(HEAD);
        let channel = [head[1], head[2]];
        let size = u32::from_be_bytes([head[3], head[4], head[5], head[6]]) as usize;
        let cut = payload.len() <= size;
        if end != Some(FRAME_END) || cut && head[0] != HEADER_FRAME {
            self.state = State::Foreign;
            out.extend(frame);
            return;
        }
        let payload = &payload[..payload.len().min(size)];
        let rewritten = match head[0] {
            HEADER_FRAME => self.header(channel, payload, cut),
            _ => self.method(channel, payload),
        };
        match rewritten {
            Some(payload) => {
                out.extend(&head[..3]);
                out.extend(u32::try_from(payload.len()).expect("it is no larger than a frame").to_be_bytes());
                out.extend(payload);
                out.push(FRAME_END);
            }
            None => out.extend(&frame),
        }
        self.held = frame;
        self.held.clear();
        self.held.shrink_to(USUAL_HELD);
    }

    fn header(&mut self, channel: [u8; 2], payload: &[u8], cut: bool) -> Option<Vec<u8>> {
        let mut defects = match self.arriving.remove(&channel) {
            Some(Arriving::Header(defects)) => defects,
            _ => Defects::default(),
        };
        if cut {
            defects.add(format_args!("its properties are larger than {MAX_HELD} bytes"));
        }
        let header = readable(payload, defects, self.limits)?;
        if header.unread > 0 {
            self.arriving.insert(channel, Arriving::Unread(header.unread));
        }
        Some(header.payload)
    }

    fn method(&mut self, channel: [u8; 2], payload: &[u8]) -> Option<Vec<u8>> {
        let (method, arguments) = payload.split_first_chunk::<METHOD>()?;
        let fields = match *method {
            RETURN => RETURN_FIELDS,
            DELIVER => DELIVER_FIELDS,
            GET_OK => GET_OK_FIELDS,
            _ => {
                // connection.tune: the most channels, then the largest frame, where none means any.
                let largest =
                    arguments.get(2..6).and_then(|size| size.try_into().ok()).map_or(0, u32::from_be_bytes);
                if largest > 0 {
                    self.limits.frame = self.limits.frame.min(largest as usize);
                }
                return None;
            }
        };
        self.arriving.remove(&channel);
        let mut defects = Defects::default();
        let mut reader = Reader(arguments);
        let mut rewritten = method.to_vec();
        for field in fields {
            match field {
                Field::Octets(size) => rewritten.extend(reader.take(*size)?),
                Field::Text(name) => push_text(&mut rewritten, name, reader.short()?, &mut defects),
            }
        }
        if defects.is_empty() {
            return None;
        }
        rewritten.extend(reader.0);
        self.arriving.insert(channel, Arriving::Header(defects));
        Some(rewritten)
    }
}

#[cfg(test)]
mod tests {
    use super::super::content::{BODY_SIZE_HEADER, UNREADABLE_HEADER};
    use super::*;
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

    /// What comes out when all of it arrives at once.
    fn filtered(stream: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        filter().push(stream, &mut out);
        out
    }

    /// What the client library makes of it.
    fn parsed(mut stream: &[u8]) -> Vec<AMQPFrame> {
        let mut frames = Vec::new();
        while !stream.is_empty() {
            let (rest, frame) =
                parse_frame(stream).unwrap_or_else(|error| panic!("{frames:?}, then {error:?}"));
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
        let arguments =
            [&short(b"c")[..], &1_u64.to_be_bytes(), &[0], &short(b"catchall.events"), &short(key)];
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
        // Two channels, whose frames mix, and a message on the same channel behind it.
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
            header(
                b"x-death",
                b'A',
                &long(&[&b"F"[..], &long(&header(b"queue", b'S', &long(b"q")))].concat()),
            ),
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
        for defect in
            ["header deep lies too deep", "n\\xe4me has a name that is not", "torn does not end where"]
        {
            assert!(told.contains(defect), "{told}");
        }
        assert_eq!(
            (&*key, properties.timestamp(), properties.delivery_mode()),
            ("a.com", &Some(7), &Some(2))
        );
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
            [large(1, 1200), delivery(1, b"b.com"), content(1, 1000, 0, &[]), body(1, &[b'y'; 1000])]
                .concat();
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
        // The broker adds to what it has taken, and then its frames are larger than it takes any.
        for size in [121 << 10, 128 << 10, MAX_HELD, 2 * MAX_HELD] {
            let out = filtered(&large(size));
            assert!(out.len() < 2000, "{size}: {} bytes", out.len());
            let (_, properties, _) = message(&out);
            let headers = properties.headers().as_ref().unwrap().inner();
            assert!(defects(&properties).unwrap().contains("large"), "{size}");
            assert!(!headers.contains_key("a"));
            // Behind what is not kept of a frame nothing can be read.
            assert_eq!(headers.contains_key("b"), size < MAX_HELD, "{size}");
        }
        // The smallest that a broker may ask for.
        let tune = frame(METHOD_FRAME, 0, &[&TUNE[..], &[7, 255, 0, 0, 16, 0, 0, 60]].concat());
        let texts = [&long(&[])[..], &short(&[b'x'; 255]).repeat(8)].concat();
        let flags = 1 << 13 | 0b0000_0111_1011_1100;
        let stream = [tune, delivery(1, b"\xff"), content(1, 0, flags, &texts)].concat();
        let out = filtered(&stream);
        parsed(&out);
        assert!(out.len() < 4096 + 100, "{}", out.len());
    }

    #[test]
    fn whoever_does_not_speak_amqp_is_heard() {
        for stream in [&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], b"AMQP\0\0\x09\x01", b"A", b"\x05\0\0", b""]
        {
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
                let header =
                    amq_protocol::frame::AMQPContentHeader { class_id: 60, body_size: size, properties };
                let header = gen_frame(&AMQPFrame::Header(channel, header))(vec![].into()).unwrap();
                stream.extend(delivery(channel, key.as_bytes()));
                stream.extend(header.into_inner().0);
                stream.extend(body(channel, &vec![b'x'; usize::try_from(size).unwrap()]));
                stream.extend(HEARTBEAT);
            }
            stream
        })
    }

    /// Table entries with all that can be wrong with them.
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

    /// Messages as no client sends them.
    fn hostile_stream() -> impl Strategy<Value = Vec<u8>> {
        let properties = (any::<u16>(), vec(any::<u8>(), 0..6), hostile_table(), vec(any::<u8>(), 0..60));
        let message = (1..3_u16, vec(any::<u8>(), 0..20), properties, 0..3000_u64);
        vec(message, 1..5).prop_map(|messages| {
            let mut stream = Vec::new();
            for (channel, key, (flags, before, table, after), size) in messages {
                // Half of them with something that is a table.
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
            // Frame by frame: a header is rewritten if and only if the library would not take it, or there is another
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
            // A frame without an end, of any kind.
            filter.push(&[kind, 0, 1, 0xff, 0xff, 0xff, 0xff], &mut out);
            filter.push(&stream, &mut out);
            for _ in 0..40 {
                filter.push(&chunk, &mut out);
            }
            prop_assert!(filter.held.len() <= MAX_HELD);
            prop_assert!(filter.held.capacity() <= 2 * MAX_HELD);
        }
    }
}
