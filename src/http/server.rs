//! One server: a socket, its connections, and how it ends each of them.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use hyper_util::rt::TokioExecutor;
use hyper_util::server::conn::auto::Builder;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{sleep, timeout_at};

use super::access::Visitor;
use super::activity::Activity;
use super::connection::{Connection, Stage, protocol};
use super::guard::Door;
use super::places::Places;
use crate::acceptor::{Acceptor, is_of_one_connection};
use crate::shutdown::{GRACE, Shutdown};
use crate::trouble::Trouble;

/// How long a stopping server still completes handshakes that have begun: a round trip to clients in the same
/// region. New handshakes are ignored meanwhile; their clients retry a second later and reach the process
/// that took over.
const LAST_HANDSHAKES: Duration = Duration::from_millis(50);

/// How long a stopping server keeps idle HTTP/1.1 connections, so that a request on its way is answered and
/// not reset. A stop takes this long if clients keep connections open. A longer time would save little: a
/// client whose next request comes later is as likely to send it at the very end.
const LAME_DUCK: Duration = Duration::from_secs(2);

/// Accepts and serves connections until the shutdown, then closes them so that no client loses a request: see
/// [`Server::drain`]. That takes at most [`GRACE`]; the remaining connections end with the event loop.
///
/// # Errors
///
/// When the socket cannot be used by the event loop; never because of clients or a lack of file descriptors.
pub(super) async fn serve(
    socket: TcpListener,
    door: Door,
    router: Router,
    places: Places,
    shutdown: Shutdown,
) -> io::Result<()> {
    let mut server = Server::new(socket.local_addr()?, door, router, places);
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
    acceptor: Acceptor<SocketAddr>,
    door: Door,
    router: Router,
    protocol: Arc<Builder<TokioExecutor>>,
    places: Places,
    stage: watch::Sender<Stage>,
    /// Whether the stage is past [`Stage::Serving`]; each response reads it.
    leaving: Arc<AtomicBool>,
    crowded: Trouble,
}

impl Server {
    fn new(address: SocketAddr, door: Door, router: Router, places: Places) -> Self {
        Self {
            acceptor: Acceptor::new(address),
            door,
            router,
            protocol: Arc::new(protocol()),
            places,
            stage: watch::Sender::new(Stage::Serving),
            leaving: Arc::default(),
            crowded: Trouble::default(),
        }
    }

    async fn accept_until(&mut self, listener: &tokio::net::TcpListener, end: impl Future<Output = ()>) {
        let mut end = pin!(end);
        while let Some((stream, peer)) = self.acceptor.next(|| listener.accept(), end.as_mut()).await {
            self.admit(stream, peer.ip());
        }
    }

    /// Accepts the waiting connections, which closing the socket would reset, and closes it.
    ///
    /// Nothing is awaited between the last accept and the close. On Linux, where new handshakes are ignored,
    /// only a handshake that took longer than [`LAST_HANDSHAKES`] is reset. Elsewhere, connections that open
    /// in these microseconds are reset too. Behind a load balancer that removes an instance before it stops,
    /// no connection is being opened at all.
    fn accept_rest(&mut self, listener: TcpListener) {
        loop {
            match listener.accept() {
                Ok((stream, peer)) => {
                    let stream = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream));
                    // If it cannot be used, its client has already gone.
                    if let Ok(stream) = stream {
                        self.admit(stream, peer.ip());
                    }
                }
                Err(error) if is_of_one_connection(&error) || error.kind() == ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        drop(listener);
    }

    /// Serves a connection without Nagle's delay, or closes it if a connection limit is reached.
    fn admit(&mut self, stream: TcpStream, peer: IpAddr) {
        let Some(visitor) = Visitor::connect(&self.door.access, peer) else {
            if self.crowded.is_news() {
                tracing::warn!(
                    %peer,
                    "closing further connections from {peer}, connection limit for one address reached"
                );
            }
            return;
        };
        let activity = Activity::new();
        let Some(place) = self.places.take(peer, &activity) else {
            self.acceptor.log_full();
            return;
        };
        // This fails if the client has already gone.
        if stream.set_nodelay(true).is_ok() {
            let connection = Connection {
                stream,
                place,
                visitor,
                activity,
                router: self.router.clone(),
                protocol: Arc::clone(&self.protocol),
                stage: self.stage.subscribe(),
                leaving: Arc::clone(&self.leaving),
            };
            match &self.door.tls {
                None => tokio::spawn(connection.serve()),
                Some(tls) => tokio::spawn(connection.serve_securely(tls.get())),
            };
        }
    }

    /// Ends every connection in the way its protocol provides, and returns once none is left, or at `end`.
    ///
    /// An HTTP/1.1 client may send at any moment on a connection that it believes open, and only a response
    /// can tell it to close. So from now on each response does, and idle connections stay for [`LAME_DUCK`].
    /// Only a request sent at the very moment of the close can still be lost. HTTP/2 has a GOAWAY frame,
    /// after which both sides know which requests will be answered.
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

/// Lets the kernel drop the packets that begin a handshake with this socket. The client assumes a lost
/// packet, and its next attempt reaches the process that took over; a refusal would be final. There is no
/// gentler way for a socket to leave a shared port: closing it resets half-open connections, which happened
/// about once in fifteen closes while four clients opened connections as fast as they could.
#[cfg(target_os = "linux")]
fn ignore_handshakes(listener: &tokio::net::TcpListener) -> io::Result<()> {
    use socket2::{SockFilter, SockRef};

    /// The offset of the flags in a TCP header, and the flag that begins a handshake.
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
