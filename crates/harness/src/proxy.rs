//! A proxy between a service and its server, which can cut, delay or silence the connection.

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

/// Chunks that may be queued in one direction while the wire is slow.
const ON_THE_WAY: usize = 8192;

/// A heartbeat frame of AMQP.
const HEARTBEAT: [u8; 8] = [8, 0, 0, 0, 0, 0, 0, 0xce];

/// How often heartbeats are sent while confirms are late: more often than any client here asks for.
const BEAT: Duration = Duration::from_millis(500);

/// Forwards connections for as long as the wire is whole.
pub struct Proxy {
    /// Where the proxy listens.
    pub address: SocketAddr,
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
pub enum Wire {
    /// Forwards everything.
    Whole,
    /// Every connection is reset, and new ones are refused.
    Cut,
    /// Each connection forwards so many more bytes in either direction and is then reset; new ones are
    /// refused.
    Breaking(usize),
    /// Delays everything by so much in either direction.
    Slow(Duration),
    /// Delays what the broker sends to a client that has published something, as if the broker's disk were
    /// slow: confirms are late. Connecting, heartbeats and other clients are not delayed.
    LateConfirms(Duration),
    /// Connections stay open and new ones are accepted, but nothing is forwarded, not even the end of a
    /// connection. Connections from this time stay dead after the wire is mended, as after a network failure.
    Silent,
}

impl Proxy {
    /// A proxy to `server` (host and port), which begins whole or cut.
    pub async fn to(server: &str, begin_up: bool) -> Self {
        let reserved = reserve();
        let address = address(&reserved);
        let wire = if begin_up { Wire::Whole } else { Wire::Cut };
        let (state, watched) = watch::channel(State { wire, server: server.to_owned() });
        tokio::spawn(accept(address, watched));
        let proxy = Self { address, state, _reserved: reserved };
        if begin_up {
            // Until the listener is open, a connection would be refused.
            while TcpStream::connect(address).await.is_err() {
                tokio::task::yield_now().await;
            }
        }
        proxy
    }

    /// Changes the state of the wire.
    pub fn be(&self, wire: Wire) {
        self.state.send_modify(|state| state.wire = wire);
    }

    /// Resets every connection and refuses new ones.
    pub fn cut(&self) {
        self.be(Wire::Cut);
    }

    /// Forwards again.
    pub fn mend(&self) {
        self.be(Wire::Whole);
    }

    /// Sends new connections to another server.
    pub fn lead_to(&self, server: &str) {
        self.state.send_modify(|state| server.clone_into(&mut state.server));
    }

    /// `url` through the proxy: a URL with a user, and with host and port behind the `@`.
    #[must_use]
    pub fn through(&self, url: &str) -> String {
        let (user, rest) = url.split_once('@').expect("a URL with a user");
        let (_, path) = rest.split_once('/').expect("a URL with a path");
        format!("{user}@{}/{path}", self.address)
    }
}

/// Reserves a port without listening on it: connections are refused, and no other process is given the port.
/// A listener can share it.
#[must_use]
pub fn reserve() -> Socket {
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    bind(any).unwrap()
}

/// Where a reserved port is.
///
/// # Panics
///
/// When it was not [reserved](reserve).
#[must_use]
pub fn address(reserved: &Socket) -> SocketAddr {
    reserved.local_addr().ok().and_then(|address| address.as_socket()).expect("it is bound")
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
    let (dead, publishes) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let (mut client, mut server) = (client, server);
    let carried = {
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        let lane = |way| {
            let (state, dead, publishes) = (state.clone(), Arc::clone(&dead), Arc::clone(&publishes));
            Lane { way, state, dead, publishes }
        };
        let there = lane(Way::There).carry(from_client, to_server);
        let back = lane(Way::Back).carry(from_server, to_client);
        let (mut there, mut back) = (pin!(there), pin!(back));
        let both = async {
            tokio::select! {
                // The client has closed. On a dead connection the server does not learn of it.
                ended = &mut there => match ended {
                    Ok(()) if !dead.load(Ordering::Relaxed) => back.await,
                    ended => ended,
                },
                // The server has closed. On a dead connection the client does not learn of it.
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
            // With a linger time of zero, closing sends a reset.
            let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
        }
    }
}

/// From the client to the server, or from the server to the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    There,
    Back,
}

/// One direction of a connection.
struct Lane {
    way: Way,
    state: watch::Receiver<State>,
    /// Whether the connection has lost a byte. Then it must never forward again.
    dead: Arc<AtomicBool>,
    /// Whether the client speaks AMQP and has published something.
    publishes: Arc<AtomicBool>,
}

impl Lane {
    async fn carry(self, from: impl AsyncRead, to: impl AsyncWrite) -> io::Result<()> {
        let (queue, mut waiting) = mpsc::channel(ON_THE_WAY);
        let (dead, publishes) = (Arc::clone(&self.dead), Arc::clone(&self.publishes));
        let is_back = self.way == Way::Back;
        let take = self.take(from, queue);
        let give = async {
            let mut to = pin!(to);
            let mut frames = Frames::of_a_server();
            while let Some((due, bytes)) = waiting.recv().await {
                while is_back && publishes.load(Ordering::Relaxed) && Instant::now() + BEAT < due {
                    sleep_until(Instant::now() + BEAT).await;
                    if frames.is_between() {
                        to.write_all(&HEARTBEAT).await?;
                    }
                }
                sleep_until(due).await;
                to.write_all(&bytes).await?;
                if is_back {
                    frames.read(&bytes);
                }
            }
            // On a dead connection the end is not forwarded either.
            if dead.load(Ordering::Relaxed) { Ok(()) } else { to.shutdown().await }
        };
        tokio::try_join!(take, give).map(drop)
    }

    /// Reads until the end, and queues each chunk with the time at which it is to be forwarded.
    async fn take(self, from: impl AsyncRead, queue: mpsc::Sender<(Instant, Vec<u8>)>) -> io::Result<()> {
        let mut from = pin!(from);
        let mut buffer = vec![0; 64 * 1024];
        let mut left = None;
        let mut frames = (self.way == Way::There).then(Frames::of_a_client);
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
            if let Some(read) = &mut frames
                && read.read(&bytes)
            {
                self.publishes.store(true, Ordering::Relaxed);
                frames = None;
            }
            let mut due = Instant::now();
            match wire {
                Wire::Slow(delay) => due += delay,
                Wire::LateConfirms(delay) => {
                    if self.way == Way::Back && self.publishes.load(Ordering::Relaxed) {
                        due += delay;
                    }
                }
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
                // Gives the writer time to send the rest of the queue.
                tokio::time::sleep(Duration::from_millis(20)).await;
                return Err(io::ErrorKind::ConnectionReset.into());
            }
        }
    }
}

/// Follows the frames of AMQP in one direction: a type, a channel and a size, the payload, and an end.
struct Frames {
    /// The part of the client's protocol header that is still to come.
    greeting: &'static [u8],
    is_amqp: bool,
    /// The beginning of a frame.
    head: Vec<u8>,
    /// Bytes of it that are still to come.
    rest: usize,
}

impl Frames {
    /// Type, channel and size.
    const HEAD: usize = 7;

    /// The type of a frame that begins the content of a message.
    const CONTENT: u8 = 2;

    fn of_a_client() -> Self {
        Self { greeting: b"AMQP\0\0\x09\x01", ..Self::of_a_server() }
    }

    fn of_a_server() -> Self {
        Self { greeting: b"", is_amqp: true, head: Vec::new(), rest: 0 }
    }

    /// Whether the last frame is complete.
    fn is_between(&self) -> bool {
        self.is_amqp && self.head.is_empty() && self.rest == 0
    }

    /// Reads on, and tells whether the content of a message has begun.
    fn read(&mut self, mut bytes: &[u8]) -> bool {
        let mut content = false;
        while self.is_amqp && !bytes.is_empty() {
            if let [expected, greeting @ ..] = self.greeting {
                self.is_amqp = bytes[0] == *expected;
                (self.greeting, bytes) = (greeting, &bytes[1..]);
            } else if self.rest > 0 {
                let size = self.rest.min(bytes.len());
                self.rest -= size;
                bytes = &bytes[size..];
            } else {
                self.head.push(bytes[0]);
                bytes = &bytes[1..];
                if let [kind, _, _, size @ ..] = &*self.head
                    && self.head.len() == Self::HEAD
                {
                    content |= *kind == Self::CONTENT;
                    self.rest = size.iter().fold(0, |size, byte| size << 8 | usize::from(*byte)) + 1;
                    self.head.clear();
                }
            }
        }
        content
    }
}

/// Reads until the end and discards everything.
async fn swallow(mut from: impl AsyncRead + Unpin) {
    let mut buffer = vec![0; 64 * 1024];
    while from.read(&mut buffer).await.is_ok_and(|size| size > 0) {}
}

/// Host and port of a URL with a user.
#[must_use]
pub fn host(url: &str) -> &str {
    url.split_once('@').and_then(|(_, rest)| rest.split_once('/')).expect("a URL with a user and a path").0
}
