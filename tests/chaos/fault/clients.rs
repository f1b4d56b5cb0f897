//! Slow clients, which normal clients must not notice.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bytes::Bytes;
use futures::future::join_all;
use h2::client;
use harness::expected::ExpectedCounts;
use harness::http::{HttpClient, HttpResult};
use harness::stats::percentile;
use http_body_util::Full;
use hyper::http::request::Builder;
use hyper::{Request, StatusCode, header};
use socket2::SockRef;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;

use super::lifted::Lifted;
use crate::cluster::Cluster;

/// HTTP/1.1 connections, or HTTP/2 streams.
pub(super) const SLOW: usize = 1000;

/// One slow client in so many reads no answer; the bodies of the others trickle in.
const READS_NOTHING: usize = 4;

/// Streams per connection.
const STREAMS: usize = 50;

/// How often a few bytes of each body are sent.
pub(super) const TRICKLE: Duration = Duration::from_millis(700);

/// How soon a slow client reconnects after it was given up.
pub(super) const BACK: Duration = Duration::from_secs(1);

/// The content length of a trickling body.
const BODY: usize = 1 << 20;

/// Invalid events in a request whose answer is not read. The answer has some 20 kB; more would cost ingest
/// time, which is not the point.
const REJECTED: usize = 300;

/// How many such requests are sent at once on an HTTP/1.1 connection.
const UNREAD: usize = 4;

/// The receive buffer of a client that reads nothing, in bytes.
const ROOM: u32 = 4096;

/// The largest TCP segment of such a client. With the 64 kB of the loopback device the kernel would buffer
/// megabytes for it.
const SEGMENT: u32 = 536;

/// The time over which the slow clients connect. A thousand at once would only test how fast a debug build
/// accepts connections.
const GATHER: Duration = Duration::from_secs(6);

/// How long normal clients are measured without and with slow ones.
const MEASURE: Duration = Duration::from_secs(5);

/// The number of normal clients, and the pause of each after an answer.
const HONEST: usize = 10;
const PAUSE: Duration = Duration::from_millis(40);

/// The first request of each normal client. It must be answered, but its latency is not judged: its
/// connection waits behind a thousand others.
const FIRST: &str = "first PUT";

/// How long a normal client waits for an answer.
const TIMEOUT: Duration = Duration::from_secs(10);

/// How much longer the median and the 99th percentile of normal requests may be with slow clients, as a
/// factor.
const TIMES: u32 = 2;

/// A 99th percentile below this is always good enough, because a debug build on a busy machine varies: each
/// client sends some eighty requests, so one standstill of the disk decides it. A request that has to wait
/// for slow clients would take half a minute.
const FLOOR: Duration = Duration::from_millis(1500);

/// A median below this is always good enough. It takes many slow answers to move it, so its floor is lower:
/// even the 99th percentile was below 130 ms in debug builds on two cores.
const FLOOR_OF_MEDIAN: Duration = Duration::from_millis(300);

pub(super) async fn slow_connections(cluster: &mut Cluster, label: &str) -> Result<Lifted> {
    let client = |address, number, present: Arc<AtomicUsize>| async move {
        let _ = connection(address, number, &present).await;
    };
    beside_slow(cluster, label, SLOW, client).await
}

pub(super) async fn slow_streams(cluster: &mut Cluster, label: &str) -> Result<Lifted> {
    let client = |address, _, present: Arc<AtomicUsize>| async move {
        let _ = streams(address, &present).await;
    };
    beside_slow(cluster, label, SLOW / STREAMS, client).await
}

/// Measures normal clients beside so many slow ones. A slow one comes again, whether it was refused, given up
/// or answered.
async fn beside_slow<F: Future<Output = ()> + Send>(
    cluster: &Cluster,
    label: &str,
    clients: usize,
    client: impl Fn(SocketAddr, usize, Arc<AtomicUsize>) -> F + Send + Sync + 'static,
) -> Result<Lifted> {
    let honest = Honest { url: &cluster.ingest_url, bearer: None };
    let address = honest.address()?;
    let present = Arc::new(AtomicUsize::new(0));
    let slow = {
        let present = Arc::clone(&present);
        async move {
            let clients = (0..clients).map(async |number| {
                come(number, clients).await;
                loop {
                    client(address, number, Arc::clone(&present)).await;
                    tokio::time::sleep(BACK).await;
                }
            });
            join_all(clients).await;
        }
    };
    honest.beside(label, slow, SLOW, &present).await
}

/// Waits until it is the turn of client `number` of `all`.
pub(super) async fn come(number: usize, all: usize) {
    let share = |count: usize| u32::try_from(count).expect("there are a thousand");
    tokio::time::sleep(GATHER * share(number) / share(all)).await;
}

/// Normal clients of an ingest.
pub(super) struct Honest<'a> {
    pub(super) url: &'a str,
    /// The value of the header `Authorization`, if ingest asks for a token.
    pub(super) bearer: Option<&'a str>,
}

impl Honest<'_> {
    pub(super) fn address(&self) -> Result<SocketAddr> {
        self.url.replace("http://", "").parse().with_context(|| self.url.to_owned())
    }

    /// Measures normal clients alone, and then beside so many slow ones.
    pub(super) async fn beside(
        &self,
        label: &str,
        slow: impl Future<Output = ()> + Send + 'static,
        many: usize,
        present: &AtomicUsize,
    ) -> Result<Lifted> {
        let mut expected = ExpectedCounts::default();
        let quiet = self.send(&format!("quiet.{label}"), &mut expected).await;
        let mut slow_clients = JoinSet::new();
        slow_clients.spawn(slow);
        let begun = Instant::now();
        while present.load(Ordering::Relaxed) < many && begun.elapsed() < GATHER + GATHER / 2 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let gathered = present.load(Ordering::Relaxed);
        let beside = self.send(&format!("beside.{label}"), &mut expected).await;
        slow_clients.abort_all();
        let ended = slow_clients.join_next().await;
        let mut lifted = Lifted { expected, ..Lifted::now() };
        // They go on until they are stopped, unless one of them panics.
        if let Some(Err(error)) = ended
            && error.is_panic()
        {
            lifted.failures.push(format!("the slow clients have ended: {error}"));
        }
        let mut words = Vec::new();
        for (kind, latencies) in &beside.latencies {
            let quiet: &[Duration] = quiet.latencies.get(kind).map_or(&[], Vec::as_slice);
            for (percent, floor) in [(50, FLOOR_OF_MEDIAN), (99, FLOOR)] {
                let (quiet, now) = (percentile(quiet, percent), percentile(latencies, percent));
                let line = format!("p{percent} of {kind} {:.0} ms, quiet {:.0}", millis(now), millis(quiet));
                if *kind != FIRST && now > floor.max(quiet * TIMES) {
                    lifted.failures.push(format!("beside {gathered} slow clients: {line}"));
                }
                if percent == 99 {
                    words.push(line);
                }
            }
        }
        lifted.failures.extend(quiet.wrong.into_iter().chain(beside.wrong).take(3));
        // Some may be reconnecting.
        if gathered < many / 2 {
            lifted.failures.push(format!("only {gathered} of {many} slow clients were connected"));
        }
        lifted.note = Some(format!("{} beside {gathered} slow clients", words.join(", ")));
        Ok(lifted)
    }
    /// Sends PUTs and bulk requests in turn for some seconds.
    async fn send(&self, label: &str, expected: &mut ExpectedCounts) -> Measured {
        let measured = RefCell::new(Measured::default());
        let bounds = RefCell::new(Vec::new());
        let clients = (0..HONEST).map(|client| {
            let (measured, bounds) = (&measured, &bounds);
            async move {
                let http = HttpClient::with_keep_alive();
                let mut until = Instant::now();
                for number in 0.. {
                    if number == 1 {
                        until = Instant::now() + MEASURE;
                    } else if number > 0 && Instant::now() >= until {
                        return;
                    }
                    let domain = format!("h{client}-{number}.{label}.test");
                    let (kind, events, request) = match number {
                        0 => (FIRST, 1, self.put(&domain)),
                        even if even % 2 == 0 => ("PUT", 1, self.put(&domain)),
                        _ => ("POST", 20, self.post(&domain, 20)),
                    };
                    let sent = Instant::now();
                    let answer = http.send(request, TIMEOUT).await;
                    let good = measured.borrow_mut().add(kind, sent.elapsed(), &answer);
                    bounds.borrow_mut().push((domain, if good { events } else { 0 }, events));
                    tokio::time::sleep(PAUSE).await;
                }
            }
        });
        join_all(clients).await;
        for (domain, least, most) in bounds.into_inner() {
            expected.expect(domain, least, most);
        }
        measured.into_inner()
    }

    fn put(&self, domain: &str) -> Request<Full<Bytes>> {
        let request = self.authorized(Request::put(format!("{}/events/{domain}/delivered", self.url)));
        request.body(Full::default()).expect("it is a request")
    }

    fn post(&self, domain: &str, events: usize) -> Request<Full<Bytes>> {
        let body = format!("{{\"domain\":\"{domain}\",\"event\":\"delivered\"}}\n").repeat(events);
        let request = self.authorized(Request::post(format!("{}/events", self.url)));
        let request = request.header(header::CONTENT_TYPE, "application/x-ndjson");
        request.body(Full::from(body)).expect("it is a request")
    }

    fn authorized(&self, request: Builder) -> Builder {
        match self.bearer {
            Some(bearer) => request.header(header::AUTHORIZATION, bearer),
            None => request,
        }
    }
}

/// Latencies by kind of request, and wrong answers.
#[derive(Debug, Default)]
struct Measured {
    latencies: BTreeMap<&'static str, Vec<Duration>>,
    wrong: Vec<String>,
}

impl Measured {
    /// Adds an answer and returns whether it is a good one. A missing answer counts with the time it was
    /// waited for.
    fn add(&mut self, kind: &'static str, took: Duration, answer: &HttpResult) -> bool {
        let good = answer.as_ref().is_ok_and(|(status, _)| *status == StatusCode::ACCEPTED);
        self.latencies.entry(kind).or_default().push(took);
        if !good {
            self.wrong.push(format!("a normal {kind} after {took:?}: {answer:?}"));
        }
        good
    }
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// Counts the slow clients that are connected.
pub(super) struct Present<'a>(&'a AtomicUsize);

impl<'a> Present<'a> {
    pub(super) fn new(present: &'a AtomicUsize) -> Self {
        present.fetch_add(1, Ordering::Relaxed);
        Self(present)
    }
}

impl Drop for Present<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One slow client of HTTP/1.1, until it is given up.
async fn connection(address: SocketAddr, number: usize, present: &AtomicUsize) -> std::io::Result<()> {
    let socket = TcpSocket::new_v4()?;
    let reads_nothing = number.is_multiple_of(READS_NOTHING);
    if reads_nothing {
        socket.set_recv_buffer_size(ROOM)?;
        SockRef::from(&socket).set_tcp_mss(SEGMENT)?;
    }
    let mut stream: TcpStream = socket.connect(address).await?;
    let head = |size: usize| {
        format!(
            "POST /events HTTP/1.1\r\n\
            host: localhost\r\ncontent-type: application/x-ndjson\r\ncontent-length: {size}\r\n\r\n"
        )
    };
    if reads_nothing {
        let body = "{}\n".repeat(REJECTED);
        let request = format!("{}{body}", head(body.len()));
        let _present = Present::new(present);
        stream.write_all(request.repeat(UNREAD).as_bytes()).await?;
        // Waits until ingest gives it up, which shows as an error of the socket.
        loop {
            tokio::time::sleep(TRICKLE).await;
            if let Some(error) = stream.take_error()? {
                return Err(error);
            }
        }
    }
    stream.write_all(head(BODY).as_bytes()).await?;
    let _present = Present::new(present);
    let mut answer = [0];
    loop {
        stream.write_all(b"{}\n").await?;
        // An answer before the end of the body means that ingest has given it up.
        if let Ok(read) = tokio::time::timeout(TRICKLE, stream.peek(&mut answer)).await {
            read?;
            return Ok(());
        }
    }
}

/// Slow streams of one connection, until it is given up or all of them are.
async fn streams(address: SocketAddr, present: &AtomicUsize) -> anyhow::Result<()> {
    let stream = TcpStream::connect(address).await?;
    let (requests, connection) = client::Builder::new()
        .initial_window_size(ROOM)
        .initial_connection_window_size(1 << 20)
        .enable_push(false)
        .handshake::<_, Bytes>(stream)
        .await?;
    let slow = join_all((0..STREAMS).map(|number| {
        let mut requests = requests.clone();
        async move {
            loop {
                poll_fn(|context| requests.poll_ready(context)).await?;
                let request = Request::post("http://localhost/events");
                let request = request.header(header::CONTENT_TYPE, "application/x-ndjson");
                let request = request.body(()).expect("it is a request");
                let (answer, mut body) = requests.send_request(request, false)?;
                let _present = Present::new(present);
                if number.is_multiple_of(READS_NOTHING) {
                    body.send_data(Bytes::from("{}\n".repeat(REJECTED)), true)?;
                    let answer = answer.await?;
                    // The flow-control window is not opened, so the rest of the answer stays with the server.
                    let _unread = answer.into_body();
                    poll_fn(|context| body.poll_reset(context)).await?;
                } else {
                    while body.send_data(Bytes::from_static(b"{}\n"), false).is_ok() {
                        tokio::time::sleep(TRICKLE).await;
                    }
                }
                tokio::time::sleep(BACK).await;
            }
        }
    }));
    let slow = async {
        let ended: Vec<anyhow::Result<()>> = slow.await;
        ended.into_iter().collect()
    };
    tokio::select! {
        ended = connection => Ok(ended?),
        ended = slow => ended,
    }
}
