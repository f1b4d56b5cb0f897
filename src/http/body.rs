//! The body of a large request: it takes only as much memory as has arrived, and only a limited time.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::{HeaderMap, header};
use http_body_util::BodyExt;
use hyper::body::Body as _;
use tokio::sync::Notify;
use tokio::task::yield_now;
use tokio::time::{Instant, sleep_until, timeout};

use super::budget::{Exhausted, Share};
use super::packing::{ArrivingBody, Packing, REQUEST};
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

/// The least memory that a body takes once any of it has arrived.
const FIRST_STEP: usize = 16 * 1024;

/// Bytes that are decompressed before other tasks of the thread get their turn: some 100 µs.
const BYTES_AT_A_STRETCH: usize = 128 * 1024;

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

/// Reads the body of a request that is [observed](super::observe) or [unpacked](super::unpack). An encoding
/// that is still named is not unpacked.
///
/// # Errors
///
/// A problem that says why the body was not read.
///
/// # Panics
///
/// When the request was not observed.
pub async fn read(request: Request, rules: BodyRules, share: &mut Share) -> Result<Vec<u8>, Problem> {
    let wire = request.extensions().get::<ArrivingBody>().cloned().expect("every request is observed");
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
        && wire.packing() == Packing::None
        && read.as_ref().is_err_and(|problem| !is_slow(problem))
    {
        // Nothing of it is kept, and nobody could take the memory back from who sends on.
        share.shrink_to(0);
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
    wire: &ArrivingBody,
    rules: BodyRules,
    share: &mut Share,
) -> Result<Vec<u8>, Problem> {
    let give_up = Arc::new(Notify::new());
    let bytes = tokio::select! {
        bytes = collect(body, wire, rules, share, &give_up) => bytes,
        () = give_up.notified() => Err(rules.refuse("the body arrived slowly while others needed memory")),
    };
    share.end_transfer();
    let bytes = bytes?;
    share.shrink_to(REQUEST + bytes.capacity());
    Ok(bytes)
}

async fn collect(
    body: &mut Body,
    wire: &ArrivingBody,
    rules: BodyRules,
    share: &mut Share,
    give_up: &Arc<Notify>,
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
        if wire.arrived() == 0 {
            // An empty frame is nothing that has arrived.
            continue;
        }
        let is_first = bytes.capacity() == 0;
        if is_first {
            share.begin_transfer(begun, Arc::clone(give_up));
        }
        share.moved(wire.arrived());
        if wire.is_whole() {
            share.arrived();
        }
        let needed = bytes.len() + data.len();
        if needed > bytes.capacity() || is_first {
            // Doubles each time, up to what can be needed. A declared length can only lower that.
            let step =
                (2 * bytes.capacity()).clamp(FIRST_STEP, expected.unwrap_or(rules.max).max(FIRST_STEP));
            let capacity = step.max(needed);
            let waits = Instant::now();
            share.hold(wire.packing().takes(capacity)).await.map_err(|error| rules.exhausted(error))?;
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
    wire: &ArrivingBody,
    rules: BodyRules,
    begun: Instant,
) -> Result<Option<Bytes>, Problem> {
    loop {
        let arrived = wire.arrived();
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
                if wire.arrived() == arrived || deadline >= begun + BODY_TIMEOUT {
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

#[cfg(test)]
mod tests {
    use super::super::budget::Budget;
    use super::super::packing::unpack;
    use super::*;
    use futures::{FutureExt, StreamExt};
    use tokio::sync::mpsc::{self, UnboundedSender};

    const RULES: BodyRules = BodyRules { max: 100, refused: ProblemType::NotCounted, then: "" };

    /// A request whose body comes through the channel.
    async fn request(encoding: Option<&'static str>) -> (UnboundedSender<Bytes>, Request) {
        let (sends, arrives) = mpsc::unbounded_channel::<Bytes>();
        let arrives = futures::stream::unfold(arrives, async |mut arrives| {
            arrives.recv().await.map(|bytes| (Ok::<_, axum::Error>(bytes), arrives))
        });
        let mut request = Request::new(Body::from_stream(arrives.fuse()));
        if let Some(encoding) = encoding {
            request.headers_mut().insert(header::CONTENT_ENCODING, encoding.parse().unwrap());
        }
        (sends, unpack(request).await)
    }

    #[tokio::test(start_paused = true)]
    async fn who_sends_nothing_holds_nothing() {
        for (encoding, body, takes) in [
            (None, b"as it is".to_vec(), Packing::None.takes(FIRST_STEP)),
            (Some("zstd"), zstd::encode_all(&b"as it is"[..], 1).unwrap(), Packing::Zstd.takes(FIRST_STEP)),
        ] {
            let budget = Budget::new(16 * 1024 * 1024);
            let mut share = budget.share();
            let (sends, request) = request(encoding).await;
            let mut reading = Box::pin(read(request, RULES, &mut share));
            assert!(reading.as_mut().now_or_never().is_none());
            assert_eq!(budget.held(), 0);
            sends.send(Bytes::copy_from_slice(&body[..1])).unwrap();
            assert!(reading.as_mut().now_or_never().is_none());
            assert_eq!(budget.held(), takes);
            sends.send(Bytes::copy_from_slice(&body[1..])).unwrap();
            drop(sends);
            assert_eq!(reading.await.unwrap(), b"as it is");
            assert_eq!(budget.held(), REQUEST + FIRST_STEP);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_refused_and_sends_on_holds_nothing() {
        let budget = Budget::new(16 * 1024 * 1024);
        let mut share = budget.share();
        let (sends, request) = request(None).await;
        let mut reading = Box::pin(read(request, RULES, &mut share));
        sends.send(Bytes::from_static(b"short")).unwrap();
        assert!(reading.as_mut().now_or_never().is_none());
        assert!(budget.held() > 0);
        sends.send(Bytes::from(vec![b' '; RULES.max])).unwrap();
        assert!(reading.as_mut().now_or_never().is_none(), "the rest was not waited for");
        assert_eq!(budget.held(), 0);
        drop(sends);
        assert_eq!(reading.await.unwrap_err().kind, ProblemType::TooLarge);
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_may_end_before_it_begins() {
        for encoding in [None, Some("gzip"), Some("zstd")] {
            let (sends, request) = request(encoding).await;
            drop(sends);
            let mut share = Budget::new(16 * 1024 * 1024).share();
            match read(request, RULES, &mut share).await {
                Ok(body) => assert!(body.is_empty(), "{encoding:?}"),
                Err(problem) => assert_eq!(problem.kind, ProblemType::InvalidBody, "{encoding:?}"),
            }
        }
    }
}
