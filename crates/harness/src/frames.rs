//! A publisher that writes AMQP frame by frame, so that it can send what no client library would.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::servers::Servers;

/// The types of frames.
const METHOD: u8 = 1;
const HEADER: u8 = 2;
const BODY: u8 = 3;

/// The byte that ends a frame.
const END: u8 = 0xce;

/// The class and the number of the method `basic.ack`.
const ACK: [u8; 4] = [0, 60, 0, 80];

/// A routing key in Latin-1, which is not UTF-8.
const LATIN_1: &[u8] = b"m\xfcller.de";

/// A connection with one confirming channel.
pub struct FramePublisher {
    stream: TcpStream,
    published: u64,
}

impl FramePublisher {
    /// Connects to the broker and logs in.
    pub async fn connect(servers: &Servers) -> Self {
        let (user, vhost) = servers.amqp_url.trim_start_matches("amqp://").split_once('@').unwrap();
        let ((user, password), (address, vhost)) =
            (user.split_once(':').unwrap(), vhost.split_once('/').unwrap());
        let mut publisher = Self { stream: TcpStream::connect(address).await.unwrap(), published: 0 };
        let response = format!("\0{user}\0{password}");
        let start_ok = [&[0; 4][..], &short(b"PLAIN"), &long(response.as_bytes()), &short(b"en_US")].concat();
        // Frames of 128 KiB, and no heartbeats.
        let tune_ok = [&[7, 255][..], &[0, 2, 0, 0], &[0, 0]].concat();
        for bytes in [
            b"AMQP\0\0\x09\x01".to_vec(),
            frame(METHOD, 0, &[&[0, 10, 0, 11], &start_ok]),
            frame(METHOD, 0, &[&[0, 10, 0, 31], &tune_ok]),
            frame(METHOD, 0, &[&[0, 10, 0, 40], &short(vhost.as_bytes()), &[0, 0]]),
            frame(METHOD, 1, &[&[0, 20, 0, 10, 0]]),
            frame(METHOD, 1, &[&[0, 85, 0, 10, 0]]),
        ] {
            publisher.stream.write_all(&bytes).await.unwrap();
        }
        publisher
    }

    /// Publishes a persistent message under any routing key and waits for the confirm. `headers` is the
    /// encoded table.
    pub async fn publish(&mut self, exchange: &str, routing_key: &[u8], headers: Option<&[u8]>, body: &[u8]) {
        let flags: u16 = 0x1000 | if headers.is_some() { 0x2000 } else { 0 };
        let table = headers.map(long).unwrap_or_default();
        let size = (body.len() as u64).to_be_bytes();
        let header = [&[0, 60, 0, 0][..], &size, &flags.to_be_bytes(), &table, &[2]].concat();
        let publish = [&[0, 60, 0, 40, 0, 0][..], &short(exchange.as_bytes()), &short(routing_key), &[0]];
        let frames =
            [frame(METHOD, 1, &publish), frame(HEADER, 1, &[&header]), frame(BODY, 1, &[body])].concat();
        self.stream.write_all(&frames).await.unwrap();
        self.published += 1;
        loop {
            let said = self.next().await;
            if let Some(tag) = said.strip_prefix(&ACK) {
                assert!(tag[..8] == self.published.to_be_bytes(), "{}", said.escape_ascii());
                return;
            }
            // All other methods belong to the log-in, unless they close the channel or the connection.
            let closes = matches!(&*said, [0, 10, 0, 50, ..] | [0, 20, 0, 40, ..]);
            assert!(!closes, "the broker closes: {}", said.escape_ascii());
        }
    }

    /// The payload of the next frame.
    async fn next(&mut self) -> Vec<u8> {
        let mut head = [0; 7];
        self.stream.read_exact(&mut head).await.expect("the broker goes on");
        let size = u32::from_be_bytes([head[3], head[4], head[5], head[6]]) as usize;
        let mut payload = vec![0; size + 1];
        self.stream.read_exact(&mut payload).await.expect("the broker goes on");
        assert_eq!(payload.pop(), Some(END));
        payload
    }
}

/// Publishes a message under a routing key that is not UTF-8, which AMQP allows and no Rust client sends.
pub async fn publish_in_latin_1(servers: &Servers, exchange: &str, body: &[u8]) {
    FramePublisher::connect(servers).await.publish(exchange, LATIN_1, None, body).await;
}

/// Publishes a message whose headers are nested `depth` levels deep.
pub async fn publish_nested(servers: &Servers, exchange: &str, depth: u32, body: &[u8]) {
    let headers = nested_headers(depth);
    FramePublisher::connect(servers).await.publish(exchange, b"any.key", Some(&headers), body).await;
}

/// A table of two headers: arrays nested `depth` levels deep, and the number 7.
#[must_use]
pub fn nested_headers(depth: u32) -> Vec<u8> {
    let array = |inner: u32| [&[b'A'][..], &inner.to_be_bytes()].concat();
    // The innermost array is empty, and each around it is five bytes larger.
    let arrays = (0..depth).rev().flat_map(|inside| array(5 * inside));
    let number = [&short(b"number")[..], &[b'I', 0, 0, 0, 7]].concat();
    short(b"deep").into_iter().chain(arrays).chain(number).collect()
}

fn short(text: &[u8]) -> Vec<u8> {
    [&[u8::try_from(text.len()).unwrap()], text].concat()
}

fn long(text: &[u8]) -> Vec<u8> {
    [&u32::try_from(text.len()).unwrap().to_be_bytes()[..], text].concat()
}

fn frame(kind: u8, channel: u8, payload: &[&[u8]]) -> Vec<u8> {
    [&[kind, 0, channel][..], &long(&payload.concat()), &[END]].concat()
}
