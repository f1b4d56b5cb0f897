//! Clients that take their time, beside honest ones that must not notice.

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
use h2::client::Builder;
use harness::expected::ExpectedCounts;
use harness::http::{HttpClient, HttpResult};
use harness::stats::percentile;
use http_body_util::Full;
use hyper::{Request, StatusCode, header};
use socket2::SockRef;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;

use super::Lifted;
use crate::cluster::Cluster;

/// Connections of HTTP/1.1, or streams of HTTP/2.
const SLOW: usize = 1000;

/// Of so many slow ones one reads no answer; the bodies of the others trickle in.
const READS_NOTHING: usize = 4;

/// Streams of one connection.
const STREAMS: usize = 50;

/// How often a few bytes of each body come.
const TRICKLE: Duration = Duration::from_millis(700);

/// How soon a slow client is back that was given up.
const BACK: Duration = Duration::from_secs(1);

/// What a trickling body says it has.
const BODY: usize = 1 << 20;

/// Unreadable events of a request whose answer, some 20 kB, nobody reads: to name them is work, which is not
/// what these clients are about.
const REJECTED: usize = 300;

/// Such requests on one connection of HTTP/1.1, sent at once.
const UNREAD: usize = 4;

/// Bytes a client that reads nothing has room for.
const ROOM: u32 = 4096;

/// The largest segment that such a client takes. With those of the loopback, which have 64 kB, the kernel of
/// the server would keep megabytes for it.
const SEGMENT: u32 = 536;

/// In which time the slow clients come, one after the other: a thousand connections at once would be a matter
/// of their being accepted, which takes milliseconds each in a build for debugging.
const GATHER: Duration = Duration::from_secs(6);

/// How long the honest ones are measured without slow ones, and with them.
const MEASURE: Duration = Duration::from_secs(5);

/// Honest requests: how many at a time, and the pause of each after an answer.
const HONEST: usize = 10;
const PAUSE: Duration = Duration::from_millis(40);

/// The first request of each, for which a connection is made behind a thousand others that are being
/// accepted. It is answered, which is all that is asked of it.
const FIRST: &str = "first PUT";

/// How long an honest client waits.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The 99th percentile of honest requests may be so many times what it is without slow clients.
const TIMES: u32 = 2;

/// Below this it may be whatever it is: on a machine that does ten other things, in a build for debugging, a
/// quiet moment says little. Who has to wait for slow clients waits for them, and they take half a minute.
const FLOOR: Duration = Duration::from_millis(1500);

pub(super) async fn slow_connections(cluster: &mut Cluster, label: &str) -> Result<Lifted> {
    let address = address(cluster)?;
    let present = Arc::new(AtomicUsize::new(0));
    let slow = {
        let present = Arc::clone(&present);
        async move {
            let clients = (0..SLOW).map(|number| {
                let present = Arc::clone(&present);
                async move {
                    come(number, SLOW).await;
                    loop {
                        // Whether it is refused, given up or answered: it comes again.
                        let _ = connection(address, number, &present).await;
                        tokio::time::sleep(BACK).await;
                    }
                }
            });
            join_all(clients).await;
        }
    };
    beside(cluster, label, slow, &present).await
}

pub(super) async fn slow_streams(cluster: &mut Cluster, label: &str) -> Result<Lifted> {
    let address = address(cluster)?;
    let present = Arc::new(AtomicUsize::new(0));
    let slow = {
        let present = Arc::clone(&present);
        async move {
            let connections = (0..SLOW / STREAMS).map(async |number| {
                come(number, SLOW / STREAMS).await;
                loop {
                    let _ = streams(address, &present).await;
                    tokio::time::sleep(BACK).await;
                }
            });
            join_all(connections).await;
        }
    };
    beside(cluster, label, slow, &present).await
}

/// Waits for the turn of this one of all.
async fn come(number: usize, all: usize) {
    let share = |count: usize| u32::try_from(count).expect("there are a thousand");
    tokio::time::sleep(GATHER * share(number) / share(all)).await;
}

fn address(cluster: &Cluster) -> Result<SocketAddr> {
    cluster.ingest_url.replace("http://", "").parse().with_context(|| cluster.ingest_url.clone())
}

/// Measures honest clients alone, and beside slow ones.
async fn beside(
    cluster: &Cluster,
    label: &str,
    slow: impl Future<Output = ()> + Send + 'static,
    present: &AtomicUsize,
) -> Result<Lifted> {
    let mut expected = ExpectedCounts::default();
    let quiet = honest(cluster, &format!("quiet.{label}"), &mut expected).await;
    let mut slow_clients = JoinSet::new();
    slow_clients.spawn(slow);
    let begun = Instant::now();
    while present.load(Ordering::Relaxed) < SLOW && begun.elapsed() < GATHER + GATHER / 2 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let gathered = present.load(Ordering::Relaxed);
    let beside = honest(cluster, &format!("beside.{label}"), &mut expected).await;
    slow_clients.shutdown().await;
    let mut lifted = Lifted { expected, ..Lifted::now() };
    let mut words = Vec::new();
    for (kind, latencies) in &beside.latencies {
        let quiet = percentile(quiet.latencies.get(kind).map_or(&[], Vec::as_slice), 99);
        let now = percentile(latencies, 99);
        let line = format!("p99 of {kind} {:.0} ms, quiet {:.0}", millis(now), millis(quiet));
        if *kind != FIRST && now > FLOOR.max(quiet * TIMES) {
            lifted.failures.push(format!("beside {gathered} slow ones: {line}"));
        }
        words.push(line);
    }
    lifted.failures.extend(quiet.wrong.into_iter().chain(beside.wrong).take(3));
    // Some are given up and on their way back.
    if gathered < SLOW / 2 {
        lifted.failures.push(format!("only {gathered} of {SLOW} slow clients came"));
    }
    lifted.note = Some(format!("{} beside {gathered} slow ones", words.join(", ")));
    Ok(lifted)
}

/// Latencies by kind of request, and what was not answered as it should be.
#[derive(Debug, Default)]
struct Measured {
    latencies: BTreeMap<&'static str, Vec<Duration>>,
    wrong: Vec<String>,
}

impl Measured {
    /// Adds an answer and tells whether it is a good one. What is not answered took that long all the same.
    fn add(&mut self, kind: &'static str, took: Duration, answer: &HttpResult) -> bool {
        let good = answer.as_ref().is_ok_and(|(status, _)| *status == StatusCode::ACCEPTED);
        self.latencies.entry(kind).or_default().push(took);
        if !good {
            self.wrong.push(format!("an honest {kind} after {took:?}: {answer:?}"));
        }
        good
    }
}

/// PUTs and bulk requests, half of each, for some seconds.
async fn honest(cluster: &Cluster, label: &str, expected: &mut ExpectedCounts) -> Measured {
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
                    0 => (FIRST, 1, put(&cluster.ingest_url, &domain)),
                    even if even % 2 == 0 => ("PUT", 1, put(&cluster.ingest_url, &domain)),
                    _ => ("POST", 20, post(&cluster.ingest_url, &domain, 20)),
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

fn put(url: &str, domain: &str) -> Request<Full<Bytes>> {
    let request = Request::put(format!("{url}/events/{domain}/delivered"));
    request.body(Full::default()).expect("it is a request")
}

fn post(url: &str, domain: &str, events: usize) -> Request<Full<Bytes>> {
    let body = format!("{{\"domain\":\"{domain}\",\"event\":\"delivered\"}}\n").repeat(events);
    let request = Request::post(format!("{url}/events")).header(header::CONTENT_TYPE, "application/x-ndjson");
    request.body(Full::from(body)).expect("it is a request")
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// Counts those who are there.
struct Present<'a>(&'a AtomicUsize);

impl<'a> Present<'a> {
    fn new(present: &'a AtomicUsize) -> Self {
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
            host: slow\r\ncontent-type: application/x-ndjson\r\ncontent-length: {size}\r\n\r\n"
        )
    };
    if reads_nothing {
        let body = "{}\n".repeat(REJECTED);
        let request = format!("{}{body}", head(body.len()));
        let _present = Present::new(present);
        stream.write_all(request.repeat(UNREAD).as_bytes()).await?;
        // Until it is given up: what was sent is not read, an error is.
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
        // An answer before the end of the body is that it is given up.
        if let Ok(read) = tokio::time::timeout(TRICKLE, stream.peek(&mut answer)).await {
            read?;
            return Ok(());
        }
    }
}

/// Slow streams of one connection, until it is given up or all of them are.
async fn streams(address: SocketAddr, present: &AtomicUsize) -> anyhow::Result<()> {
    let stream = TcpStream::connect(address).await?;
    let (requests, connection) = Builder::new()
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
                let request = Request::post("http://slow/events");
                let request = request.header(header::CONTENT_TYPE, "application/x-ndjson");
                let request = request.body(()).expect("it is a request");
                let (answer, mut body) = requests.send_request(request, false)?;
                let _present = Present::new(present);
                if number.is_multiple_of(READS_NOTHING) {
                    body.send_data(Bytes::from("{}\n".repeat(REJECTED)), true)?;
                    let answer = answer.await?;
                    // Without its window being opened, what remains of it stays with the server.
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
