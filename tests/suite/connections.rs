//! Connections by hand: those that say nothing, those beyond the cap, and how each kind is left at a stop.

use std::process::Command;
use std::time::{Duration, Instant};

use futures::future::join_all;
use harness::access::Access;
use harness::processes::{LONG_DEADLINE, Service};
use harness::program::binary;
use harness::servers::{Servers, eventually};
use harness::system::{System, data_file};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

/// A request that needs nothing but the process.
const OPTIONS: &str = "OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n";
const PUT: &str = "PUT /events/by-hand.example/delivered HTTP/1.1\r\nHost: localhost\r\n\r\n";
const ACCEPTED: &str = "HTTP/1.1 202 Accepted";

/// One address may have all connections, which are few.
const ALL_OF_ONE: (&str, &str) = ("CATCHALL_ADDRESS_CONNECTIONS", "2");

/// Each thread logs a trouble of its own.
const ONE_THREAD: (&str, &str) = ("CATCHALL_THREADS", "1");

/// A client of HTTP/1.1 that sees every byte.
struct Wire(BufReader<TcpStream>);

impl Wire {
    async fn to(address: &str) -> Self {
        Self(BufReader::new(TcpStream::connect(address).await.unwrap()))
    }

    /// A connection on which a request has been answered, and which stays.
    async fn used(address: &str) -> Self {
        let mut wire = Self::to(address).await;
        wire.say(PUT).await;
        wire.hears(ACCEPTED).await;
        wire
    }

    async fn say(&mut self, text: &str) {
        self.0.get_mut().write_all(text.as_bytes()).await.unwrap();
    }

    /// The next answer without its body; the connection has to be there for it.
    async fn answer(&mut self) -> String {
        let (mut head, mut length) = (String::new(), 0);
        loop {
            let begin = head.len();
            assert!(self.0.read_line(&mut head).await.unwrap() > 0, "closed after {head:?}");
            let line = head[begin..].trim_end().to_ascii_lowercase();
            if let Some(value) = line.strip_prefix("content-length: ") {
                length = value.parse().unwrap();
            }
            if line.is_empty() {
                break;
            }
        }
        let mut body = vec![0; length];
        self.0.read_exact(&mut body).await.unwrap();
        head.to_ascii_lowercase()
    }

    /// Expects this status.
    async fn hears(&mut self, status: &str) {
        let answer = self.answer().await;
        assert!(answer.starts_with(&status.to_ascii_lowercase()), "{answer:?}");
    }

    /// Expects this status, and to be told to leave with it.
    async fn hears_last(&mut self, status: &str) {
        let answer = self.answer().await;
        assert!(answer.starts_with(&status.to_ascii_lowercase()), "{answer:?}");
        assert!(leaves(&answer), "{answer:?}");
        self.is_closed_in_order().await;
    }

    /// Asks again and again what needs nothing but the process, and expects an answer each time, until it is
    /// told to leave.
    async fn asks_until_it_has_to_leave(&mut self) {
        loop {
            self.say(OPTIONS).await;
            let answer = self.answer().await;
            assert!(answer.starts_with("http/1.1 204"), "{answer:?}");
            if leaves(&answer) {
                break;
            }
        }
        self.is_closed_in_order().await;
    }

    /// Waits for the other side to close, whatever it says before that, and however.
    async fn is_closed(&mut self) {
        let _ = self.0.read_to_end(&mut Vec::new()).await;
    }

    /// Waits for the other side to close without another word.
    async fn is_closed_in_order(&mut self) {
        assert_eq!(self.0.read(&mut [0]).await.unwrap(), 0);
    }
}

/// Whether an answer tells its client to leave.
fn leaves(answer: &str) -> bool {
    answer.contains("\r\nconnection: close\r\n")
}

#[tokio::test]
async fn a_question_about_the_whole_server_is_answered() {
    let system = System::standalone(&[]).await;
    let mut wire = Wire::to(&system.events().address()).await;
    wire.say(OPTIONS).await;
    wire.hears("HTTP/1.1 204 No Content").await;
    wire.say("GET * HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    wire.hears("HTTP/1.1 404 Not Found").await;
}

#[tokio::test]
async fn a_connection_that_makes_no_request_is_closed() {
    let check = async |system: System| {
        let ingest = system.events();
        let mut in_use = Wire::used(&ingest.address()).await;
        let begun =
            ["", "PUT /events/by-hand.ex", "PRI * HTTP/2.0\r\n\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"];
        join_all(begun.map(async |text| {
            let mut silent = Wire::to(&ingest.address()).await;
            silent.say(text).await;
            silent.is_closed().await;
        }))
        .await;
        in_use.say(PUT).await;
        in_use.hears(ACCEPTED).await;
    };
    join_all(System::both(&[]).await.map(check)).await;
}

#[tokio::test]
async fn where_tokens_are_asked_for_a_stranger_is_closed_soon_and_a_holder_stays() {
    let access = Access::by_token();
    let data = data_file();
    let more = [LONG_DEADLINE, ("CATCHALL_DATA", data.to_str().unwrap())];
    let service = Service::guarded("standalone", &Servers::none(), &more, access).await;
    let address = service.address();
    let bearer = service.access().bearer.clone().unwrap();
    let put = PUT.replace("\r\n\r\n", &format!("\r\nAuthorization: {bearer}\r\n\r\n"));
    let (mut holder, mut stranger) = (Wire::to(&address).await, Wire::to(&address).await);
    holder.say(&put).await;
    holder.hears(ACCEPTED).await;
    let begun = Instant::now();
    stranger.say(PUT).await;
    stranger.hears("HTTP/1.1 401 Unauthorized").await;
    stranger.is_closed_in_order().await;
    assert!((9..30).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
    holder.say(&put).await;
    holder.hears(ACCEPTED).await;
}

/// A frame of HTTP/2 on the connection itself.
fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
    let size = u8::try_from(payload.len()).unwrap();
    [&[0, 0, size, kind, flags, 0, 0, 0, 0][..], payload].concat()
}

#[tokio::test]
async fn what_strangers_send_for_nothing_leaves_no_line_in_the_log() {
    const SETTINGS: u8 = 4;
    const PING: u8 = 6;
    const ACK: u8 = 1;
    let system = System::standalone(&[]).await;
    let service = system.events();
    let mut stream = TcpStream::connect(service.address()).await.unwrap();
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    stream.write_all(&frame(SETTINGS, 0, &[])).await.unwrap();
    // Answers to pings that nobody sent, and a ping whose answer comes after them.
    stream.write_all(&frame(PING, ACK, &[0; 8]).repeat(1000)).await.unwrap();
    stream.write_all(&frame(PING, 0, b"the last")).await.unwrap();
    let (mut heard, last) = (Vec::new(), frame(PING, ACK, b"the last"));
    while !heard.windows(last.len()).any(|frame| frame == last) {
        assert!(stream.read_buf(&mut heard).await.unwrap() > 0, "{heard:?}");
    }
    service.signal("TERM");
    service.logs("stopping on").await;
    let lines: Vec<_> = service.log().into_iter().filter(|line| line.contains("h2::")).collect();
    assert_eq!(lines, [""; 0]);
}

#[tokio::test]
async fn connections_beyond_the_cap_are_closed_until_a_place_is_free() {
    let check = async |system: System| {
        let ingest = system.events();
        let address = ingest.address();
        let (mut first, second) = (Wire::used(&address).await, Wire::used(&address).await);
        for _ in 0..3 {
            Wire::to(&address).await.is_closed().await;
        }
        first.say(PUT).await;
        first.hears(ACCEPTED).await;
        ingest.logs_times("closing further connections", 1).await;
        drop(second);
        eventually("its place is free", async || {
            let mut next = Wire::to(&address).await;
            // It may be closed before it has said anything.
            let _ = next.0.get_mut().write_all(PUT.as_bytes()).await;
            let mut line = String::new();
            next.0.read_line(&mut line).await.ok().filter(|_| line.trim_end() == ACCEPTED)
        })
        .await;
    };
    let few = [("CATCHALL_MAX_CONNECTIONS", "2"), ALL_OF_ONE, ONE_THREAD];
    join_all(System::both(&few).await.map(check)).await;
}

#[tokio::test]
async fn where_tokens_are_asked_for_holders_have_the_places_of_strangers() {
    let data = data_file();
    let few = [("CATCHALL_MAX_CONNECTIONS", "3"), ("CATCHALL_ADDRESS_CONNECTIONS", "100"), ONE_THREAD];
    let more = [&few[..], &[("CATCHALL_DATA", data.to_str().unwrap())]].concat();
    let service = Service::guarded("standalone", &Servers::none(), &more, Access::by_token()).await;
    let address = service.address();
    let bearer = service.access().bearer.clone().unwrap();
    let put = PUT.replace("\r\n\r\n", &format!("\r\nAuthorization: {bearer}\r\n\r\n"));
    let mut strangers = Vec::new();
    for _ in 0..3 {
        let mut stranger = Wire::to(&address).await;
        stranger.say(PUT).await;
        stranger.hears("HTTP/1.1 401 Unauthorized").await;
        strangers.push(stranger);
    }
    let mut holders = Vec::new();
    for mut stranger in strangers {
        let mut holder = Wire::to(&address).await;
        holder.say(&put).await;
        holder.hears(ACCEPTED).await;
        stranger.is_closed_in_order().await;
        holders.push(holder);
    }
    // All places are of holders now.
    Wire::to(&address).await.is_closed().await;
    for holder in &mut holders {
        holder.say(&put).await;
        holder.hears(ACCEPTED).await;
    }
    service.logs_times("closing connections that have shown no token", 1).await;
}

/// More connections than descriptors, from one address, leave enough for everything else.
#[tokio::test]
async fn with_few_descriptors_fewer_clients_may_connect() {
    let data = data_file();
    let mut program = Command::new("sh");
    program.args(["-c", &format!("ulimit -n 400 && exec '{}'", binary("standalone"))]);
    let more =
        [("CATCHALL_DATA", data.to_str().unwrap()), ("CATCHALL_ADDRESS_CONNECTIONS", "1000"), ONE_THREAD];
    let service = Service::ready_by(program, "standalone", &Servers::none(), &more).await;
    service.logs_times("only 200 clients may connect at a time instead of 10000", 1).await;
    let address = service.address();
    let mut crowd = Vec::new();
    for _ in 0..500 {
        crowd.push(Wire::to(&address).await);
    }
    service.logs_times("closing further connections", 1).await;
    service.becomes_ready().await;
    crowd[0].say(PUT).await;
    crowd[0].hears(ACCEPTED).await;
    assert!(!service.has_logged("Too many open files"));
}

#[tokio::test]
async fn a_service_without_descriptors_waits_for_them() {
    let check = async |system: System| {
        let ingest = system.events();
        let address = ingest.address();
        let mut in_use = Wire::used(&address).await;
        let pid = ingest.pid().to_string();
        let limited = Command::new("prlimit").args(["--nofile=64", "--pid", &pid]).status();
        assert!(limited.unwrap().success());
        let mut crowd = Vec::new();
        for _ in 0..100 {
            crowd.push(Wire::to(&address).await);
        }
        eventually("it says so", async || ingest.has_logged("Too many open files").then_some(())).await;
        // Many tries later.
        tokio::time::sleep(Duration::from_millis(500)).await;
        in_use.say(PUT).await;
        in_use.hears(ACCEPTED).await;
        drop(crowd);
        Wire::used(&address).await;
        ingest.logs_times("Too many open files", 1).await;
    };
    join_all(System::both(&[ONE_THREAD]).await.map(check)).await;
}

#[tokio::test]
async fn at_a_stop_every_client_gets_its_answer_and_is_told_to_leave() {
    let check = async |mut system: System| {
        let ingest = system.events();
        let address = ingest.address();
        let mut operator = Wire::to(&ingest.ops_address()).await;
        operator.say("GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
        operator.hears("HTTP/1.1 200 OK").await;
        let mut idle = Wire::used(&address).await;
        let mut silent = Wire::to(&address).await;
        let mut busy = Wire::to(&address).await;
        let event = "{\"domain\":\"by-hand.example\",\"event\":\"delivered\"}\n";
        let head = format!(
            "POST /events HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-ndjson\r\n\
             Expect: 100-continue\r\nContent-Length: {}\r\n\r\n",
            2 * event.len()
        );
        busy.say(&head).await;
        busy.hears("HTTP/1.1 100 Continue").await;
        busy.say(event).await;
        let mut talker = Wire::used(&address).await;

        ingest.signal("TERM");
        // One that goes on is answered until it is told to leave, and is never cut off. It needs no broker,
        // which might be slow.
        talker.asks_until_it_has_to_leave().await;
        // One that was accepted before the stop may still make its first request.
        silent.asks_until_it_has_to_leave().await;
        eventually("it takes no connections", async || TcpStream::connect(&address).await.err()).await;
        ingest.becomes_unready("stopping").await;
        // One that stays idle is closed, long before those in use are given up.
        idle.is_closed_in_order().await;
        busy.say(event).await;
        busy.hears_last(ACCEPTED).await;
        // Nobody waits for the operator, whose connection is still there.
        assert!(system.started_again().await.success());
        system.settle_at("by-hand.example", 4, 0).await;
    };
    join_all(System::both(&[]).await.map(check)).await;
}
