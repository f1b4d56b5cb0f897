//! What clients can take of ingest and of the standalone: memory and time, by sending much, slowly or
//! nothing, and by not listening.

use std::fs;
use std::io::Write;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use futures::FutureExt;
use futures::future::join_all;
use harness::processes::{LONG_DEADLINE, Service};
use harness::proxy::{Proxy, Wire, host};
use harness::servers::{Servers, eventually};
use harness::system::System;
use hyper::{Method, Request, StatusCode, header};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

const NDJSON: (&str, &str) = ("content-type", "application/x-ndjson");
const GZIP: (&str, &str) = ("content-encoding", "gzip");
const EVENT: &str = "{\"domain\":\"bounds.example\",\"event\":\"delivered\"}\n";
const LARGEST_BODY: usize = 10 * 1024 * 1024;
const MIB: u64 = 1024 * 1024;

/// The smallest budget there is, so that a test can use it up.
const SMALL_BUDGET: (&str, &str) = ("CATCHALL_BODY_BUDGET_MIB", "32");

/// Room for one connection.
const ONE_PLACE: [(&str, &str); 2] = [("CATCHALL_THREADS", "1"), ("CATCHALL_MAX_CONNECTIONS", "1")];

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A body that unpacks to so many bytes, and whose end is still to come.
fn gzip_without_end(bytes: usize) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(&vec![b' '; bytes]).unwrap();
    encoder.flush().unwrap();
    encoder.get_ref().clone()
}

/// The most memory that a process has had so far, in bytes.
fn peak_memory(service: &Service) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", service.pid())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    peak.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

/// What the process shows to hold for bodies.
async fn body_bytes(service: &Service) -> u64 {
    let (_, page) = service.ops("/metrics").await;
    let line = page.lines().find_map(|line| line.strip_prefix("catchall_ingest_body_bytes "));
    line.map_or(0, |bytes| bytes.parse().unwrap())
}

async fn is_answered_by_202(ingest: &Service, body: impl Into<Bytes>) {
    let (status, _, answer) = ingest.request(Method::POST, "/events", &[NDJSON], body).await;
    assert_eq!(status, StatusCode::ACCEPTED, "{answer}");
}

/// Waits until one more connection is served.
async fn a_place_is_free(ingest: &Service) {
    eventually("a place is free", async || {
        let mut next = TcpStream::connect(ingest.address()).await.unwrap();
        let put = "PUT /events/bounds.example/delivered HTTP/1.1\r\nHost: localhost\r\n\r\n";
        // It may be closed before it has said anything.
        let _ = next.write_all(put.as_bytes()).await;
        let mut answer = [0; 12];
        next.read_exact(&mut answer).await.ok().filter(|_| answer == *b"HTTP/1.1 202")
    })
    .await;
}

/// A bulk request by hand.
struct Sender(TcpStream);

impl Sender {
    /// Sends the head, and says that a body follows.
    async fn begin(address: &str, more_headers: &str) -> Self {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let head = format!(
            "POST /events HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-ndjson\r\n\
             {more_headers}Transfer-Encoding: chunked\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        Self(stream)
    }

    /// Sends a piece of the body.
    async fn send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        let chunk = [format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat();
        self.0.write_all(&chunk).await
    }

    async fn end(&mut self) {
        self.0.write_all(b"0\r\n\r\n").await.unwrap();
    }

    /// Whether nothing has come back yet.
    fn is_open(&self) -> bool {
        self.0.peek(&mut [0]).now_or_never().is_none()
    }

    /// The beginning of the answer, which is enough to tell it.
    async fn answer(&mut self) -> String {
        let mut answer = vec![0; 1024];
        let size = self.0.read(&mut answer).await.unwrap();
        String::from_utf8(answer[..size].to_vec()).unwrap()
    }
}

#[tokio::test]
async fn a_small_request_cannot_make_a_large_answer_or_take_much_memory() {
    let check = async |system: System| {
        let ingest = system.events();
        let text = "\u{7f}".repeat(LARGEST_BODY - 100);
        let packed = gzip(format!("{{\"count\":\"{text}\"}}").as_bytes());
        assert!(packed.len() < 20_000);
        let quiet = peak_memory(ingest);
        let headers = [NDJSON, GZIP];
        let requests =
            join_all((0..20).map(|_| ingest.request(Method::POST, "/events", &headers, packed.clone())));
        let mut read = 0;
        for (status, _, body) in requests.await {
            // Some may have waited in vain for memory.
            assert!(matches!(status.as_u16(), 400 | 503), "{status} {body:.1000}");
            assert!(body.len() < 1000, "{} bytes: {body:.1000}", body.len());
            read += usize::from(status == StatusCode::BAD_REQUEST);
        }
        assert!(read > 0, "all have waited in vain, and none was read");
        let taken = (peak_memory(ingest) - quiet) / MIB;
        // 16 MiB each to unpack and to parse, if all came at once.
        assert!(taken < 400, "{taken} MiB");
        // Once this is in the log, so is all that was logged before.
        ingest.signal("TERM");
        ingest.logs("stopping on SIGTERM").await;
        for line in ingest.log() {
            assert!(line.len() < 1500, "{} bytes: {line:.1000}", line.len());
        }
    };
    join_all(System::both(&[]).await.map(check)).await;
}

#[tokio::test]
async fn what_is_sent_is_repeated_only_in_part() {
    let check = async |system: System| {
        let ingest = system.events();
        let query = system.domains();
        let long = "x".repeat(8000);
        let quotes = "%22".repeat(2000);
        let (put, post, get) = (Method::PUT, Method::POST, Method::GET);
        for (service, method, path, headers) in [
            (ingest, &put, format!("/events/{long}/delivered"), &[][..]),
            (ingest, &put, format!("/events/{quotes}/delivered"), &[]),
            (ingest, &put, format!("/events/a.com/{quotes}"), &[]),
            (ingest, &put, format!("/{long}"), &[]),
            (ingest, &get, format!("/events/{long}/delivered"), &[]),
            (ingest, &put, "/events/a.com/delivered".into(), &[("idempotency-key", &*long)]),
            (ingest, &post, "/events".into(), &[("content-type", &*long)]),
            (ingest, &post, "/events".into(), &[NDJSON, ("content-encoding", &*long)]),
            (query, &get, format!("/domains/{quotes}"), &[]),
            (query, &get, format!("/{long}"), &[]),
            (query, &put, format!("/domains/{long}"), &[]),
        ] {
            let (status, _, body) = service.request(method.clone(), &path, headers, "{}").await;
            assert!(status.is_client_error(), "{method} {path:.40}: {status}");
            let problem: Value = serde_json::from_str(&body).unwrap();
            let detail = problem["detail"].as_str().unwrap();
            assert!(detail.len() < 500, "{method} {path:.40}: {detail}");
        }
        // A head beyond what is buffered is refused by the server itself.
        let path = format!("/events/{}/delivered", "x".repeat(20_000));
        assert_eq!(ingest.put(&path).await, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
    };
    join_all(System::both(&[]).await.map(check)).await;
}

#[tokio::test]
async fn slow_bodies_keep_nobody_waiting() {
    let check = async |system: System| {
        let ingest = system.events();
        let address = ingest.address();
        // With so much of it a body gets the longest time there is, half a minute: the machine may be busy.
        let begun = [" ".repeat(320 * 1024).as_bytes(), b"{\"domain\":"].concat();
        let mut slow = Vec::new();
        for _ in 0..100 {
            let mut sender = Sender::begin(&address, "").await;
            sender.send(&begun).await.unwrap();
            slow.push(sender);
        }
        let stream = TcpStream::connect(&address).await.unwrap();
        let (requests, connection) = h2::client::handshake(stream).await.unwrap();
        tokio::spawn(connection);
        let mut slow_streams = Vec::new();
        for _ in 0..100 {
            let request = Request::post(format!("http://{address}/events")).header(NDJSON.0, NDJSON.1);
            let mut requests = requests.clone().ready().await.unwrap();
            let (answer, mut body) = requests.send_request(request.body(()).unwrap(), false).unwrap();
            body.send_data(begun.clone().into(), false).unwrap();
            slow_streams.push((answer, body));
        }
        for _ in 0..2 {
            is_answered_by_202(ingest, EVENT.repeat(100)).await;
            assert_eq!(ingest.put("/events/bounds.example/delivered").await, StatusCode::ACCEPTED);
        }
        assert!(slow.iter().all(Sender::is_open), "a slow body was not there any more to be in the way");
        for (answer, _) in &mut slow_streams {
            assert!(answer.now_or_never().is_none());
        }
        // And they are as good as any other once they are whole.
        slow[0].send(b"\"bounds.example\",\"event\":\"delivered\"}").await.unwrap();
        slow[0].end().await;
        assert!(slow[0].answer().await.starts_with("HTTP/1.1 202"));
        system.settle_at("bounds.example", 203, 0).await;
    };
    join_all(System::both(&[("CATCHALL_THREADS", "1")]).await.map(check)).await;
}

#[tokio::test]
async fn a_body_that_comes_too_slowly_is_given_up() {
    let check = async |system: System| {
        let ingest = system.events();
        let mut slow = Sender::begin(&ingest.address(), "").await;
        slow.send(EVENT.as_bytes()).await.unwrap();
        // It is never silent, and would have been allowed a whole minute by a limit on that.
        while slow.is_open() {
            let _ = slow.send(b"\n").await;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        // The first byte of the answer is gone.
        let answer = slow.answer().await;
        assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
        assert!(answer.contains("\"urn:catchall:problem:timeout\""), "{answer}");
        system.settle_at("bounds.example", 0, 0).await;
    };
    join_all(System::both(&[]).await.map(check)).await;
}

#[tokio::test]
async fn who_keeps_memory_loses_it_to_who_needs_it() {
    let check = async |system: System| {
        let ingest = system.events();
        let packed = gzip_without_end(LARGEST_BODY - 1024);
        let mut keepers = Vec::new();
        for _ in 0..12 {
            let mut keeper = Sender::begin(&ingest.address(), "Content-Encoding: gzip\r\n").await;
            keeper.send(&packed).await.unwrap();
            keepers.push(keeper);
        }
        eventually("the budget is used up", async || (body_bytes(ingest).await > 20 * MIB).then_some(()))
            .await;
        let filler = " ".repeat(1000);
        let body = format!("{filler}{EVENT}").repeat(5000);
        is_answered_by_202(ingest, body).await;
        eventually("a keeper is refused", async || {
            keepers.iter().any(|keeper| !keeper.is_open()).then_some(())
        })
        .await;
        let mut refused = 0;
        for keeper in &mut keepers {
            if keeper.is_open() {
                continue;
            }
            let answer = keeper.answer().await;
            // On a slow machine its own time may be over too.
            if answer.starts_with("HTTP/1.1 408") {
                continue;
            }
            assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
            assert!(answer.contains("retry-after: 1"), "{answer}");
            assert!(answer.contains("\"urn:catchall:problem:not-counted\""), "{answer}");
            refused += 1;
        }
        assert!(refused > 0);
        assert!(peak_memory(ingest) < 300 * MIB, "{}", peak_memory(ingest) / MIB);
    };
    join_all(System::both(&[SMALL_BUDGET]).await.map(check)).await;
}

#[tokio::test]
async fn what_finds_no_memory_in_time_is_refused_and_not_counted() {
    let servers = Servers::fresh().await;
    let broker = Proxy::to(host(&servers.amqp_url), true).await;
    let through = Servers { amqp_url: broker.through(&servers.amqp_url), ..servers.clone() };
    let variables = [LONG_DEADLINE, SMALL_BUDGET, ("CATCHALL_MAX_WAITING_EVENTS", "10000000")];
    let ingest = Service::ready("ingest", &through, &variables).await;
    // Nothing is confirmed, so whatever has been read is held, and nobody is slow.
    broker.be(Wire::Slow(Duration::from_secs(5)));
    let label = "x".repeat(60);
    let events = (0..10_000).map(|i| {
        format!(
            "{{\"domain\":\"{label}.{label}.{label}.bounds.example\",\
        \"event\":\"delivered\",\"id\":\"{i}\"}}\n"
        )
    });
    let body: String = events.collect();
    let answers = join_all((0..20).map(|request| {
        let body = body.replace("\"id\":\"", &format!("\"id\":\"{request}-"));
        ingest.request(Method::POST, "/events", &[NDJSON], body)
    }));
    let answers = answers.await;
    let accepted = answers.iter().filter(|(status, ..)| *status == StatusCode::ACCEPTED).count();
    for (status, headers, body) in &answers {
        if *status != StatusCode::ACCEPTED {
            assert_eq!(*status, StatusCode::SERVICE_UNAVAILABLE, "{body}");
            assert_eq!(headers[header::RETRY_AFTER], "1");
            assert!(body.contains("\"urn:catchall:problem:not-counted\""), "{body}");
        }
    }
    assert!((1..20).contains(&accepted), "{accepted}");
    broker.mend();
    let _worker = Service::ready("worker", &servers, &[]).await;
    let domain = format!("{label}.{label}.{label}.bounds.example");
    servers.settle_at(&domain, 10_000 * i64::try_from(accepted).unwrap(), 0).await;
}

#[tokio::test]
async fn an_answer_that_nobody_reads_ends_with_its_connection() {
    let check = async |system: System| {
        let ingest = system.events();
        let socket = TcpSocket::new_v4().unwrap();
        // As little as the kernel allows, so that it does not take the answer off the server's hands.
        socket.set_recv_buffer_size(1).unwrap();
        let mut deaf = socket.connect(ingest.address().parse::<SocketAddr>().unwrap()).await.unwrap();
        let line = format!("{{\"domain\":\"a.com\",\"event\":\"{}\"}}\n", "\u{7f}".repeat(60));
        let body = gzip(line.repeat(10_000).as_bytes());
        let head = format!(
            "POST /events HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-ndjson\r\n\
         Content-Encoding: gzip\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        deaf.write_all(&[head.as_bytes(), &body].concat()).await.unwrap();
        // Its memory is held for as long as it may be read.
        let held = async || Some(body_bytes(ingest).await).filter(|bytes| *bytes > 2 * MIB);
        let held = eventually("the answer is there", held).await;
        assert!(held < 16 * MIB, "{held}");
        // Nor does it keep its place, the only one.
        a_place_is_free(ingest).await;
        eventually("its memory is given back", async || (body_bytes(ingest).await == 0).then_some(())).await;
        let mut beginning = [0; 12];
        deaf.read_exact(&mut beginning).await.unwrap();
        assert_eq!(&beginning, b"HTTP/1.1 400");
    };
    join_all(System::both(&ONE_PLACE).await.map(check)).await;
}

#[tokio::test]
async fn a_peer_of_http2_that_is_gone_without_a_word_is_found() {
    let check = async |system: System| {
        let ingest = system.events();
        let wire = Proxy::to(&ingest.address(), false).await;
        wire.mend();
        let connected = async || TcpStream::connect(wire.address).await.ok();
        let stream = eventually("the wire is there", connected).await;
        let (mut requests, connection) = h2::client::handshake(stream).await.unwrap();
        tokio::spawn(connection);
        let request = Request::put(format!("http://{}/events/bounds.example/delivered", ingest.address()));
        let answer = requests.send_request(request.body(()).unwrap(), true).unwrap().0;
        assert_eq!(answer.await.unwrap().status(), StatusCode::ACCEPTED);
        wire.be(Wire::Silent);
        // Its place is free long before a connection would be called idle.
        let begun = std::time::Instant::now();
        a_place_is_free(ingest).await;
        assert!(begun.elapsed() > Duration::from_secs(10), "it was not the only place");
    };
    join_all(System::both(&ONE_PLACE).await.map(check)).await;
}
