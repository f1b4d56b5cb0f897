//! The frames from the broker, made harmless where the client library cannot read them.
//!
//! The library is strict in reading AMQP 0-9-1: a routing key in Latin-1 ends the connection, headers nested
//! 18,000 deep end the process, and a body is in memory before its size can be checked. Any publisher can
//! send each of these. So the frames pass through here first. A valid frame passes unchanged. Of an invalid
//! message, the readable parts are handed on with a header that names the defects, so only that message is
//! unreadable and nothing else suffers.

use std::collections::HashMap;

use super::content::{ByteReader, Defects, Limits, push_text, readable};

/// Octets before a frame's payload: type, channel and size.
const HEAD: usize = 7;

/// Octets that identify a method.
const METHOD: usize = 4;

/// Most bytes of a frame that are kept for checking; the rest counts as unreadable. The broker's frames have
/// up to 128 KiB, plus what it adds to the headers of a redelivered message.
const MAX_HELD: usize = 1 << 20;

/// Memory that stays allocated for the next frame.
const USUAL_HELD: usize = 4 << 10;

const METHOD_FRAME: u8 = 1;
const HEADER_FRAME: u8 = 2;
const BODY_FRAME: u8 = 3;
const HEARTBEAT_FRAME: u8 = 8;
const FRAME_END: u8 = 0xce;

/// An empty frame that replaces a skipped one, so that a connection does not seem dead while a large body
/// arrives.
const HEARTBEAT: [u8; 8] = [HEARTBEAT_FRAME, 0, 0, 0, 0, 0, 0, FRAME_END];

/// The methods that carry a publisher's texts, and the one that sets the largest frame.
const RETURN: [u8; METHOD] = [0, 60, 0, 50];
const DELIVER: [u8; METHOD] = [0, 60, 0, 60];
const GET_OK: [u8; METHOD] = [0, 60, 0, 71];
const TUNE: [u8; METHOD] = [0, 10, 0, 30];

/// An argument of a method.
enum Field {
    Octets(usize),
    Text(&'static str),
}

const RETURN_FIELDS: &[Field] =
    &[Field::Octets(2), Field::Text("reply"), Field::Text("exchange"), Field::Text("routing key")];
const DELIVER_FIELDS: &[Field] =
    &[Field::Text("consumer"), Field::Octets(9), Field::Text("exchange"), Field::Text("routing key")];
const GET_OK_FIELDS: &[Field] = &[Field::Octets(9), Field::Text("exchange"), Field::Text("routing key")];

/// Checks the incoming frames and rewrites the unreadable ones. Its memory is bounded for any input:
/// [`MAX_HELD`], and a few bytes per channel.
#[derive(Debug)]
pub(in crate::broker) struct FrameFilter {
    limits: Limits,
    state: State,
    /// The arrived part of the frame being checked, from its first octet on.
    held: Vec<u8>,
    /// The channels on which a message arrives that is not handed on unchanged.
    arriving: HashMap<[u8; 2], Arriving>,
}

#[derive(Debug)]
enum State {
    /// A frame begins.
    Head,
    /// This many bytes are handed on.
    Pass(u64),
    /// This many bytes are skipped.
    Skip(u64),
    /// This many bytes must arrive before the frame is checked.
    Hold(u64),
    /// The peer does not speak AMQP. Everything passes, so the library reports it.
    Foreign,
}

#[derive(Debug)]
enum Arriving {
    /// The next content header belongs to a message with these defects.
    Header(Defects),
    /// This many bytes of a body must not be handed on.
    Unread(u64),
}

impl FrameFilter {
    /// A filter for a new connection. `frame` is the largest frame that we allow the peer to send.
    pub(in crate::broker) fn new(largest_body: u64, frame: usize) -> Self {
        Self {
            limits: Limits { body: largest_body, frame },
            state: State::Head,
            held: Vec::new(),
            arriving: HashMap::new(),
        }
    }

    /// Takes the next bytes from the peer, and appends to `out` the bytes to hand on.
    pub(in crate::broker) fn push(&mut self, mut input: &[u8], out: &mut Vec<u8>) {
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

    /// How many octets decide how the frame is treated.
    fn head_size(&self) -> usize {
        match self.held[..] {
            [METHOD_FRAME, _, _, a, b, c, d, ..] if u32::from_be_bytes([a, b, c, d]) as usize >= METHOD => {
                HEAD + METHOD
            }
            _ => HEAD,
        }
    }

    /// Decides how the frame is treated, once enough of its first octets have arrived.
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

    /// Whether a body frame of `size` bytes on this channel must be skipped.
    fn is_unread(&mut self, channel: [u8; 2], size: u32) -> bool {
        let Some(Arriving::Unread(left)) = self.arriving.get_mut(&channel) else { return false };
        *left = left.saturating_sub(size.into());
        if *left == 0 {
            self.arriving.remove(&channel);
        }
        true
    }

    /// Handles a frame that has arrived, whole or cut to [`MAX_HELD`].
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
                // connection.tune: the most channels, then the largest frame; 0 means no limit.
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
        let mut reader = ByteReader(arguments);
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
mod tests;
