//! Refusals: whoever is not let in hears why, and what was begun with a token ends with it.

use std::fs;
use std::time::Duration;

use harness::servers::eventually;
use harness::system::System;
use hyper::{Method, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::access::Tokens;

/// A token that nobody holds.
const NOBODYS: &str = "Bearer catchall_zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz4W8LJS";

#[tokio::test]
async fn whoever_sends_a_large_body_hears_that_it_is_refused() {
    let tokens = Tokens::new();
    let reader = tokens.add("reader", "read");
    let system = System::standalone(&[tokens.variable()]).await;
    let body = vec![b'\n'; 5_000_000];
    for (bearer, expected) in [(NOBODYS, "401"), (&*reader, "403")] {
        let head = format!(
            "POST /events HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-ndjson\r\n\
             Authorization: {bearer}\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        let again = "GET /totals HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        let sent = [head.as_bytes(), &body, again.as_bytes()].concat();
        // The service gives up a body that pauses, as it does where this test gets no turn for a moment.
        eventually("the body is taken and both requests are answered", async || {
            let mut stream = TcpStream::connect(system.events().address()).await.unwrap();
            // As most clients do, it listens when it has sent everything; and it asks again.
            stream.write_all(&sent).await.ok()?;
            let mut answers = String::new();
            stream.read_to_string(&mut answers).await.ok()?;
            let statuses: Vec<_> =
                answers.split("HTTP/1.1 ").skip(1).filter_map(|rest| rest.split(' ').next()).collect();
            assert!(statuses.first().is_none_or(|first| *first == expected), "{answers}");
            (statuses == [expected, "401"]).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn the_eleventh_refusal_in_a_second_says_to_wait() {
    let tokens = Tokens::new();
    let writer = tokens.add("writer", "write");
    let system = System::standalone(&[tokens.variable()]).await;
    let send = async |method: Method, path: &str, headers: &[(&str, &str)]| {
        system.events().request(method, path, headers, "").await
    };
    let put = "/events/example.com/delivered";
    let mut refused = Vec::new();
    for _ in 0..40 {
        let (status, headers, body) = send(Method::PUT, put, &[("authorization", NOBODYS)]).await;
        if status == StatusCode::TOO_MANY_REQUESTS {
            assert!(body.contains("too many requests without a valid token"), "{body}");
            assert_eq!(headers["retry-after"], "1");
        }
        refused.push(status.as_u16());
    }
    assert_eq!(refused[..10], [401; 10]);
    assert!(
        refused.contains(&429) && refused.iter().all(|status| [401, 429].contains(status)),
        "{refused:?}"
    );
    // Neither a holder at the same address nor a browser that was not asked yet has to wait.
    let (status, _, _) = send(Method::PUT, put, &[("authorization", &writer)]).await;
    assert_eq!(status, StatusCode::ACCEPTED);
    for _ in 0..20 {
        let (status, headers, _) = send(Method::GET, "/", &[]).await;
        assert_eq!(status, StatusCode::UNAUTHORIZED);
        let mut challenges = headers.get_all("www-authenticate").iter();
        assert!(challenges.any(|challenge| challenge.as_bytes().starts_with(b"Basic ")), "{headers:?}");
    }
}

#[tokio::test]
async fn only_operators_are_told_that_a_process_is_stopping() {
    let tokens = Tokens::new();
    let (operator, writer) = (tokens.add("operator", "operate"), tokens.add("writer", "write"));
    let system = System::standalone(&[tokens.variable()]).await;
    let service = system.events();
    // A request under way keeps the process for some seconds.
    let mut busy = TcpStream::connect(service.address()).await.unwrap();
    let head = format!(
        "POST /events HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-ndjson\r\n\
         Authorization: {writer}\r\nExpect: 100-continue\r\nContent-Length: 100\r\n\r\n"
    );
    busy.write_all(head.as_bytes()).await.unwrap();
    let mut answer = [0; 12];
    busy.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 100");
    service.signal("TERM");
    let readyz = async |headers: &[(&str, &str)]| service.ops_with("/readyz", headers).await;
    eventually("the operator hears that it stops", async || {
        let (status, body) = readyz(&[("authorization", &operator)]).await;
        (status == StatusCode::SERVICE_UNAVAILABLE && body == "stopping\n").then_some(())
    })
    .await;
    for headers in [&[][..], &[("authorization", &*writer)]] {
        assert_eq!(readyz(headers).await, (StatusCode::SERVICE_UNAVAILABLE, "not ready\n".into()));
    }
}

/// A stream of changes, as far as it was heard.
struct Listener {
    stream: TcpStream,
    heard: String,
}

impl Listener {
    async fn new(address: &str, bearer: &str) -> Self {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!(
            "GET /changes?since=now HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\
             Authorization: {bearer}\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut listener = Self { stream, heard: String::new() };
        while !listener.heard.contains("\nid: ") {
            assert!(listener.hears_more().await, "{:?}", listener.heard);
        }
        listener
    }

    /// Whether there was more, within twice the time between heartbeats.
    async fn hears_more(&mut self) -> bool {
        let mut part = [0; 4096];
        let read = timeout(Duration::from_secs(30), self.stream.read(&mut part)).await.expect("a heartbeat");
        let size = read.unwrap_or_default();
        self.heard.push_str(std::str::from_utf8(&part[..size]).unwrap());
        size > 0
    }
}

#[tokio::test]
async fn a_stream_breaks_off_when_its_token_is_taken_back() {
    let tokens = Tokens::new();
    let [former, reader, writer] = [("former", "read"), ("reader", "read"), ("writer", "write")]
        .map(|(name, scope)| tokens.add(name, scope));
    let system = System::standalone(&[tokens.variable()]).await;
    let service = system.events();
    let address = service.address();
    let (mut ends, mut goes_on) =
        (Listener::new(&address, &former).await, Listener::new(&address, &reader).await);
    let lines = fs::read_to_string(&tokens.file).unwrap();
    let (_, kept) = lines.split_once('\n').unwrap();
    fs::write(&tokens.file, kept).unwrap();
    eventually("the token is taken back", async || {
        let headers = [("authorization", &*former)];
        let (status, _, _) = service.request(Method::GET, "/totals", &headers, "").await;
        (status == StatusCode::UNAUTHORIZED).then_some(())
    })
    .await;
    let put = "/events/example.com/bounced";
    let (status, _, _) = service.request(Method::PUT, put, &[("authorization", &writer)], "").await;
    assert_eq!(status, StatusCode::ACCEPTED);
    while !goes_on.heard.contains("example.com") {
        assert!(goes_on.hears_more().await, "{:?}", goes_on.heard);
    }
    while ends.hears_more().await {}
    assert!(!ends.heard.contains("example.com"), "{:?}", ends.heard);
    // The last chunk is missing.
    assert!(!ends.heard.ends_with("0\r\n\r\n"), "{:?}", ends.heard);
}
