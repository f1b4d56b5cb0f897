//! A connection of HTTP/2, shared by many requests at a time.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use h2::client::{Builder, ResponseFuture, SendRequest};
use h2::{Reason, RecvStream};
use http::uri::PathAndQuery;
use http::{Request, Uri, uri};
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::exchange::{Client, Failure, HttpRequest, HttpResponse, RequestTimeout, insert_headers};
use crate::target::Target;

/// How many bytes of responses the server may send ahead: far more than all of them have.
const WINDOW: u32 = 4 * 1024 * 1024;

/// How long a failed attempt to connect is reported to the other users of the connection, without a new
/// attempt.
const FAILURE_HOLDS: Duration = Duration::from_millis(50);

/// A connection that is reopened when it is lost.
///
/// It uses the `h2` crate directly: hyper's client spawns a task for every request, which doubles its cost.
pub(crate) struct Http2 {
    target: Target,
    streams: usize,
    current: RefCell<Current>,
    opening: Mutex<()>,
    generation: Cell<u64>,
}

enum Current {
    Open { generation: u64, requests: SendRequest<Bytes> },
    Failed { since: Instant, reason: String },
    Lost,
}

impl Http2 {
    /// Opens a connection to `target` for up to `streams` requests at a time.
    ///
    /// # Errors
    ///
    /// When the server cannot be reached or does not speak HTTP/2.
    pub(crate) async fn connect(target: Target, streams: usize) -> Result<Rc<Self>, Failure> {
        let connection = Rc::new(Self {
            target,
            streams,
            current: RefCell::new(Current::Lost),
            opening: Mutex::new(()),
            generation: Cell::new(0),
        });
        connection.requests().await?;
        Ok(connection)
    }

    /// A slot for one request at a time. A response may take as long as `timeout`.
    #[must_use]
    pub(crate) fn stream(self: &Rc<Self>, timeout: Duration) -> Http2Stream {
        let slot = Slot { connection: Rc::clone(self), requests: None };
        Http2Stream { timeout: RequestTimeout::new(timeout), slot }
    }

    /// The open connection, or a new one. Only one task reconnects; the others wait for it.
    async fn requests(&self) -> Result<(u64, SendRequest<Bytes>), Failure> {
        let _turn = self.opening.lock().await;
        match &*self.current.borrow() {
            Current::Open { generation, requests } => return Ok((*generation, requests.clone())),
            Current::Failed { since, reason } if since.elapsed() < FAILURE_HOLDS => {
                return Err(Failure::Unsent(reason.clone()));
            }
            Current::Failed { .. } | Current::Lost => {}
        }
        match self.open().await {
            Ok(requests) => {
                let generation = self.generation.get() + 1;
                self.generation.set(generation);
                self.current.replace(Current::Open { generation, requests: requests.clone() });
                Ok((generation, requests))
            }
            Err(reason) => {
                let since = Instant::now();
                self.current.replace(Current::Failed { since, reason: reason.clone() });
                Err(Failure::Unsent(reason))
            }
        }
    }

    async fn open(&self) -> Result<SendRequest<Bytes>, String> {
        let stream = self.target.connect(b"h2").await?;
        let (mut requests, connection) = Builder::new()
            .initial_max_send_streams(self.streams)
            .initial_connection_window_size(WINDOW)
            // The responses are too small to need a header table.
            .header_table_size(0)
            .enable_push(false)
            .handshake(stream)
            .await
            .map_err(|error| error.to_string())?;
        // Its errors are reported to the requests in flight.
        tokio::task::spawn_local(connection);
        poll_fn(|context| requests.poll_ready(context)).await.map_err(|error| error.to_string())?;
        Ok(requests)
    }

    /// New requests use a new connection; those in flight may still be answered on the old one.
    fn lose(&self, lost: u64) {
        let mut current = self.current.borrow_mut();
        if matches!(*current, Current::Open { generation, .. } if generation == lost) {
            *current = Current::Lost;
        }
    }
}

impl fmt::Debug for Http2 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Http2").field("target", &self.target).finish_non_exhaustive()
    }
}

/// A slot for one request at a time on a shared connection.
#[derive(Debug)]
pub(crate) struct Http2Stream {
    timeout: RequestTimeout,
    slot: Slot,
}

#[derive(Debug)]
struct Slot {
    connection: Rc<Http2>,
    requests: Option<(u64, SendRequest<Bytes>)>,
}

impl Slot {
    /// The connection, once it accepts another request. If it was lost while idle, it is replaced without an
    /// error: servers close idle connections.
    async fn ready(&mut self) -> Result<&mut SendRequest<Bytes>, Failure> {
        if let Some((generation, requests)) = &mut self.requests
            && poll_fn(|context| requests.poll_ready(context)).await.is_err()
        {
            self.connection.lose(*generation);
            self.requests = None;
        }
        let (_, requests) = match &mut self.requests {
            Some(requests) => requests,
            lost => lost.insert(self.connection.requests().await?),
        };
        Ok(requests)
    }

    async fn send(&mut self, call: HttpRequest) -> Result<HttpResponse, Failure> {
        let unsent = |error: h2::Error| Failure::Unsent(error.to_string());
        let (request, body) = request(call, &self.connection.target);
        let requests = self.ready().await?;
        let (response, mut sending) = requests.send_request(request, body.is_empty()).map_err(unsent)?;
        if !body.is_empty() {
            sending.send_data(body, true).map_err(failure)?;
        }
        answer(response).await.map_err(failure)
    }
}

impl Client for Http2Stream {
    async fn exchange(&mut self, call: HttpRequest) -> Result<HttpResponse, Failure> {
        let Self { timeout, slot } = self;
        let answer = timeout.wait(pin!(slot.send(call))).await.flatten();
        if answer.is_err()
            && let Some((generation, _)) = slot.requests.take()
        {
            slot.connection.lose(generation);
        }
        answer
    }
}

fn request(call: HttpRequest, target: &Target) -> (Request<()>, Bytes) {
    let mut parts = uri::Parts::default();
    parts.scheme = Some(target.scheme().clone());
    parts.authority = Some(target.authority().clone());
    let path = PathAndQuery::from_maybe_shared(call.path);
    parts.path_and_query = Some(path.expect("paths are made of letters, dots and slashes"));
    let mut request = Request::new(());
    *request.method_mut() = call.method;
    *request.uri_mut() = Uri::from_parts(parts).expect("it has all three parts");
    let headers = request.headers_mut();
    insert_headers(headers, call.content_type, call.idempotency_key, target.authorization());
    (request, call.body)
}

async fn answer(response: ResponseFuture) -> Result<HttpResponse, h2::Error> {
    let (head, mut body) = response.await?.into_parts();
    let body = if body.is_end_stream() { Bytes::new() } else { collect(&mut body).await? };
    Ok(HttpResponse { status: head.status, body })
}

async fn collect(stream: &mut RecvStream) -> Result<Bytes, h2::Error> {
    let mut body = BytesMut::new();
    while let Some(chunk) = stream.data().await {
        let chunk = chunk?;
        stream.flow_control().release_capacity(chunk.len())?;
        if body.is_empty() && stream.is_end_stream() {
            return Ok(chunk);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body.freeze())
}

/// A refused stream was not processed by the server (RFC 9113, 8.7).
#[expect(clippy::needless_pass_by_value, reason = "it is for map_err")]
fn failure(error: h2::Error) -> Failure {
    let refused = error.is_remote() && error.reason() == Some(Reason::REFUSED_STREAM);
    if refused { Failure::Unsent(error.to_string()) } else { Failure::Unanswered(error.to_string()) }
}
