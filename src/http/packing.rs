//! How a body is packed, what memory unpacking takes, and the unpacking itself, which begins with the first
//! byte.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::mem::take;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{self, Context, Poll};

use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue, Response, header};
use futures::{FutureExt, StreamExt, stream};
use hyper::body::{Frame, SizeHint};
use tower_http::decompression::{DecompressionBody, RequestDecompression};
use tower_service::Service;
use utoipa::IntoParams;
use utoipa::openapi::Required;
use utoipa::openapi::path::{Parameter, ParameterBuilder, ParameterIn};
use utoipa::openapi::schema::{ObjectBuilder, Type};

/// Memory of the request itself while its body is read: its head, its task and, over HTTP/2, its stream.
pub const REQUEST: usize = 8 * 1024;

const GZIP: HeaderValue = HeaderValue::from_static("gzip");
const ZSTD: HeaderValue = HeaderValue::from_static("zstd");

/// How a body is packed, and the memory that unpacking needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Packing {
    None,
    /// Needs 32 KiB for the last unpacked bytes, and tables.
    Gzip,
    /// Needs tables, and a window for the last unpacked bytes. The sender chooses its size: in the worst case
    /// it is as large as the whole body.
    Zstd,
}

impl Packing {
    fn of(headers: &HeaderMap) -> Self {
        let mut encodings = headers.get_all(header::CONTENT_ENCODING).iter();
        match (encodings.next().map(HeaderValue::as_bytes), encodings.next()) {
            (Some(b"gzip"), None) => Self::Gzip,
            (Some(b"zstd"), None) => Self::Zstd,
            _ => Self::None,
        }
    }

    /// The memory of a request whose body takes `bytes` bytes.
    pub(super) fn takes(self, bytes: usize) -> usize {
        REQUEST
            + match self {
                Self::None => bytes,
                Self::Gzip => bytes + 64 * 1024,
                Self::Zstd => 2 * bytes + 192 * 1024,
            }
    }
}

/// The header that says how a body is packed, for the API's document.
#[derive(Debug)]
pub struct BodyEncoding;

impl IntoParams for BodyEncoding {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        let encodings = ObjectBuilder::new().schema_type(Type::String).enum_values(Some(["gzip", "zstd"]));
        let parameter = ParameterBuilder::new()
            .name("Content-Encoding")
            .parameter_in(ParameterIn::Header)
            .required(Required::False)
            .description(Some("How the body is packed, if it is."))
            .schema(Some(encodings));
        vec![parameter.build()]
    }
}

/// What is known about a body before it is unpacked.
#[derive(Clone, Debug)]
pub(super) struct ArrivingBody {
    packing: Packing,
    progress: Arc<Progress>,
}

#[derive(Debug, Default)]
struct Progress {
    /// Bytes of the body that have arrived.
    arrived: AtomicU64,
    /// Whether the whole body has arrived.
    is_whole: AtomicBool,
}

impl ArrivingBody {
    pub(super) fn packing(&self) -> Packing {
        self.packing
    }

    /// Bytes that have arrived. Only those show the client's speed, however well it packs.
    pub(super) fn arrived(&self) -> u64 {
        self.progress.arrived.load(Ordering::Relaxed)
    }

    /// Whether the whole body has arrived.
    pub(super) fn is_whole(&self) -> bool {
        self.progress.is_whole.load(Ordering::Relaxed)
    }
}

/// Records how a body is packed, and how much of it has arrived. The body stays packed.
pub async fn observe(mut request: Request) -> Request {
    // Names of encodings are case-insensitive (RFC 9110, 8.4.1), but the decoder knows only one spelling.
    let mut encodings = request.headers().get_all(header::CONTENT_ENCODING).iter();
    if let (Some(encoding), None) = (encodings.next(), encodings.next()) {
        let name = encoding.as_bytes().to_ascii_lowercase();
        let headers = request.headers_mut();
        match name.as_slice() {
            b"gzip" | b"x-gzip" => {
                headers.insert(header::CONTENT_ENCODING, GZIP);
            }
            b"zstd" => {
                headers.insert(header::CONTENT_ENCODING, ZSTD);
            }
            b"identity" => {
                headers.remove(header::CONTENT_ENCODING);
            }
            _ => {}
        }
    }
    let wire = ArrivingBody { packing: Packing::of(request.headers()), progress: Arc::default() };
    request.extensions_mut().insert(wire.clone());
    request.map(|body| Body::new(Observed { body, progress: wire.progress }))
}

/// Observes a body, and unpacks it while it is read. The decoder is created with the first byte, once memory
/// has been taken for it: the first frame is empty and only says that bytes have arrived.
pub async fn unpack(request: Request) -> Request {
    let mut request = observe(request).await;
    let packing = Packing::of(request.headers());
    if packing == Packing::None {
        return request;
    }
    request.headers_mut().remove(header::CONTENT_ENCODING);
    request.headers_mut().remove(header::CONTENT_LENGTH);
    request.map(|body| Body::new(Unpacked { packing, stage: Unpacking::Silent(body) }))
}

struct Observed {
    body: Body,
    progress: Arc<Progress>,
}

impl hyper::body::Body for Observed {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = task::ready!(Pin::new(&mut self.body).poll_frame(context));
        if let Some(data) = frame.as_ref().and_then(|frame| frame.as_ref().ok()).and_then(Frame::data_ref) {
            self.progress.arrived.fetch_add(data.len() as u64, Ordering::Relaxed);
        }
        if frame.is_none() || self.body.is_end_stream() || self.body.size_hint().exact() == Some(0) {
            self.progress.is_whole.store(true, Ordering::Relaxed);
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

/// A packed body that is unpacked while it is read. Its first frame is empty and says that bytes have
/// arrived. The reader takes the memory for unpacking them before it asks for the next frame.
struct Unpacked {
    packing: Packing,
    stage: Unpacking,
}

enum Unpacking {
    /// Nothing has arrived.
    Silent(Body),
    /// The first bytes have arrived.
    Begun(Bytes, Body),
    /// It is being unpacked.
    Open(Body),
}

impl hyper::body::Body for Unpacked {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = &mut *self;
        loop {
            match &mut this.stage {
                Unpacking::Silent(body) => {
                    let first = match task::ready!(Pin::new(&mut *body).poll_frame(context)) {
                        Some(Ok(frame)) => match frame.into_data() {
                            Ok(data) if !data.is_empty() => data,
                            // This frame says nothing yet.
                            _ => continue,
                        },
                        Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                        None => {
                            *body = Body::empty();
                            Bytes::new()
                        }
                    };
                    this.stage = Unpacking::Begun(first, take(body));
                    return Poll::Ready(Some(Ok(Frame::data(Bytes::new()))));
                }
                Unpacking::Begun(first, rest) => {
                    this.stage = Unpacking::Open(opened(this.packing, take(first), take(rest)));
                }
                Unpacking::Open(body) => return Pin::new(body).poll_frame(context),
            }
        }
    }
}

/// The body that begins with these bytes, unpacked.
fn opened(packing: Packing, first: Bytes, rest: Body) -> Body {
    let packed = Body::from_stream(stream::iter([Ok(first)]).chain(rest.into_data_stream()));
    let encoding = if packing == Packing::Gzip { GZIP } else { ZSTD };
    let mut request = Request::new(packed);
    request.headers_mut().insert(header::CONTENT_ENCODING, encoding);
    let opened = RequestDecompression::new(Echo).call(request).now_or_never();
    let Ok(response) = opened.expect("nothing in it waits");
    Body::new(response.into_body())
}

/// Answers with the body of the request, as it is unpacked.
struct Echo;

impl Service<Request<DecompressionBody<Body>>> for Echo {
    type Response = Response<DecompressionBody<Body>>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<DecompressionBody<Body>>) -> Self::Future {
        ready(Ok(Response::new(request.into_body())))
    }
}
