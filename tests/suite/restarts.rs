//! Rolling restarts under load: a new process on the same port, then the old one stops, and not one request
//! fails.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;

use bytes::Bytes;
use futures::future::join_all;
use harness::processes::{LONG_DEADLINE, Service};
use harness::proxy::{Proxy, host};
use harness::servers::{Servers, eventually};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1, http2};
use hyper::{Request, Response, StatusCode, header};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

/// Restarts of one service. Each has its moments at which a connection can be lost, so that one would prove
/// little.
const RESTARTS: usize = 5;

/// Answers that a way of connecting has to get before the next step of a restart.
const STEP: u64 = 100;

/// Clients of each way.
const CLIENTS: usize = 4;

/// Requests under way at a time on a connection of HTTP/2.
const STREAMS: usize = 4;

/// How a client uses its connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    KeepAlive,
    ConnectionPerRequest,
    Http2,
}

const WAYS: [Way; 3] = [Way::KeepAlive, Way::ConnectionPerRequest, Way::Http2];

type Sent = Result<Response<Incoming>, TrySendError<Request<Full<Bytes>>>>;

/// A connection, and whether it has been answered on.
struct Connection {
    requests: Requests,
    used: bool,
}

enum Requests {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

impl Connection {
    async fn open(way: Way, address: &str) -> Result<Self, String> {
        let stream = TcpStream::connect(address).await.map_err(|error| format!("connecting: {error}"))?;
        stream.set_nodelay(true).map_err(|error| error.to_string())?;
        let stream = TokioIo::new(stream);
        let requests = if way == Way::Http2 {
            let (requests, connection) =
                http2::handshake(TokioExecutor::new(), stream).await.map_err(|error| format!("{error:?}"))?;
            tokio::spawn(connection);
            Requests::Http2(requests)
        } else {
            let (requests, connection) =
                http1::handshake(stream).await.map_err(|error| format!("{error:?}"))?;
            tokio::spawn(connection);
            Requests::Http1(requests)
        };
        Ok(Self { requests, used: false })
    }

    async fn ready(&mut self) -> hyper::Result<()> {
        match &mut self.requests {
            Requests::Http1(requests) => requests.ready().await,
            Requests::Http2(requests) => requests.ready().await,
        }
    }

    /// Sends the request once, or as often as there are streams.
    async fn send(&mut self, request: &Request<Full<Bytes>>) -> Vec<Sent> {
        match &mut self.requests {
            Requests::Http1(requests) => vec![requests.try_send_request(request.clone()).await],
            Requests::Http2(requests) => {
                let sent: Vec<_> = (0..STREAMS).map(|_| requests.try_send_request(request.clone())).collect();
                join_all(sent).await
            }
        }
    }
}

/// A client that does what every client does: it goes on using a connection until it is told to leave, and
/// opens another when it finds it closed before it sends. It never sends anything twice, so what is lost is
/// lost.
struct Client {
    way: Way,
    address: String,
    connection: Option<Connection>,
    failures: Vec<String>,
}

impl Client {
    /// Sends a request or several; returns how many were answered as expected.
    async fn round(&mut self, request: &Request<Full<Bytes>>, expected: StatusCode) -> u64 {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => match Connection::open(self.way, &self.address).await {
                Ok(connection) => connection,
                Err(error) => {
                    self.fails(&error);
                    return 0;
                }
            },
        };
        if let Err(error) = connection.ready().await {
            // Only one that was answered on may be closed, and only between two requests.
            if !connection.used {
                self.fails(&format!("{error:?}"));
            }
            return 0;
        }
        let (mut answered, mut stays) = (0, self.way != Way::ConnectionPerRequest);
        for sent in connection.send(request).await {
            match sent {
                Ok(response) => {
                    stays &= response.headers().get(header::CONNECTION).is_none_or(|value| value != "close");
                    let status = response.status();
                    match response.into_body().collect().await {
                        Ok(_) if status == expected => answered += 1,
                        Ok(_) => self.fails(&format!("answered with {status}")),
                        Err(error) => self.fails(&format!("the answer was cut: {error:?}")),
                    }
                }
                Err(mut error) => {
                    stays = false;
                    // What is handed back has not left.
                    if error.take_message().is_none() || !connection.used {
                        self.fails(&format!("{:?}", error.error()));
                    }
                }
            }
        }
        connection.used = true;
        self.connection = stays.then_some(connection);
        answered
    }

    fn fails(&mut self, reason: &str) {
        self.failures.push(format!("{:?}: {reason}", self.way));
    }
}

/// Clients of every way, on a thread of their own: they do not pause while the test starts and signals
/// processes.
struct Load {
    answered: Arc<[AtomicU64; WAYS.len()]>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<String>>,
}

impl Load {
    fn start(address: &str, request: &Request<Full<Bytes>>, expected: StatusCode) -> Self {
        let answered: Arc<[AtomicU64; WAYS.len()]> = Arc::default();
        let stop = Arc::new(AtomicBool::new(false));
        let clients = (0..CLIENTS).flat_map(|_| WAYS.into_iter().enumerate()).map(|(number, way)| {
            let mut client =
                Client { way, address: address.to_owned(), connection: None, failures: Vec::new() };
            let (request, answered, stop) = (request.clone(), Arc::clone(&answered), Arc::clone(&stop));
            async move {
                while !stop.load(Relaxed) {
                    answered[number].fetch_add(client.round(&request, expected).await, Relaxed);
                }
                client.failures
            }
        });
        let clients: Vec<_> = clients.collect();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(join_all(clients)).concat()
        });
        Self { answered, stop, thread }
    }

    /// Waits until each way has had some more answers.
    async fn goes_on(&self) {
        let before = self.answered();
        eventually("every client is answered", async || {
            let progress = self.answered().into_iter().zip(before).all(|(now, before)| now >= before + STEP);
            (progress || self.thread.is_finished()).then_some(())
        })
        .await;
    }

    fn answered(&self) -> [u64; WAYS.len()] {
        std::array::from_fn(|way| self.answered[way].load(Relaxed))
    }

    /// Stops the clients and returns how many requests were answered, all of them as expected.
    fn end(self) -> u64 {
        self.stop.store(true, Relaxed);
        let failures = self.thread.join().unwrap();
        let answered: u64 = self.answered.iter().map(|answered| answered.load(Relaxed)).sum();
        assert!(failures.is_empty(), "{} of {answered} failed: {failures:#?}", failures.len());
        answered
    }
}

/// Restarts a service under a load of one request; returns how many were answered.
async fn restart(
    name: &'static str,
    servers: &Servers,
    request: &str,
    expected: StatusCode,
) -> (Service, u64) {
    // The deadline is not the point: a busy machine may have a slow broker.
    let mut settings = vec![("CATCHALL_THREADS", "2"), LONG_DEADLINE];
    let mut old = Service::ready(name, servers, &settings).await;
    let address = old.address();
    settings.push(("CATCHALL_LISTEN", &address));
    // They are kept for their logs, which are printed should this fail.
    let mut gone = Vec::new();
    let (method, path) = request.split_once(' ').unwrap();
    // The whole URL: the one form of a request that both versions of HTTP send from.
    let request = Request::builder()
        .method(method)
        .uri(format!("http://{address}{path}"))
        .header(header::HOST, &address)
        .body(Full::default())
        .unwrap();
    let load = Load::start(&address, &request, expected);
    for _ in 0..RESTARTS {
        load.goes_on().await;
        let new = Service::ready(name, servers, &settings).await;
        load.goes_on().await;
        old.signal("TERM");
        assert!(old.ended().await.success());
        gone.push(std::mem::replace(&mut old, new));
    }
    load.goes_on().await;
    (old, load.end())
}

#[tokio::test]
async fn a_rolling_restart_of_ingest_fails_no_request_and_loses_no_event() {
    let servers = Servers::fresh().await;
    let request = "PUT /events/restarted.example/delivered";
    let (_ingest, accepted) = restart("ingest", &servers, request, StatusCode::ACCEPTED).await;
    let _worker = Service::ready("worker", &servers, &[]).await;
    servers.settle_at("restarted.example", i64::try_from(accepted).unwrap(), 0).await;
}

#[tokio::test]
async fn a_rolling_restart_of_query_fails_no_request() {
    let servers = Servers::fresh().await;
    let (query, _) = restart("query", &servers, "GET /domains/restarted.example", StatusCode::OK).await;
    query.answers("restarted.example", "unknown", 0, 0).await;
}

#[tokio::test]
async fn a_new_process_takes_no_clients_before_it_is_ready_unless_it_is_alone() {
    let servers = Servers::fresh().await;
    let old = Service::ready("ingest", &servers, &[LONG_DEADLINE]).await;
    let address = old.address();
    let wire = Proxy::to(host(&servers.amqp_url), false).await;
    let behind = Servers { amqp_url: wire.through(&servers.amqp_url), ..servers.clone() };
    let settings = [("CATCHALL_LISTEN", &*address), ("CATCHALL_PUBLISH_DEADLINE_MS", "300")];
    let ready_later = Service::launch("ingest", &behind, &settings).await;
    ready_later.becomes_unready("connection refused").await;
    // Each on a connection of its own, of which a process that listens too would get its share.
    for _ in 0..50 {
        assert_eq!(old.put("/events/a.com/delivered").await, StatusCode::ACCEPTED);
    }
    assert!(!ready_later.has_logged("open to clients"));
    wire.mend();
    ready_later.opens().await;
    ready_later.becomes_ready().await;

    wire.cut();
    ready_later.becomes_unready("broker: ").await;
    let never_ready = Service::launch("ingest", &behind, &settings).await;
    never_ready.becomes_unready("connection refused").await;
    old.signal("KILL");
    ready_later.signal("KILL");
    never_ready.opens().await;
    assert_eq!(never_ready.put("/events/a.com/delivered").await, StatusCode::SERVICE_UNAVAILABLE);
}
