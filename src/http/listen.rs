//! Listening: a socket for each thread, and the hand-over of a port from one process to the next.

use std::convert::Infallible;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::sync::{Semaphore, oneshot};
use tokio::time::timeout;

use super::server;
use super::stream;
use crate::health::Health;
use crate::shutdown::Shutdown;

/// Connections the kernel completes before they are accepted. The default of 128 turns a burst of
/// reconnecting clients away; the kernel cuts this to `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// How often a process that waits for its turn looks whether there still is another one to serve its clients.
const OTHERS_INTERVAL: Duration = Duration::from_secs(1);

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

pub(super) fn cannot_listen(address: SocketAddr, variable: &str) -> String {
    format!("cannot listen on {address} ({variable})")
}

pub(super) fn bind(address: SocketAddr, shared: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(shared)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// Begins to listen. Connections inherit what is set here: the kernel gives up a peer that has not acknowledged, or not
/// read, what was sent to it, also when the process has nothing more to say.
pub(super) fn listen(socket: &TcpListener) -> io::Result<()> {
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
