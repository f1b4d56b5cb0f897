//! A wire that can be cut and worse: a proxy between a service and its server.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use socket2::{Domain, SockRef, Socket, Type};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

/// Chunks that may be on their way in one direction while the wire is slow.
const ON_THE_WAY: usize = 1024;

/// Forwards connections for as long as the wire is whole.
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    state: watch::Sender<State>,
    _reserved: Socket,
}

#[derive(Clone, Debug)]
struct State {
    wire: Wire,
    server: String,
}

/// What a wire does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wire {
    /// It forwards.
    Whole,
    /// Every connection is reset, and new ones are refused.
    Cut,
    /// Each connection forwards so many bytes more in either direction, then it is reset; new ones are refused.
    Breaking(usize),
    /// Everything takes so much longer in either direction.
    Slow(Duration),
    /// Connections stay open and new ones are accepted, but nothing is forwarded, not even their end. What was
    /// open in that time stays dead when the wire is mended, as after a failure of what is in between.
    Silent,
}

impl Proxy {
    /// A proxy to `server` (host and port), at first up or cut.
    pub(crate) async fn to(server: &str, begin_up: bool) -> Self {
        let reserved = reserve();
        let address = reserved.local_addr().unwrap().as_socket().unwrap();
        let wire = if begin_up { Wire::Whole } else { Wire::Cut };
        let (state, watched) = watch::channel(State { wire, server: server.to_owned() });
        tokio::spawn(accept(address, watched));
        let proxy = Self { address, state, _reserved: reserved };
        if begin_up {
            // Until the listener is there, a connection would be refused.
            while TcpStream::connect(address).await.is_err() {
                tokio::task::yield_now().await;
            }
        }
        proxy
    }

    /// Does something to the wire.
    pub(crate) fn be(&self, wire: Wire) {
        self.state.send_modify(|state| state.wire = wire);
    }

    pub(crate) fn cut(&self) {
        self.be(Wire::Cut);
    }

    pub(crate) fn mend(&self) {
        self.be(Wire::Whole);
    }

    /// Leads new connections to another server.
    pub(crate) fn lead_to(&self, server: &str) {
        self.state.send_modify(|state| server.clone_into(&mut state.server));
    }

    /// `url` through the proxy: a URL with a user, and with host and port behind the `@`.
    pub(crate) fn through(&self, url: &str) -> String {
        let (user, rest) = url.split_once('@').expect("a URL with a user");
        let (_, path) = rest.split_once('/').expect("a URL with a path");
        format!("{user}@{}/{path}", self.address)
    }
}

/// A port that nobody else is given while nobody listens there: the kernel refuses connections, as it does
/// where no server runs. Whoever wants to listen there shares it.
pub(crate) fn reserve() -> Socket {
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    bind(any).unwrap()
}

fn bind(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = bind(address)?;
    socket.set_nonblocking(true)?;
    socket.listen(1024)?;
    TcpListener::from_std(socket.into())
}

async fn accept(address: SocketAddr, mut state: watch::Receiver<State>) {
    let mut listener = None;
    loop {
        if matches!(state.borrow_and_update().wire, Wire::Cut | Wire::Breaking(_)) {
            drop(listener.take());
            if state.changed().await.is_err() {
                return;
            }
            continue;
        }
        let accepting = listener.get_or_insert_with(|| listen(address).unwrap());
        tokio::select! {
            changed = state.changed() => if changed.is_err() { return },
            accepted = accepting.accept() => {
                tokio::spawn(forward(accepted.unwrap().0, state.clone()));
            }
        }
    }
}

async fn forward(client: TcpStream, mut state: watch::Receiver<State>) {
    let State { wire, server } = state.borrow().clone();
    if wire == Wire::Silent {
        let (from, _to) = client.into_split();
        swallow(from).await;
        return;
    }
    let Ok(server) = TcpStream::connect(server).await else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let dead = Arc::new(AtomicBool::new(false));
    let (mut client, mut server) = (client, server);
    let carried = {
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        let there = Lane { state: state.clone(), dead: Arc::clone(&dead) }.carry(from_client, to_server);
        let back = Lane { state: state.clone(), dead: Arc::clone(&dead) }.carry(from_server, to_client);
        let (mut there, mut back) = (pin!(there), pin!(back));
        let both = async {
            tokio::select! {
                // The client has gone: the other side of a dead connection never hears of it.
                ended = &mut there => match ended {
                    Ok(()) if !dead.load(Ordering::Relaxed) => back.await,
                    ended => ended,
                },
                // The server has gone: the client of a dead connection never hears of it.
                ended = &mut back => match ended {
                    Err(error) if !dead.load(Ordering::Relaxed) => Err(error),
                    _ => there.await,
                }
            }
        };
        tokio::select! {
            ended = both => ended,
            _ = state.wait_for(|state| state.wire == Wire::Cut) => Err(io::ErrorKind::ConnectionReset.into()),
        }
    };
    if carried.is_err() {
        for stream in [&client, &server] {
            // With nothing to wait for, closing is a reset.
            let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
        }
    }
}

/// One direction of a connection.
struct Lane {
    state: watch::Receiver<State>,
    /// Whether the connection has ever lost a byte: then it can never be used again.
    dead: Arc<AtomicBool>,
}

impl Lane {
    async fn carry(self, from: impl AsyncRead, to: impl AsyncWrite) -> io::Result<()> {
        let (queue, mut waiting) = mpsc::channel(ON_THE_WAY);
        let dead = Arc::clone(&self.dead);
        let take = self.take(from, queue);
        let give = async {
            let mut to = pin!(to);
            while let Some((due, bytes)) = waiting.recv().await {
                sleep_until(due).await;
                to.write_all(&bytes).await?;
            }
            // Nor does an end get through.
            if dead.load(Ordering::Relaxed) { Ok(()) } else { to.shutdown().await }
        };
        tokio::try_join!(take, give).map(drop)
    }

    /// Reads to the end, and queues what is to be forwarded with the time when it is due.
    async fn take(self, from: impl AsyncRead, queue: mpsc::Sender<(Instant, Vec<u8>)>) -> io::Result<()> {
        let mut from = pin!(from);
        let mut buffer = vec![0; 64 * 1024];
        let mut left = None;
        loop {
            let read = from.read(&mut buffer).await;
            let wire = self.state.borrow().wire;
            if wire == Wire::Silent {
                self.dead.store(true, Ordering::Relaxed);
            }
            let size = match read {
                Ok(size) if size > 0 => size,
                ended => return ended.map(drop),
            };
            if self.dead.load(Ordering::Relaxed) {
                continue;
            }
            let mut bytes = buffer[..size].to_vec();
            let mut due = Instant::now();
            match wire {
                Wire::Slow(delay) => due += delay,
                Wire::Breaking(more) => {
                    let left = left.get_or_insert(more);
                    bytes.truncate(*left);
                    *left -= bytes.len();
                }
                Wire::Whole | Wire::Cut | Wire::Silent => left = None,
            }
            if queue.send((due, bytes)).await.is_err() {
                return Ok(());
            }
            if left == Some(0) {
                // The rest of the queue first, which the writer has at once.
                tokio::time::sleep(Duration::from_millis(20)).await;
                return Err(io::ErrorKind::ConnectionReset.into());
            }
        }
    }
}

/// Reads to the end, and to nowhere.
async fn swallow(mut from: impl AsyncRead + Unpin) {
    let mut buffer = vec![0; 64 * 1024];
    while from.read(&mut buffer).await.is_ok_and(|size| size > 0) {}
}

/// Host and port of a URL with a user.
pub(crate) fn host(url: &str) -> &str {
    url.split_once('@').and_then(|(_, rest)| rest.split_once('/')).expect("a URL with a user and a path").0
}
