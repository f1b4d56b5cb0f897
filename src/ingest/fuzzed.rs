//! A target for fuzzing: the body of a bulk request, through the real route.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Body;
use axum::http::{Request, StatusCode};
use http_body_util::BodyExt;
use serde_json::Value;
use tokio::runtime::{Builder, Runtime};
use tokio::time::Instant;
use tower_service::Service;

use super::{IntakeConfig, routes};
use crate::batch::Batch;
use crate::bulk::{self, BodyError, MediaType};
use crate::http::{Budget, EventRates};
use crate::store::{BatchSink, NotAccepted};

/// Takes every batch.
#[derive(Clone, Default)]
struct Everything(Arc<Mutex<Batch>>);

impl BatchSink for Everything {
    async fn accept(&self, batch: Batch, _: Instant) -> Result<(), NotAccepted> {
        self.0.lock().expect("nobody panics with it").merge(batch);
        Ok(())
    }
}

/// The answer to a request, and the events that were accepted.
type Answered = (StatusCode, Value, Batch);

struct Server {
    runtime: Runtime,
    router: Router,
    taken: Everything,
}

impl Server {
    fn start() -> Self {
        let runtime = Builder::new_current_thread().enable_time().build().expect("a clock can be started");
        let taken = Everything::default();
        let config = IntakeConfig {
            publish_deadline_ms: 5_000,
            max_waiting_events: 100_000,
            body_budget_mib: 64,
            rates: EventRates::default(),
        };
        let router = {
            let _event_loop = runtime.enter();
            Router::from(routes(&config, &Budget::new(64 << 20), taken.clone()))
        };
        Self { runtime, router, taken }
    }

    fn post(&self, media_type: &str, encoding: Option<&str>, body: &[u8]) -> Answered {
        let mut request = Request::post("/events").header("content-type", media_type);
        if let Some(encoding) = encoding {
            request = request.header("content-encoding", encoding);
        }
        let request = request.body(Body::from(body.to_vec())).expect("a request");
        let (status, body) = self.runtime.block_on(async {
            let answer = self.router.clone().call(request).await.expect("the router cannot fail");
            (answer.status(), answer.into_body().collect().await.expect("it is in memory").to_bytes())
        });
        let body = serde_json::from_slice(&body).expect("every answer is JSON");
        (status, body, std::mem::take(&mut *self.taken.0.lock().expect("nobody panics with it")))
    }
}

/// The first octet chooses the media type and the compression of the rest. An uncompressed body gets the
/// answer that the parser gives, and the same answer when it is compressed. A body that only claims to be
/// compressed is refused or accepted.
pub(crate) fn bulk(data: &[u8]) {
    thread_local!(static SERVER: Server = Server::start());
    let Some((how, body)) = data.split_first() else { return };
    let (media_type, name) = match how & 1 {
        0 => (MediaType::NdJson, "application/x-ndjson"),
        _ => (MediaType::JsonArray, "application/json"),
    };
    SERVER.with(|server| match (how >> 1) % 3 {
        0 => {
            let answered = server.post(name, None, body);
            assert_eq!(summary(&answered), expected(body, media_type));
            assert_eq!(server.post(name, Some("gzip"), &gzip(body)), answered);
            assert_eq!(server.post(name, Some("zstd"), &zstd(body)), answered);
        }
        packing => {
            let encoding = if packing == 1 { "gzip" } else { "zstd" };
            let (status, answer, _) = server.post(name, Some(encoding), body);
            assert!(matches!(status.as_u16(), 202 | 400 | 413), "{status} {answer}");
        }
    });
}

/// The status, the positions of the rejected events, and the accepted events.
type Summary = (u16, Vec<u64>, Batch);

fn summary((status, answer, taken): &Answered) -> Summary {
    let rejected = answer["rejected"].as_array().into_iter().flatten();
    (status.as_u16(), rejected.filter_map(|event| event["index"].as_u64()).collect(), taken.clone())
}

fn expected(body: &[u8], media_type: MediaType) -> Summary {
    let events = match bulk::events(body, media_type) {
        Ok(events) => events,
        Err(BodyError::TooMany) => return (413, Vec::new(), Batch::default()),
        Err(_) => return (400, Vec::new(), Batch::default()),
    };
    let (mut rejected, mut taken, mut accepted) = (Vec::new(), Batch::default(), 0);
    for (index, event) in (0..).zip(events) {
        match event {
            Ok(event) => {
                taken.record(event);
                accepted += 1;
            }
            Err(_) => rejected.push(index),
        }
    }
    (if accepted == 0 && !rejected.is_empty() { 400 } else { 202 }, rejected, taken)
}

/// A body in gzip's format, stored as it is (RFC 1951, 3.2.4; RFC 1952).
fn gzip(body: &[u8]) -> Vec<u8> {
    let mut packed = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff];
    let mut blocks = body.chunks(0xffff).peekable();
    let mut next = blocks.next().or(Some(&[]));
    while let Some(block) = next {
        next = blocks.next();
        let size = u16::try_from(block.len()).expect("a block has at most 65,535 bytes");
        packed.push(u8::from(next.is_none()));
        packed.extend(size.to_le_bytes());
        packed.extend((!size).to_le_bytes());
        packed.extend(block);
    }
    let crc = !body.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| crc >> 1 ^ if crc & 1 == 1 { 0xedb8_8320 } else { 0 })
    });
    packed.extend(crc.to_le_bytes());
    packed.extend(u32::try_from(body.len()).expect("a body is small").to_le_bytes());
    packed
}

/// A body in zstd's format, stored as it is (RFC 8878, 3.1.1).
fn zstd(body: &[u8]) -> Vec<u8> {
    /// Most bytes of a block.
    const BLOCK: usize = 128 << 10;
    let mut packed = vec![0x28, 0xb5, 0x2f, 0xfd];
    // A window of 1 MiB, and no size of the content.
    packed.extend([0, 10 << 3]);
    let blocks = body.chunks(BLOCK).count().max(1);
    for (number, block) in body.chunks(BLOCK).chain(body.is_empty().then_some(&[][..])).enumerate() {
        let last = u32::from(number + 1 == blocks);
        let head = u32::try_from(block.len()).expect("a block is small") << 3 | last;
        packed.extend(&head.to_le_bytes()[..3]);
        packed.extend(block);
    }
    packed
}
