//! The body of a large request: it takes only as much memory as has arrived, and only a limited time.

use std::error::Error;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue, header};
use http_body_util::BodyExt;
use hyper::body::{Body as _, Frame, SizeHint};
use tokio::sync::Notify;
use tokio::task::yield_now;
use tokio::time::{Instant, sleep_until, timeout};
use utoipa::IntoParams;
use utoipa::openapi::Required;
use utoipa::openapi::path::{Parameter, ParameterBuilder, ParameterIn};
use utoipa::openapi::schema::{ObjectBuilder, Type};

use super::budget::{Exhausted, Share};
use super::problem::{Problem, ProblemType};
use super::transfer;
use crate::bulk::{self, MediaType};
use crate::excerpt::excerpt;

/// The rules for the bodies of one kind of request.
#[derive(Clone, Copy, Debug)]
pub struct BodyRules {
    /// Largest body in bytes, decompressed.
    pub max: usize,
    /// The problem of a request that finds no memory for its body.
    pub refused: ProblemType,
    /// The end of a sentence that says why a body was not read.
    pub then: &'static str,
}

impl BodyRules {
    /// The problem of a request that found no memory.
    #[must_use]
    pub fn exhausted(self, _: Exhausted) -> Problem {
        self.refuse("too many bodies are being read")
    }

    fn refuse(self, detail: &str) -> Problem {
        Problem::new(self.refused, format!("{detail}{}", self.then))
    }

    fn too_large(self) -> Problem {
        Problem::new(ProblemType::TooLarge, format!("a body has at most {} bytes, decompressed", self.max))
    }
}

/// How long such a body may take to arrive, not counting the time it waits for memory.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a refused body may still arrive, and how long it may pause: longer than a round trip around the
/// world, for which a sending client waits now and then.
const DISCARD_TIMEOUT: Duration = Duration::from_secs(2);
const DISCARD_GAP: Duration = Duration::from_millis(500);

/// Most bytes of a body that may still arrive after its request was refused because of its head: more than
/// the largest request that is accepted.
const MAX_REFUSED: usize = 16 * 1024 * 1024;

/// Memory of the request itself while its body is read: its head, its task and, over HTTP/2, its stream.
pub const REQUEST: usize = 8 * 1024;

/// The least memory that a body takes once any of it has arrived.
const FIRST_STEP: usize = 16 * 1024;

/// Bytes that are decompressed before other tasks of the thread get their turn: some 100 µs.
const BYTES_AT_A_STRETCH: usize = 128 * 1024;

/// How a body is compressed, and the memory that decompression needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Packing {
    None,
    /// Needs a window of 32 KiB, and tables.
    Gzip,
    /// Needs tables, and a window whose size the sender chooses: in the worst case it is as large as the
    /// whole body.
    Zstd,
}

impl Packing {
    fn of(headers: &HeaderMap) -> Self {
        match headers.get(header::CONTENT_ENCODING).map(HeaderValue::as_bytes) {
            Some(b"gzip") => Self::Gzip,
            Some(b"zstd") => Self::Zstd,
            _ => Self::None,
        }
    }

    /// The memory of a request whose body takes `bytes` bytes.
    fn takes(self, bytes: usize) -> usize {
        REQUEST
            + match self {
                Self::None => bytes,
                Self::Gzip => bytes + 64 * 1024,
                Self::Zstd => 2 * bytes + 192 * 1024,
            }
    }
}

/// The header that says how a body is compressed, for the API's document.
#[derive(Debug)]
pub struct BodyEncoding;

impl IntoParams for BodyEncoding {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        let encodings = ObjectBuilder::new().schema_type(Type::String).enum_values(Some(["gzip", "zstd"]));
        let parameter = ParameterBuilder::new()
            .name("Content-Encoding")
            .parameter_in(ParameterIn::Header)
            .required(Required::False)
            .description(Some("How the body is compressed, if it is."))
            .schema(Some(encodings));
        vec![parameter.build()]
    }
}

/// What is known about a body before it is decompressed.
#[derive(Clone, Debug)]
struct Wire {
    packing: Packing,
    /// Bytes of the body that have arrived.
    arrived: Arc<AtomicU64>,
}

/// Must run before the body is decompressed: records how it is compressed, and counts the bytes that arrive.
/// Only those show the client's speed, however well the body is compressed.
pub async fn observe(mut request: Request) -> Request {
    // Names of encodings are case-insensitive (RFC 9110, 8.4.1), but the decompression knows only one
    // spelling.
    let mut encodings = request.headers().get_all(header::CONTENT_ENCODING).iter();
    if let (Some(encoding), None) = (encodings.next(), encodings.next()) {
        let name = encoding.as_bytes().to_ascii_lowercase();
        let headers = request.headers_mut();
        match name.as_slice() {
            b"gzip" | b"x-gzip" => {
                headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            }
            b"zstd" => {
                headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("zstd"));
            }
            b"identity" => {
                headers.remove(header::CONTENT_ENCODING);
            }
            _ => {}
        }
    }
    let wire = Wire { packing: Packing::of(request.headers()), arrived: Arc::default() };
    request.extensions_mut().insert(wire.clone());
    request.map(|body| Body::new(Observed { body, wire }))
}

struct Observed {
    body: Body,
    wire: Wire,
}

impl hyper::body::Body for Observed {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        if let Some(data) = frame.as_ref().and_then(|frame| frame.as_ref().ok()).and_then(Frame::data_ref) {
            self.wire.arrived.fetch_add(data.len() as u64, Ordering::Relaxed);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The media type of a body.
///
/// # Errors
///
/// When it is missing or not supported.
pub fn media_type(headers: &HeaderMap) -> Result<MediaType, Problem> {
    let named = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let named = named.ok_or_else(|| {
        let detail = format!("the header Content-Type is missing: {}", bulk::MEDIA_TYPES);
        Problem::new(ProblemType::UnsupportedMediaType, detail)
    })?;
    named.parse().map_err(|error: bulk::UnknownMediaType| {
        Problem::new(ProblemType::UnsupportedMediaType, error.to_string())
    })
}

/// The body of a request that is not compressed.
pub(super) fn unpacked(request: Request) -> Result<Body, Problem> {
    if !request.headers().contains_key(header::CONTENT_ENCODING) {
        return Ok(request.into_body());
    }
    let detail = "a stream must not be compressed: send it without a content encoding";
    Err(Problem::new(ProblemType::UnsupportedMediaType, detail))
}

/// Reads the body of an [observed](observe) request that has since been decompressed. If the request still
/// names an encoding, it was not decompressed.
///
/// # Errors
///
/// A problem that says why the body was not read.
///
/// # Panics
///
/// When the request was not observed.
pub async fn read(request: Request, rules: BodyRules, share: &mut Share) -> Result<Vec<u8>, Problem> {
    let wire = request.extensions().get::<Wire>().cloned().expect("every request is observed");
    let encoding = request.headers().get(header::CONTENT_ENCODING);
    let encoding = encoding.map(|encoding| excerpt(format_args!("{encoding:?}")));
    let waits_to_send = waits_to_send(request.headers());
    // The rest of the head may be as large as a small body, so it is freed before the body arrives.
    let mut body = request.into_body();
    let read = match encoding {
        None => read_unpacked(&mut body, &wire, rules, share).await,
        Some(encoding) => Err(Problem::new(
            ProblemType::UnsupportedMediaType,
            format!("the content encoding {encoding} is not supported: send gzip, zstd or none"),
        )),
    };
    let is_slow = |problem: &Problem| problem.kind == ProblemType::Timeout;
    if !waits_to_send
        && wire.packing == Packing::None
        && read.as_ref().is_err_and(|problem| !is_slow(problem))
    {
        share.shrink_to(REQUEST);
        discard(body, rules.max).await;
    }
    read
}

/// The body of a request that was refused because of its head, if its client sends it all the same.
pub(super) fn refused<B: hyper::body::Body>(request: Request<B>) -> Option<B> {
    let sends = !request.body().is_end_stream() && !waits_to_send(request.headers());
    sends.then(|| request.into_body())
}

/// Discards such a body, for the same reason as the body of a request that is refused later.
pub(super) async fn discard_refused<B: hyper::body::Body<Data = Bytes> + Unpin>(body: B) {
    discard(body, MAX_REFUSED).await;
}

/// Whether a client sends its body only when it is told to.
fn waits_to_send(headers: &HeaderMap) -> bool {
    headers.contains_key(header::EXPECT)
}

/// Lets a client send the rest of its body, and discards it. Most clients listen only after they have sent
/// everything; a client that is cut off while it sends sees that, and not its response.
async fn discard<B: hyper::body::Body<Data = Bytes> + Unpin>(mut body: B, mut left: usize) {
    let discarding = async {
        while let Ok(Some(Ok(frame))) = timeout(DISCARD_GAP, body.frame()).await {
            let size = frame.data_ref().map_or(0, Bytes::len);
            let Some(less) = left.checked_sub(size) else { return };
            left = less;
        }
    };
    let _ = timeout(DISCARD_TIMEOUT, discarding).await;
}

async fn read_unpacked(
    body: &mut Body,
    wire: &Wire,
    rules: BodyRules,
    share: &mut Share,
) -> Result<Vec<u8>, Problem> {
    share.hold(wire.packing.takes(0)).await.map_err(|error| rules.exhausted(error))?;
    let give_up = Arc::new(Notify::new());
    share.begin_transfer(Arc::clone(&give_up));
    let bytes = tokio::select! {
        bytes = collect(body, wire, rules, share) => bytes,
        () = give_up.notified() => Err(rules.refuse("the body arrives slowly, and other requests need its \
            memory")),
    };
    share.end_transfer();
    let bytes = bytes?;
    share.shrink_to(REQUEST + bytes.capacity());
    Ok(bytes)
}

async fn collect(
    body: &mut Body,
    wire: &Wire,
    rules: BodyRules,
    share: &mut Share,
) -> Result<Vec<u8>, Problem> {
    let mut bytes = Vec::new();
    let expected = body.size_hint().exact().and_then(|exact| usize::try_from(exact).ok());
    if expected.is_some_and(|expected| expected > rules.max) {
        return Err(rules.too_large());
    }
    let mut begun = Instant::now();
    let mut pause = BYTES_AT_A_STRETCH;
    while let Some(data) = next(body, wire, rules, begun).await? {
        if bytes.len() + data.len() > rules.max {
            return Err(rules.too_large());
        }
        share.moved(wire.arrived.load(Ordering::Relaxed));
        let needed = bytes.len() + data.len();
        if needed > bytes.capacity() {
            // Doubles each time, up to what can be needed. A declared length can only lower that.
            let step =
                (2 * bytes.capacity()).clamp(FIRST_STEP, expected.unwrap_or(rules.max).max(FIRST_STEP));
            let capacity = step.max(needed);
            let waits = Instant::now();
            share.hold(wire.packing.takes(capacity)).await.map_err(|error| rules.exhausted(error))?;
            begun += waits.elapsed();
            bytes.reserve_exact(capacity - bytes.len());
        }
        bytes.extend_from_slice(&data);
        if bytes.len() >= pause {
            pause = bytes.len() + BYTES_AT_A_STRETCH;
            yield_now().await;
        }
    }
    Ok(bytes)
}

/// The next bytes of a body, while it arrives fast enough.
async fn next(
    body: &mut Body,
    wire: &Wire,
    rules: BodyRules,
    begun: Instant,
) -> Result<Option<Bytes>, Problem> {
    loop {
        let arrived = wire.arrived.load(Ordering::Relaxed);
        let deadline = transfer::deadline(begun, arrived).min(begun + BODY_TIMEOUT);
        tokio::select! {
            // Bytes that have arrived are never late, however long this side took to read them.
            biased;
            frame = body.frame() => match frame {
                None => return Ok(None),
                // A frame without data is a trailer, which is ignored.
                Some(Ok(frame)) => if let Ok(data) = frame.into_data() {
                    return Ok(Some(data));
                },
                Some(Err(error)) => {
                    let cause = excerpt(root_cause(&error));
                    return Err(Problem::new(
                        ProblemType::InvalidBody,
                        format!("the body cannot be read: {cause}"),
                    ));
                }
            },
            () = sleep_until(deadline) => {
                // More bytes may have arrived that do not make up a whole packet.
                if wire.arrived.load(Ordering::Relaxed) == arrived || deadline >= begun + BODY_TIMEOUT {
                    return Err(Problem::new(
                        ProblemType::Timeout,
                        format!(
                            "the body arrived too slowly, or not within {BODY_TIMEOUT:?}{}", rules.then
                        ),
                    ));
                }
            }
        }
    }
}

/// The innermost error: the outer ones only say that something failed.
pub(super) fn root_cause<'a>(error: &'a (dyn Error + 'static)) -> &'a (dyn Error + 'static) {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause
}
