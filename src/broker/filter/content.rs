//! The content header of a message, rewritten so that the client library can read it.

use std::fmt::Display;

use super::super::message::{BODY_SIZE_HEADER, UNREADABLE_HEADER};
use crate::excerpt::excerpt;

/// Deepest nesting of tables and arrays in headers. The client library reads them by recursion on a stack of
/// 2 MiB; the broker's own headers are four levels deep.
const MAX_DEPTH: usize = 32;

/// Bytes of a frame that are kept free of headers. All other properties together take up to 3.3 kB, and with
/// the headers that a dead letter gains they must fit into a frame again.
const ROOM: usize = 8 << 10;

/// Most defects that are named. A message may have thousands.
const NAMED_DEFECTS: usize = 3;

/// AMQP's class of methods and headers that carry a message.
const BASIC: u16 = 60;

/// AMQP's properties in order; each has one bit of the flags, from the highest down.
const PROPERTIES: [(&str, Kind); 14] = [
    ("content_type", Kind::Short),
    ("content_encoding", Kind::Short),
    ("headers", Kind::Table),
    ("delivery_mode", Kind::Octet),
    ("priority", Kind::Octet),
    ("correlation_id", Kind::Short),
    ("reply_to", Kind::Short),
    ("expiration", Kind::Short),
    ("message_id", Kind::Short),
    ("timestamp", Kind::Time),
    ("type", Kind::Short),
    ("user_id", Kind::Short),
    ("app_id", Kind::Short),
    ("cluster_id", Kind::Short),
];

/// The flag bit of the headers property.
const HEADERS: u16 = 1 << 13;

#[derive(Clone, Copy)]
enum Kind {
    Short,
    Octet,
    Time,
    Table,
}

/// The defects of a message, of which the first [`NAMED_DEFECTS`] are kept.
#[derive(Debug, Default)]
pub(super) struct Defects(Vec<String>);

impl Defects {
    pub(super) fn add(&mut self, defect: impl Display) {
        if self.0.len() < NAMED_DEFECTS {
            self.0.push(excerpt(defect));
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn sentence(&self) -> String {
        excerpt(self.0.join(", "))
    }
}

/// The size limits of a message.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Most bytes of a body.
    pub(super) body: u64,
    /// Most bytes of a frame.
    pub(super) frame: usize,
}

impl Limits {
    fn headers(self) -> usize {
        self.frame.saturating_sub(ROOM).max(self.frame / 2)
    }
}

/// A readable content header that replaces an unreadable one.
#[derive(Debug)]
pub(super) struct Readable {
    pub(super) payload: Vec<u8>,
    /// Bytes of the body that must not be handed on.
    pub(super) unread: u64,
}

/// Makes the payload of a content header readable; `None` if it already is. `defects` are the known ones of
/// the message. Readable parts stay, and text that is not UTF-8 is escaped.
pub(super) fn readable(payload: &[u8], mut defects: Defects, limits: Limits) -> Option<Readable> {
    let mut reader = ByteReader(payload);
    let (class, weight) = (reader.array::<2>()?, reader.array::<2>()?);
    let size = u64::from_be_bytes(reader.array()?);
    let flags = u16::from_be_bytes(reader.array()?);
    if u16::from_be_bytes(class) != BASIC {
        return None;
    }
    let unread = if size > limits.body { size } else { 0 };
    if unread > 0 {
        defects.add(format_args!("its body of {size} bytes is larger than {} and was not read", limits.body));
    }
    let (mut before, mut headers, mut after) = (Vec::new(), Vec::new(), Vec::new());
    let mut kept = 0;
    for (place, (name, kind)) in PROPERTIES.iter().enumerate() {
        let flag = 1_u16 << (15 - place);
        if flags & flag == 0 {
            continue;
        }
        let properties = if flag > HEADERS { &mut before } else { &mut after };
        let read = match kind {
            Kind::Short => reader.short().map(|text| push_text(properties, name, text, &mut defects)),
            Kind::Octet => reader.take(1).map(|octet| properties.extend(octet)),
            Kind::Time => reader.take(8).map(|time| properties.extend(time)),
            Kind::Table => {
                let whole = reader.long();
                // If the table is cut off, read its beginning.
                let entries = whole.unwrap_or_else(|| reader.0.get(4..).unwrap_or_default());
                headers = readable_entries(entries, limits.headers(), &mut defects);
                whole.map(drop)
            }
        };
        if read.is_none() {
            defects.add("its properties end too early");
            // Do not read the rest from a wrong offset.
            reader = ByteReader(&[]);
            break;
        }
        kept |= flag;
    }
    if !reader.0.is_empty() {
        defects.add("it has more properties than AMQP knows");
    }
    if defects.is_empty() {
        return None;
    }
    push_header(&mut headers, UNREADABLE_HEADER, b'S', |value| {
        push_long(value, defects.sentence().as_bytes());
    });
    if unread > 0 {
        let size = i64::try_from(size).unwrap_or(i64::MAX);
        push_header(&mut headers, BODY_SIZE_HEADER, b'l', |value| value.extend(size.to_be_bytes()));
    }
    let size = if unread > 0 { 0 } else { size };
    let mut payload =
        [&class[..], &weight, &size.to_be_bytes(), &(kept | HEADERS).to_be_bytes(), &before].concat();
    push_long(&mut payload, &headers);
    payload.extend(after);
    Some(Readable { payload, unread })
}

/// The entries of a table that the client library can read, up to `room` bytes.
fn readable_entries(entries: &[u8], room: usize, defects: &mut Defects) -> Vec<u8> {
    let mut reader = ByteReader(entries);
    let mut kept = Vec::new();
    while !reader.0.is_empty() {
        let rest = reader.0;
        let (Some(name), Some(value)) = (reader.short(), reader.value()) else {
            defects.add("the rest of its headers cannot be parsed");
            break;
        };
        let entry = &rest[..rest.len() - reader.0.len()];
        let defect = if std::str::from_utf8(name).is_err() {
            Some("has a name that is not UTF-8")
        } else if kept.len() + entry.len() > room {
            Some("is too large")
        } else {
            defect_of(value)
        };
        match defect {
            None => kept.extend(entry),
            Some(defect) => defects.add(format_args!("its header {} {defect}", name.escape_ascii())),
        }
    }
    kept
}

/// Why the client library cannot read a header's value. This does not recurse.
fn defect_of(value: &[u8]) -> Option<&'static str> {
    // Start with the value as an array of one element.
    let mut containers = vec![(b'A', ByteReader(value))];
    while let Some((kind, reader)) = containers.last_mut() {
        if reader.0.is_empty() {
            containers.pop();
            continue;
        }
        if *kind == b'F' {
            match reader.short().map(std::str::from_utf8) {
                Some(Ok(_)) => {}
                Some(Err(_)) => return Some("has names that are not UTF-8"),
                None => return Some("is cut off or has an unknown type"),
            }
        }
        let Some(value) = reader.value() else { return Some("is cut off or has an unknown type") };
        if let [inner @ (b'A' | b'F'), _, _, _, _, content @ ..] = value {
            if containers.len() == MAX_DEPTH {
                return Some("is nested too deeply");
            }
            containers.push((*inner, ByteReader(content)));
        }
    }
    None
}

/// Appends a short string. Text that is not UTF-8 is escaped and cut to the longest short string.
pub(super) fn push_text(out: &mut Vec<u8>, name: &str, text: &[u8], defects: &mut Defects) {
    if std::str::from_utf8(text).is_ok() {
        push_short(out, text);
    } else {
        defects.add(format_args!("its {name} is not UTF-8 ({})", text.escape_ascii()));
        let escaped: Vec<u8> = text.escape_ascii().take(u8::MAX.into()).collect();
        push_short(out, &escaped);
    }
}

fn push_header(headers: &mut Vec<u8>, name: &str, kind: u8, value: impl FnOnce(&mut Vec<u8>)) {
    push_short(headers, name.as_bytes());
    headers.push(kind);
    value(headers);
}

fn push_short(out: &mut Vec<u8>, text: &[u8]) {
    out.push(u8::try_from(text.len()).expect("a short string came with a length of one byte"));
    out.extend(text);
}

fn push_long(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend(u32::try_from(bytes.len()).expect("it is part of a frame").to_be_bytes());
    out.extend(bytes);
}

/// The bytes still to be read.
#[derive(Clone, Copy, Debug)]
pub(super) struct ByteReader<'a>(pub(super) &'a [u8]);

impl<'a> ByteReader<'a> {
    pub(super) fn take(&mut self, size: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(size)?;
        self.0 = rest;
        Some(taken)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    pub(super) fn short(&mut self) -> Option<&'a [u8]> {
        let (size, rest) = self.0.split_first()?;
        let (text, rest) = rest.split_at_checked((*size).into())?;
        self.0 = rest;
        Some(text)
    }

    fn long(&mut self) -> Option<&'a [u8]> {
        let (size, rest) = self.0.split_first_chunk()?;
        let (bytes, rest) = rest.split_at_checked(usize::try_from(u32::from_be_bytes(*size)).ok()?)?;
        self.0 = rest;
        Some(bytes)
    }

    /// A value with its type, with unchecked content; `None` if it is cut off or of an unknown type.
    fn value(&mut self) -> Option<&'a [u8]> {
        let all = self.0;
        match self.take(1)?[0] {
            b'V' => {}
            b't' | b'b' | b'B' => _ = self.take(1)?,
            b's' | b'U' | b'u' => _ = self.take(2)?,
            b'I' | b'i' | b'f' => _ = self.take(4)?,
            b'D' => _ = self.take(5)?,
            b'l' | b'L' | b'd' | b'T' => _ = self.take(8)?,
            b'S' | b'x' | b'A' | b'F' => _ = self.long()?,
            _ => return None,
        }
        Some(&all[..all.len() - self.0.len()])
    }
}
