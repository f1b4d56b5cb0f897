//! Limits: how much a token and an address may send in a second, each set on its own.

use futures::future::join_all;
use harness::processes::Service;
use harness::servers::eventually;
use harness::system::System;
use hyper::{Method, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::access::Tokens;

/// Where requests come from, as a proxy says.
const HERE: &str = "192.0.2.1";
const ELSEWHERE: &str = "192.0.2.2";

/// Events that even who may send few can send at once.
const FULL: usize = 10_000;

/// A standalone with one limit, and the holders of two tokens.
struct Limited {
    system: System,
    first: String,
    second: String,
}

impl Limited {
    async fn by(variable: &str) -> Self {
        let tokens = Tokens::new();
        let (first, second) = (tokens.add("first", "write"), tokens.add("second", "write"));
        let proxies = ("CATCHALL_PROXIES", "127.0.0.0/8");
        let system = System::standalone(&[tokens.variable(), proxies, (variable, "1")]).await;
        Self { system, first, second }
    }

    /// What so many events in one request hear, from an address and the holder of a token.
    async fn send(&self, from: &str, bearer: &str, events: usize) -> (StatusCode, String) {
        let headers =
            [("authorization", bearer), ("x-forwarded-for", from), ("content-type", "application/x-ndjson")];
        let body = "{\"domain\": \"example.com\", \"event\": \"delivered\"}\n".repeat(events);
        let (status, answered, body) =
            self.system.events().request(Method::POST, "/events", &headers, body).await;
        assert_eq!(status == StatusCode::TOO_MANY_REQUESTS, answered.contains_key("retry-after"), "{body}");
        (status, body)
    }

    /// Sends until the limit, and returns what is said there.
    async fn exhaust(&self, from: &str, bearer: &str, events: usize) -> String {
        for sent in 0..20 {
            let (status, body) = self.send(from, bearer, events).await;
            if status == StatusCode::TOO_MANY_REQUESTS {
                assert!(sent > 0, "it could send nothing: {body}");
                return body;
            }
            assert_eq!(status, StatusCode::ACCEPTED, "{body}");
        }
        panic!("there is no limit");
    }
}

#[tokio::test]
async fn each_limit_is_of_what_it_names() {
    let (requests, events) =
        ("more requests than are allowed in a second", "more events than are allowed in a second");
    for (variable, size, says) in [
        ("CATCHALL_TOKEN_REQUESTS_PER_SEC", 1, requests),
        ("CATCHALL_TOKEN_EVENTS_PER_SEC", FULL, events),
        ("CATCHALL_ADDRESS_REQUESTS_PER_SEC", 1, requests),
        ("CATCHALL_ADDRESS_EVENTS_PER_SEC", FULL, events),
    ] {
        let limited = Limited::by(variable).await;
        let said = limited.exhaust(HERE, &limited.first, size).await;
        assert!(said.contains(says), "{variable}: {said}");
        // Another token at the same address, or the same token at another address.
        let (from, bearer) =
            if variable.contains("TOKEN") { (HERE, &limited.second) } else { (ELSEWHERE, &limited.first) };
        assert_eq!(limited.send(from, bearer, size).await.0, StatusCode::ACCEPTED, "{variable}");
    }
}

/// Begins a stream of look-ups that asks for one name and goes on, and returns what its answer begins with.
async fn begin_look_ups(query: &Service, bearer: &str) -> (TcpStream, String) {
    let mut stream = TcpStream::connect(query.address()).await.unwrap();
    let head = format!(
        "POST /domains/lookup HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/x-ndjson\r\n\
         authorization: {bearer}\r\ntransfer-encoding: chunked\r\n\r\ne\r\n\"example.com\"\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut begin = [0; 12];
    stream.read_exact(&mut begin).await.unwrap();
    (stream, String::from_utf8_lossy(&begin).into_owned())
}

#[tokio::test]
async fn one_caller_does_not_take_all_streams() {
    const HALF: usize = 16;
    let tokens = Tokens::new();
    let [greedy, modest] = ["greedy", "modest"].map(|name| tokens.add(name, "read"));
    let system = System::standalone(&[tokens.variable(), ("CATCHALL_THREADS", "1")]).await;
    let query = system.domains();
    let taken = join_all((0..HALF).map(|_| begin_look_ups(query, &greedy))).await;
    assert!(taken.iter().all(|(_, begin)| begin == "HTTP/1.1 200"), "{taken:?}");
    assert_eq!(begin_look_ups(query, &greedy).await.1, "HTTP/1.1 503", "more than half");
    assert_eq!(begin_look_ups(query, &modest).await.1, "HTTP/1.1 200", "another caller");
    drop(taken);
    eventually("what it had is free again", async || {
        (begin_look_ups(query, &greedy).await.1 == "HTTP/1.1 200").then_some(())
    })
    .await;
}
