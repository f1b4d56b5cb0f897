//! The server of a socketmap: its connections, and how it ends.

use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::either::Either;

use super::address::{SocketMode, SocketmapAddress};
use super::connection::{self, Offence, Replies};
use super::socket::{BoundSocket, NotBound, SocketFile, bind};
use crate::acceptor::Acceptor;
use crate::process;
use crate::query::domain::Domains;
use crate::shutdown::{GRACE, Shutdown};
use crate::trouble::Trouble;

/// Connections at a time. Each takes a file descriptor and some 10 kB, and together they take at most an eighth
/// of the descriptors.
const MAX_CONNECTIONS: u64 = 1000;

/// How often a process checks whether the one that has the address has left: mail waits meanwhile.
const TURN_INTERVAL: Duration = Duration::from_millis(100);

/// How long a stopping server still accepts clients that have connected to its socket.
const LAST_CALL: Duration = Duration::from_millis(50);

/// A socketmap that is to be served.
#[derive(Debug)]
pub(crate) struct Socketmap {
    address: SocketmapAddress,
    mode: SocketMode,
    /// `None`: another process has the address.
    socket: Option<BoundSocket>,
}

impl Socketmap {
    /// Binds the address, unless another process has it.
    pub(super) fn bind(address: SocketmapAddress, mode: SocketMode) -> anyhow::Result<Self> {
        let socket = match bind(&address, mode) {
            Ok(socket) => Some(socket),
            Err(NotBound::Taken) => None,
            Err(NotBound::Failed(error)) => return Err(error).with_context(|| cannot_listen(&address)),
        };
        Ok(Self { address, mode, socket })
    }

    /// Whether another process has the address.
    pub(super) fn is_taken(&self) -> bool {
        self.socket.is_none()
    }

    /// Serves until the shutdown, then until each client has its replies, but at most [`GRACE`]. While
    /// another process has the address, this one waits for it.
    ///
    /// # Errors
    ///
    /// When the socket cannot be used by the event loop.
    pub(super) async fn serve(self, domains: Domains, shutdown: Shutdown) -> anyhow::Result<()> {
        let Self { address, mode, socket } = self;
        let socket = async {
            match socket {
                Some(socket) => socket,
                None => turn(&address, mode).await,
            }
        };
        let socket = tokio::select! {
            biased;
            () = shutdown.clone() => return Ok(()),
            socket = socket => socket,
        };
        let (listener, file) = listen(socket)?;
        let address = match &listener {
            Either::Right(listener) => SocketmapAddress::Tcp(listener.local_addr()?),
            Either::Left(_) => address,
        };
        tracing::info!(socketmap = %address, "answering mail servers at {address}");
        let mut server = Server::new(address, domains, shutdown.clone());
        server.accept_until(&listener, shutdown).await;
        let end = Instant::now() + GRACE;
        // From now on the address is free for the next process.
        drop(file);
        server.accept_until(&listener, sleep(LAST_CALL)).await;
        drop(listener);
        server.drain(end).await;
        Ok(())
    }
}

pub(super) fn cannot_listen(address: &SocketmapAddress) -> String {
    format!("cannot listen on {address} (CATCHALL_SOCKETMAP)")
}

/// Waits until the address is free, and takes it.
async fn turn(address: &SocketmapAddress, mode: SocketMode) -> BoundSocket {
    let mut failing = Trouble::default();
    tracing::info!("another process listens on {address} and answers mail servers until it ends");
    loop {
        sleep(TURN_INTERVAL).await;
        match bind(address, mode) {
            Ok(socket) => return socket,
            Err(NotBound::Failed(error)) if failing.is_news() => {
                tracing::warn!(reason = %error, "{}, trying again: {error}", cannot_listen(address));
            }
            Err(NotBound::Taken | NotBound::Failed(_)) => {}
        }
    }
}

type Listener = Either<UnixListener, TcpListener>;

/// Hands a socket to the event loop.
fn listen(BoundSocket { listener, file }: BoundSocket) -> anyhow::Result<(Listener, Option<SocketFile>)> {
    let listener = match listener {
        Either::Left(listener) => Either::Left(UnixListener::from_std(listener)?),
        Either::Right(listener) => Either::Right(TcpListener::from_std(listener)?),
    };
    Ok((listener, file))
}

async fn accept(listener: &Listener) -> std::io::Result<Either<UnixStream, TcpStream>> {
    match listener {
        Either::Left(listener) => Ok(Either::Left(listener.accept().await?.0)),
        Either::Right(listener) => Ok(Either::Right(listener.accept().await?.0)),
    }
}

struct Server {
    acceptor: Acceptor<SocketmapAddress>,
    domains: Domains,
    shutdown: Shutdown,
    connections: JoinSet<()>,
    replies: Replies,
    offended: Arc<Mutex<Trouble>>,
}

impl Server {
    fn new(address: SocketmapAddress, domains: Domains, shutdown: Shutdown) -> Self {
        Self {
            acceptor: Acceptor::new(address),
            domains,
            shutdown,
            connections: JoinSet::new(),
            replies: Replies::register(),
            offended: Arc::default(),
        }
    }

    async fn accept_until(&mut self, listener: &Listener, end: impl Future<Output = ()>) {
        let mut end = pin!(end);
        while let Some(stream) = self.acceptor.next(|| accept(listener), end.as_mut()).await {
            self.admit(stream);
        }
    }

    /// Serves a connection, or closes it if the connection limit is reached.
    fn admit(&mut self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        while self.connections.try_join_next().is_some() {}
        if self.connections.len() as u64 >= MAX_CONNECTIONS.min(process::descriptors() / 8) {
            self.acceptor.log_full();
            return;
        }
        let (domains, replies) = (self.domains.clone(), self.replies.clone());
        let (offended, shutdown) = (Arc::clone(&self.offended), self.shutdown.clone());
        self.connections.spawn(async move {
            if let Err(offence) = connection::serve(stream, &domains, &replies, shutdown).await {
                tell(offence, &offended);
            }
        });
    }

    async fn drain(mut self, end: Instant) {
        while !self.connections.is_empty() {
            if timeout_at(end, self.connections.join_next()).await.is_err() {
                let left = self.connections.len();
                tracing::warn!(connections = left, "dropping {left} connections of mail servers");
                return;
            }
        }
    }
}

/// Logs the fault of a client; further faults are not logged for a while.
fn tell(offence: Offence, offended: &Mutex<Trouble>) {
    if offended.lock().unwrap_or_else(PoisonError::into_inner).is_news() {
        tracing::warn!(reason = %offence, "closed the connection of a client of the socketmap: {offence}");
    }
}
