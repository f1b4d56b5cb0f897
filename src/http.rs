//! HTTP: sockets, servers, problem documents and the operations routes.

mod activity;
mod answer;
mod budget;
mod connection;
mod server;
mod stream;
mod transfer;

use std::convert::Infallible;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures::FutureExt;
use metrics_exporter_prometheus::PrometheusHandle;
use problem_details::ProblemDetails;
use serde::Serialize;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::sync::{Semaphore, oneshot};
use tokio::time::timeout;

pub use answer::hold;
pub use budget::{Budget, Exhausted, Share};
pub use transfer::deadline as transfer_deadline;

use crate::excerpt::excerpt;
use crate::health::Health;
use crate::shutdown::Shutdown;

/// Connections the kernel completes before they are accepted. The default of 128 turns a burst of
/// reconnecting clients away; the kernel cuts this to `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// How often a process that waits for its turn looks whether there still is another one to serve its clients.
const OTHERS_INTERVAL: Duration = Duration::from_secs(1);

/// Connections of operators and their collectors at a time: far more than there are.
const OPS_CONNECTIONS: usize = 100;

/// After a 503: soon enough to lose little, late enough to let a broker breathe.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("1");

/// The media type of a [`Problem`] (RFC 9457).
const PROBLEM_JSON: HeaderValue = HeaderValue::from_static("application/problem+json");

/// Where a service listens, and how much it takes.
#[derive(Clone, Debug, clap::Args)]
#[group(skip)]
pub struct Config {
    /// Address and port of the service; with port 0 one is chosen and logged
    #[arg(long, env = "CATCHALL_LISTEN", value_name = "ADDRESS:PORT")]
    pub listen: SocketAddr,

    /// Threads that serve, each with its own socket on the same port, its own event loop and its own
    /// connections behind it; one per core by default
    #[arg(long, env = "CATCHALL_THREADS", value_name = "N", default_value_t = cores(), value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: u16,

    /// Client connections at a time in all; further ones are closed at once. Each holds a file descriptor and
    /// some 30 kB (HTTP/1.1) or 40 kB (HTTP/2), at most 80 kB or 200 kB and 5 kB for each of its requests
    #[arg(long, env = "CATCHALL_MAX_CONNECTIONS", value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_connections: u32,
}

/// Where a process answers its operators.
#[derive(Clone, Debug, clap::Args)]
#[group(skip)]
pub struct OpsConfig {
    /// Address and port of /livez, /readyz and /metrics; with port 0 one is chosen and logged
    #[arg(long, env = "CATCHALL_OPS_LISTEN", value_name = "ADDRESS:PORT")]
    pub ops_listen: SocketAddr,
}

fn cores() -> u16 {
    std::thread::available_parallelism().ok().and_then(|n| u16::try_from(n.get()).ok()).unwrap_or(1)
}

impl Config {
    /// Takes a port with a socket for each thread. The port may be shared with another process of the same user
    /// that takes it the same way, so that a new version can take over before the old one leaves. Clients get in
    /// later, see [`serve_per_thread`].
    ///
    /// # Errors
    ///
    /// When the address is not this machine's or the port is somebody else's.
    pub fn bind(&self) -> anyhow::Result<Vec<TcpListener>> {
        let first = bind(self.listen, true).with_context(|| cannot_listen(self.listen, "CATCHALL_LISTEN"))?;
        let address = first.local_addr()?;
        let others = (1..self.threads).map(|_| bind(address, true));
        let sockets: io::Result<_> = std::iter::once(Ok(first)).chain(others).collect();
        sockets.with_context(|| cannot_listen(address, "CATCHALL_LISTEN"))
    }
}

impl OpsConfig {
    /// Opens the socket of the operations routes, which is never shared: that would hide one process from
    /// its operators.
    ///
    /// # Errors
    ///
    /// When the address is not this machine's or the port is taken.
    pub fn bind(&self) -> anyhow::Result<TcpListener> {
        let socket = bind(self.ops_listen, false).and_then(|socket| listen(&socket).map(|()| socket));
        socket.with_context(|| cannot_listen(self.ops_listen, "CATCHALL_OPS_LISTEN"))
    }
}

fn cannot_listen(address: SocketAddr, variable: &str) -> String {
    format!("cannot listen on {address} ({variable})")
}

fn bind(address: SocketAddr, shared: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(shared)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// Begins to listen. Connections inherit what is set here: the kernel gives up a peer that has not acknowledged, or not
/// read, what was sent to it, also when the process has nothing more to say.
fn listen(socket: &TcpListener) -> io::Result<()> {
    let socket = SockRef::from(socket);
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(stream::WRITE_TIMEOUT))?;
    socket.listen(BACKLOG)
}

/// Serves on each socket by a thread and an event loop of its own until the shutdown, then until every client
/// has had its answer and has left, but no longer than [`GRACE`](crate::shutdown::GRACE). `router` is called on
/// each event loop, and what it makes is shared with no other.
///
/// Where another process listens on the port it keeps all of its clients until this one is ready, which would
/// else get its share of them while it cannot answer. Where none does (any more), clients get in at once, to be
/// told what is wrong.
///
/// Three quarters of a small request is the kernel's work; keeping the rest on one core, without a lock or
/// a wake-up between cores, halves the cost of one event loop on many threads.
///
/// # Errors
///
/// When a thread cannot be started, the port is somebody else's by now, or a server fails; then the others are
/// not waited for.
pub async fn serve_per_thread<R>(
    sockets: Vec<TcpListener>,
    config: &Config,
    router: R,
    health: &Health,
    shutdown: Shutdown,
) -> anyhow::Result<()>
where
    R: Fn() -> Router + Clone + Send + 'static,
{
    let address = sockets.first().context("no socket to serve on")?.local_addr()?;
    let connections = Arc::new(Semaphore::new(config.max_connections as usize));
    let mut threads = tokio::task::JoinSet::new();
    let (built, building) = mpsc::channel::<Infallible>();
    let mut opening = Vec::new();
    for socket in sockets {
        let (done, ended) = oneshot::channel();
        let (open, opened) = oneshot::channel();
        opening.push((socket, open));
        let built = built.clone();
        let (router, shutdown, connections) = (router.clone(), shutdown.clone(), Arc::clone(&connections));
        std::thread::Builder::new().name("serve".into()).spawn(move || {
            let served = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .context("cannot start an event loop")
                .and_then(|runtime| {
                    let serving = async {
                        let router = router();
                        drop(built);
                        match opened.await {
                            Ok(socket) => server::serve(socket, router, connections, shutdown).await,
                            // Stopped before it began.
                            Err(_) => Ok(()),
                        }
                    };
                    runtime.block_on(serving).context("the HTTP server failed")
                });
            // Nobody listens only if the process is already ending.
            let _ = done.send(served);
        })?;
        threads.spawn(ended);
    }
    // Until every thread has dropped its end. It is not awaited, so that nobody can ask meanwhile and hear that
    // the process is ready, with what its routers depend on not known yet.
    drop(built);
    let _ = building.recv();
    tokio::select! {
        () = shutdown => return Ok(()),
        () = turn(address, health) => {}
    }
    for (socket, open) in opening {
        listen(&socket).with_context(|| cannot_listen(address, "CATCHALL_LISTEN"))?;
        // A thread that is gone has its error waiting below.
        let _ = open.send(socket);
    }
    tracing::info!("open to clients");
    while let Some(ended) = threads.join_next().await {
        ended?.context("a serving thread panicked")??;
    }
    Ok(())
}

/// Waits until the process is ready or no other listens at the address.
async fn turn(address: SocketAddr, health: &Health) {
    // Beside a socket that listens one that is not shared cannot be bound; those that only have the port, as this
    // process's own, are in nobody's way.
    let others = || bind(address, false).is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse);
    if others() {
        tracing::info!(%address, "another process listens on {address}, and takes its clients until this one is ready");
    }
    while others() {
        if timeout(OTHERS_INTERVAL, health.ready()).await.is_ok() {
            return;
        }
    }
}

/// Serves `/livez`, `/readyz` and `/metrics` for as long as it is polled.
///
/// `/livez` says that the process runs and its main event loop turns; no fault outside the process turns it
/// red, because a restart would not mend one. `/readyz` says whether every dependency is there, and if not
/// what is wrong with it; from the shutdown on it is red, so that whoever sends clients sends no more.
///
/// # Errors
///
/// When the server fails.
pub async fn serve_ops(
    socket: TcpListener,
    health: Health,
    metrics: PrometheusHandle,
    shutdown: Shutdown,
) -> anyhow::Result<()> {
    let readyz = async move |State(health): State<Health>| {
        if shutdown.peek().is_some() {
            return (StatusCode::SERVICE_UNAVAILABLE, "stopping\n".into());
        }
        let ready = health.missing().is_empty();
        let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        (status, format!("{health}\n"))
    };
    let page = async move || ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], metrics.render());
    let routes = Router::new()
        .route("/livez", get(async || "alive\n"))
        .route("/readyz", get(readyz))
        .route("/metrics", get(page));
    let connections = Arc::new(Semaphore::new(OPS_CONNECTIONS));
    // It is there until the process has ended: operators want to see it stop.
    let routes = with_problems(routes).with_state(health);
    server::serve(socket, routes, connections, never()).await.context("the HTTP server failed")
}

fn never() -> Shutdown {
    std::future::pending().boxed().shared()
}

/// Answers what no route takes with problem documents as well.
pub fn with_problems<S: Clone + Send + Sync + 'static>(routes: Router<S>) -> Router<S> {
    routes
        .fallback(async |uri: Uri| Problem::NotFound(format!("there is nothing at {}", excerpt(uri.path()))))
        .method_not_allowed_fallback(async |method: Method, uri: Uri| {
            Problem::MethodNotAllowed(excerpt(format_args!("{method} is not allowed at {}", uri.path())))
        })
}

/// What a request can be answered with instead of what it asked for: RFC 9457 documents, whose `detail` is
/// for the client. What went wrong inside is logged where it is known, and not told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// Something in the request cannot be parsed.
    BadRequest(String),
    /// Nothing was readable in a bulk request: each of its events, and why it was not.
    NothingReadable(Vec<Rejected>),
    /// There is no such resource.
    NotFound(String),
    /// The resource does not take the method.
    MethodNotAllowed(String),
    /// The request's body did not arrive in time.
    Timeout(String),
    /// More than one request may carry.
    TooLarge(String),
    /// A media type or an encoding that is not read here.
    UnsupportedMediaType(String),
    /// The broker or the database cannot take it now: try again.
    Unavailable(String),
}

/// An event of a bulk request that was not accepted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Rejected {
    /// Its place among the events of the request, from 0.
    pub index: usize,
    /// What is wrong with it.
    pub detail: String,
}

/// Members of a problem document beyond the standard ones.
#[derive(Serialize)]
struct Extension {
    #[serde(skip_serializing_if = "Option::is_none")]
    rejected: Option<Vec<Rejected>>,
}

impl Problem {
    /// The document.
    #[must_use]
    pub fn into_json(self) -> Response<Vec<u8>> {
        let mut rejected = None;
        let (status, detail) = match self {
            Self::BadRequest(detail) => (StatusCode::BAD_REQUEST, detail),
            Self::NothingReadable(events) => {
                rejected = Some(events);
                (StatusCode::BAD_REQUEST, "no event could be read".into())
            }
            Self::NotFound(detail) => (StatusCode::NOT_FOUND, detail),
            Self::MethodNotAllowed(detail) => (StatusCode::METHOD_NOT_ALLOWED, detail),
            Self::Timeout(detail) => (StatusCode::REQUEST_TIMEOUT, detail),
            Self::TooLarge(detail) => (StatusCode::PAYLOAD_TOO_LARGE, detail),
            Self::UnsupportedMediaType(detail) => (StatusCode::UNSUPPORTED_MEDIA_TYPE, detail),
            Self::Unavailable(detail) => (StatusCode::SERVICE_UNAVAILABLE, detail),
        };
        let problem = ProblemDetails::from_status_code(status)
            .with_detail(detail)
            .with_extensions(Extension { rejected });
        let mut response = json(status, &problem);
        response.headers_mut().insert(header::CONTENT_TYPE, PROBLEM_JSON);
        if status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(header::RETRY_AFTER, RETRY_AFTER);
        }
        response
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        self.into_json().map(Body::from)
    }
}

/// An answer in JSON.
///
/// # Panics
///
/// When the value has no JSON, as a map whose keys are no strings.
#[must_use]
pub fn json(status: StatusCode, value: &impl Serialize) -> Response<Vec<u8>> {
    let mut body = serde_json::to_vec(value).expect("what is answered is made of strings and numbers");
    // It may have to wait for its client.
    body.shrink_to_fit();
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
