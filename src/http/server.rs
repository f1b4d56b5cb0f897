//! One server: a socket, the connections behind it, and how it leaves each of them.

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use hyper_util::rt::TokioExecutor;
use hyper_util::server::conn::auto::Builder;
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, watch};
use tokio::time::{sleep, timeout_at};

use super::connection::{Connection, Stage, protocol};
use crate::shutdown::{GRACE, Shutdown};

/// How long a stopping server still completes handshakes that have begun: a round trip to clients of the same
/// region. Those that begin in it are not answered, and their clients begin again a second later, which goes
/// to the process that took over.
const LAST_HANDSHAKES: Duration = Duration::from_millis(50);

/// How long a stopping server keeps connections of HTTP/1.1 that are idle, so that a request which is on its
/// way is answered and not reset. It is what a stop costs where clients keep connections, and more of it
/// would save little: a client whose next request comes later is as likely to send it in the moment of the
/// end.
const LAME_DUCK: Duration = Duration::from_secs(2);

/// After a failed accept, which is mostly for want of descriptors: soon enough for whoever waits, and seldom
/// enough to leave the processor to those who free some.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(50);

/// A trouble that does not come back for this long is over, and the next one is news.
const TROUBLE_OVER: Duration = Duration::from_mins(1);

/// Accepts and serves connections until the shutdown, then leaves them so that no client loses a request: see
/// [`Server::drain`]. It takes no longer than [`GRACE`]; what is left then goes with the event loop.
///
/// # Errors
///
/// When the socket cannot be used by the event loop; never for what clients do, or for want of descriptors.
pub(super) async fn serve(
    socket: TcpListener,
    router: Router,
    places: Arc<Semaphore>,
    shutdown: Shutdown,
) -> io::Result<()> {
    let mut server = Server::new(socket.local_addr()?, router, places);
    let listener = tokio::net::TcpListener::from_std(socket)?;
    server.accept_until(&listener, shutdown).await;
    let end = tokio::time::Instant::now() + GRACE;
    if let Err(error) = ignore_handshakes(&listener) {
        tracing::warn!(reason = %error, "connections that are being opened may be reset: {error}");
    }
    server.accept_until(&listener, sleep(LAST_HANDSHAKES)).await;
    server.accept_rest(listener.into_std()?);
    server.drain(end).await;
    Ok(())
}

struct Server {
    address: SocketAddr,
    router: Router,
    protocol: Arc<Builder<TokioExecutor>>,
    places: Arc<Semaphore>,
    stage: watch::Sender<Stage>,
    /// Whether the stage is beyond [`Stage::Serving`], for those who ask with every answer.
    leaving: Arc<AtomicBool>,
    full: Trouble,
    failing: Trouble,
}

impl Server {
    fn new(address: SocketAddr, router: Router, places: Arc<Semaphore>) -> Self {
        Self {
            address,
            router,
            protocol: Arc::new(protocol()),
            places,
            stage: watch::Sender::new(Stage::Serving),
            leaving: Arc::default(),
            full: Trouble::default(),
            failing: Trouble::default(),
        }
    }

    async fn accept_until(&mut self, listener: &tokio::net::TcpListener, end: impl Future<Output = ()>) {
        let mut end = pin!(end);
        loop {
            let accepted = tokio::select! {
                biased;
                () = &mut end => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, _)) => self.admit(stream),
                Err(error) if is_of_one_connection(&error) => {}
                Err(error) => {
                    if self.failing.is_news() {
                        tracing::warn!(reason = %error, "cannot accept connections, trying again: {error}");
                    }
                    tokio::select! {
                        () = &mut end => return,
                        () = sleep(ACCEPT_BACKOFF) => {}
                    }
                }
            }
        }
    }

    /// Takes the connections that wait to be accepted and closes the socket, which would reset them.
    ///
    /// Nothing is awaited between the last look and the end. Where new handshakes are ignored nothing can come
    /// in between either; what is reset then is a handshake that took longer than [`LAST_HANDSHAKES`]. Elsewhere
    /// it is also what opens in these microseconds. Behind a load balancer that takes an instance out before it
    /// is stopped, no connection is being opened at all.
    fn accept_rest(&mut self, listener: TcpListener) {
        loop {
            match listener.accept() {
                Ok((stream, _)) => {
                    let stream = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream));
                    // One that cannot be used is gone already.
                    if let Ok(stream) = stream {
                        self.admit(stream);
                    }
                }
                Err(error) if is_of_one_connection(&error) || error.kind() == ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        drop(listener);
    }

    /// Serves a connection while there is room, without Nagle's delay; else closes it.
    fn admit(&mut self, stream: TcpStream) {
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
            if self.full.is_news() {
                let address = self.address;
                tracing::warn!(%address, "closing further connections to {address}, the connection limit is reached");
            }
            return;
        };
        // It fails on one that is gone already.
        if stream.set_nodelay(true).is_ok() {
            let connection = Connection {
                stream,
                _place: place,
                router: self.router.clone(),
                protocol: Arc::clone(&self.protocol),
                stage: self.stage.subscribe(),
                leaving: Arc::clone(&self.leaving),
            };
            tokio::spawn(connection.serve());
        }
    }

    /// Leaves every connection in the way its client understands, and returns once none is left, or at the end.
    ///
    /// A client of HTTP/1.1 may send at any moment on a connection that it takes for open, and only an answer can
    /// tell it otherwise. So from now on each answer does, idle connections stay for [`LAME_DUCK`], and a
    /// request that is sent in the very moment of its end is what can still be lost. HTTP/2 has a frame for this
    /// (GOAWAY), after which both sides know which requests will be answered.
    async fn drain(&self, end: tokio::time::Instant) {
        self.leaving.store(true, Ordering::Relaxed);
        self.stage.send_replace(Stage::Draining);
        let idle_end = end.min(tokio::time::Instant::now() + LAME_DUCK);
        if timeout_at(idle_end, self.stage.closed()).await.is_ok() {
            return;
        }
        self.stage.send_replace(Stage::Closing);
        if timeout_at(end, self.stage.closed()).await.is_err() {
            let left = self.stage.receiver_count();
            tracing::warn!(connections = left, "dropping {left} connections that are still in use");
        }
    }
}

/// Whether an accept failed because a client gave up while it waited.
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset)
}

/// Lets the kernel drop what would begin a handshake with this socket. Its client takes that for a lost packet,
/// and its next try finds the process that took over, while a refusal would be final. A socket cannot leave the
/// ones that share its port in any gentler way: closing it resets whoever is half-way in, which happened about once
/// in fifteen closes where four clients opened connections as fast as they could.
#[cfg(target_os = "linux")]
fn ignore_handshakes(listener: &tokio::net::TcpListener) -> io::Result<()> {
    use socket2::{SockFilter, SockRef};

    /// Where a TCP header has its flags, and the one that begins a handshake.
    const FLAGS: u32 = 13;
    const SYN: u32 = 0x02;
    SockRef::from(listener).attach_filter(&[
        SockFilter::new(0x30, 0, 0, FLAGS),    // load the byte
        SockFilter::new(0x45, 0, 1, SYN),      // if it has the bit go on, else skip one
        SockFilter::new(0x06, 0, 0, 0),        // drop the segment
        SockFilter::new(0x06, 0, 0, u32::MAX), // keep all of it
    ])
}

#[cfg(not(target_os = "linux"))]
fn ignore_handshakes(_: &tokio::net::TcpListener) -> io::Result<()> {
    Ok(())
}

/// A trouble that comes back again and again, to be logged when it begins.
#[derive(Debug, Default)]
struct Trouble(Option<Instant>);

impl Trouble {
    /// Notes that it is there; returns whether it was not before.
    fn is_news(&mut self) -> bool {
        let now = Instant::now();
        let last = self.0.replace(now);
        last.is_none_or(|last| now.duration_since(last) > TROUBLE_OVER)
    }
}
