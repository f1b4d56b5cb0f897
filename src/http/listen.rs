//! Listening: one socket per thread, and the handover of a port from one process to the next.

use std::convert::Infallible;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, bail};
use axum::Router;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::access::LimitConfig;
use super::guard::Guard;
use super::places::Places;
use super::server;
use super::stream;
use crate::event_loop::on_own_thread;
use crate::health::Health;
use crate::process;
use crate::shutdown::Shutdown;

/// Connections the kernel completes before they are accepted. The default of 128 would refuse a burst of
/// reconnecting clients; the kernel limits this to `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// File descriptors that are kept for all but the clients of a listener: the operations routes, mail servers,
/// the broker, databases and files.
const OTHER_DESCRIPTORS: u64 = 1536;

/// How often a process that is not ready checks whether another one still serves the port.
const OTHERS_INTERVAL: Duration = Duration::from_secs(1);

/// Where a service listens, and with how many threads and connections.
#[derive(Clone, Debug, clap::Args)]
#[group(skip)]
pub struct HttpConfig {
    /// Address and port of the service; port 0 chooses a free port and logs it
    #[arg(long, env = "CATCHALL_LISTEN", value_name = "ADDRESS:PORT")]
    pub listen: SocketAddr,

    /// Threads that serve, each with its own socket on the same port, event loop, and connections to the
    /// backend; one per core by default
    #[arg(
        long,
        env = "CATCHALL_THREADS",
        value_name = "N",
        default_value_t = cores(),
        value_parser = clap::value_parser!(u16).range(1..=1024)
    )]
    pub threads: u16,

    /// The most client connections at a time, over all threads; further ones are closed at once or, where
    /// clients need tokens, take the place of one that has not been let in. Each takes a file descriptor and
    /// about 30 kB (HTTP/1.1) or 40 kB (HTTP/2), at most 80 kB (HTTP/1.1) or 200 kB plus 5 kB per request
    /// (HTTP/2)
    #[arg(
        long,
        env = "CATCHALL_MAX_CONNECTIONS",
        value_name = "N",
        default_value_t = 10_000,
        value_parser = clap::value_parser!(u32).range(1..)
    )]
    pub max_connections: u32,

    #[command(flatten)]
    pub(super) limits: LimitConfig,
}

fn cores() -> u16 {
    std::thread::available_parallelism().ok().and_then(|n| u16::try_from(n.get()).ok()).unwrap_or(1)
}

impl HttpConfig {
    /// A service at this address, with these numbers of threads and connections, and without limits per
    /// client.
    #[must_use]
    pub fn new(listen: SocketAddr, threads: u16, max_connections: u32) -> Self {
        Self { listen, threads, max_connections, limits: LimitConfig::default() }
    }

    /// Connections that one address may have at a time.
    pub(super) fn address_connections(&self) -> u32 {
        self.limits.address_connections.unwrap_or(self.connections().div_ceil(2))
    }

    /// Connections that all clients may have at a time. Without a descriptor nobody is accepted any more, not
    /// even a probe on the operations port, so clients get at most what the other parts leave.
    fn connections(&self) -> u32 {
        let descriptors = process::descriptors();
        let left = descriptors.saturating_sub(OTHER_DESCRIPTORS.min(descriptors / 2));
        u32::try_from(left).map_or(self.max_connections, |left| left.min(self.max_connections))
    }

    /// Logs that the process may open too few files for all connections, if so.
    fn report_descriptors(&self) {
        let (most, wanted) = (self.connections(), self.max_connections);
        if most < wanted {
            let descriptors = process::descriptors();
            tracing::warn!(
                most,
                descriptors,
                "only {most} clients may connect at a time instead of {wanted}: this process may open only \
                 {descriptors} files (ulimit -n)"
            );
        }
    }

    /// Binds one socket per thread to the port. Another process of the same user that binds the port the same
    /// way may share it, so a new version can take over before the old one leaves. Clients are accepted only
    /// later, see [`serve_per_thread`].
    ///
    /// # Errors
    ///
    /// When the address does not belong to this machine or another socket holds the port without sharing it.
    pub fn bind(&self) -> anyhow::Result<Vec<TcpListener>> {
        let first = bind(self.listen, true).with_context(|| cannot_listen(self.listen, "CATCHALL_LISTEN"))?;
        let address = first.local_addr()?;
        let others = (1..self.threads).map(|_| bind(address, true));
        let sockets: io::Result<_> = std::iter::once(Ok(first)).chain(others).collect();
        sockets.with_context(|| cannot_listen(address, "CATCHALL_LISTEN"))
    }

    /// The same for a process whose data no other process shares: it does not take over from another one.
    ///
    /// # Errors
    ///
    /// Also when another process listens at the address.
    pub fn bind_alone(&self) -> anyhow::Result<Vec<TcpListener>> {
        if is_taken(self.listen) {
            bail!("{}: another process listens there", cannot_listen(self.listen, "CATCHALL_LISTEN"));
        }
        self.bind()
    }
}

/// Whether another process listens at the address. An unshared socket cannot be bound beside one that
/// listens. Sockets that are only bound, such as this process's own, do not prevent it.
fn is_taken(address: SocketAddr) -> bool {
    bind(address, false).is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse)
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

/// Begins to listen. Connections inherit this timeout: the kernel drops a peer that has not acknowledged or
/// read what was sent to it, even when the process has nothing more to send.
pub(super) fn listen(socket: &TcpListener) -> io::Result<()> {
    let socket = SockRef::from(socket);
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(stream::WRITE_TIMEOUT))?;
    socket.listen(BACKLOG)
}

/// Serves each socket on its own thread and event loop until the shutdown, then until every client has its
/// response and has left, but at most [`GRACE`](crate::shutdown::GRACE). `router` is called on each event
/// loop, and no other loop shares its result.
///
/// If another process listens on the port, it keeps all clients until this one is ready; otherwise this one
/// would get a share of them before it can answer. If no other process listens, or no longer, clients are
/// accepted at once and told what is wrong.
///
/// Three quarters of the cost of a small request is the kernel's. Keeping the rest on one core, without locks
/// or wake-ups between cores, takes half the cost of one event loop on many threads.
///
/// # Errors
///
/// When a thread cannot be started, the port has been taken meanwhile, or a server fails; the other servers
/// are then not waited for.
pub async fn serve_per_thread<R>(
    sockets: Vec<TcpListener>,
    config: &HttpConfig,
    guard: &Guard,
    router: R,
    health: &Health,
    shutdown: Shutdown,
) -> anyhow::Result<()>
where
    R: Fn() -> Router + Clone + Send + 'static,
{
    let address = sockets.first().context("no socket to serve on")?.local_addr()?;
    config.report_descriptors();
    let most = config.connections() as usize;
    let places = if guard.asks_for_tokens() { Places::kept_by_holders(most) } else { Places::kept(most) };
    let mut threads = tokio::task::JoinSet::new();
    let (built, building) = mpsc::channel::<Infallible>();
    let mut opening = Vec::new();
    for socket in sockets {
        let (open, opened) = oneshot::channel();
        opening.push((socket, open));
        let built = built.clone();
        let (router, shutdown, places) = (router.clone(), shutdown.clone(), places.clone());
        let door = guard.public();
        let ended = on_own_thread("serve", move || async move {
            let router = router();
            drop(built);
            // Otherwise the shutdown came before it began.
            let Ok(socket) = opened.await else { return Ok(()) };
            server::serve(socket, door, router, places, shutdown).await.context("the HTTP server failed")
        })?;
        threads.spawn(ended);
    }
    // Blocks until every thread has built its router and so registered its dependencies. It is not awaited,
    // so that `/readyz` cannot report ready before they are registered.
    drop(built);
    let _ = building.recv();
    tokio::select! {
        () = shutdown => return Ok(()),
        () = turn(address, health) => {}
    }
    for (socket, open) in opening {
        listen(&socket).with_context(|| cannot_listen(address, "CATCHALL_LISTEN"))?;
        // If the thread has ended, its error is returned below.
        let _ = open.send(socket);
    }
    tracing::info!("open to clients");
    while let Some(ended) = threads.join_next().await {
        ended?.context("a serving thread panicked")??;
    }
    Ok(())
}

/// Waits until the process is ready or no other process listens at the address.
async fn turn(address: SocketAddr, health: &Health) {
    if is_taken(address) {
        tracing::info!(
            %address,
            "another process listens on {address} and serves its clients until this one is ready"
        );
    }
    while is_taken(address) {
        if timeout(OTHERS_INTERVAL, health.ready()).await.is_ok() {
            return;
        }
    }
}
