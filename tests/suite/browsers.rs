//! What pages of others can make a browser do with a service on its machine: nothing.

use bytes::Bytes;
use harness::processes::Service;
use harness::system::System;
use http_body_util::Full;
use hyper::client::conn::http2;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::access::Tokens;

/// The name of a page that leads to this machine.
const REBOUND: &str = "evil.example";

/// The answer to a request that is the last on its connection.
async fn by_hand(address: &str, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

/// The status that a request over HTTP/1.1 gets, which names a host.
async fn over_http1(address: &str, method: &str, path: &str, host: &str) -> String {
    let request = format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    let answer = by_hand(address, &request).await;
    let status = answer.split(' ').nth(1).unwrap_or_else(|| panic!("{answer:?}"));
    if status == "403" {
        for says in ["urn:catchall:problem:forbidden", "127.0.0.1", "CATCHALL_TOKENS", "CATCHALL_OPEN=yes"] {
            assert!(answer.contains(says), "{answer}");
        }
    }
    status.to_owned()
}

/// The same over HTTP/2.
async fn over_http2(address: &str, method: &str, path: &str, host: &str) -> String {
    let stream = TokioIo::new(TcpStream::connect(address).await.unwrap());
    let (mut requests, connection) = http2::handshake(TokioExecutor::new(), stream).await.unwrap();
    tokio::spawn(connection);
    let request = Request::builder().method(method).uri(format!("http://{host}{path}"));
    let request = request.body(Full::<Bytes>::default()).unwrap();
    requests.send_request(request).await.unwrap().status().as_str().to_owned()
}

#[tokio::test]
async fn without_tokens_a_service_is_there_for_this_machine_only() {
    let system = System::standalone(&[]).await;
    let (public, operations) = (system.events().address(), system.events().ops_address());
    for (address, method, path, host, expected) in [
        (&public, "GET", "/totals", "localhost", "200"),
        (&public, "GET", "/totals", "LOCALHOST:8080", "200"),
        (&public, "GET", "/totals", "catchall.localhost", "200"),
        (&public, "GET", "/totals", "127.0.0.1:1", "200"),
        (&public, "GET", "/totals", "[::1]:8080", "200"),
        (&public, "GET", "/totals", REBOUND, "403"),
        (&public, "GET", "/totals", "evil.example:8080", "403"),
        (&public, "GET", "/totals", "localhost.evil.example", "403"),
        (&public, "GET", "/totals", "192.0.2.1", "403"),
        (&public, "GET", "/", REBOUND, "403"),
        (&public, "GET", "/docs", REBOUND, "403"),
        (&public, "GET", "/unknown", REBOUND, "403"),
        (&public, "PUT", "/events/rebound.example/bounced", REBOUND, "403"),
        (&public, "PUT", "/events/rebound.example/delivered", "localhost", "202"),
        (&operations, "GET", "/metrics", "localhost:9080", "200"),
        (&operations, "GET", "/metrics", REBOUND, "403"),
        (&operations, "GET", "/livez", REBOUND, "200"),
        (&operations, "GET", "/readyz", "10.0.0.7:9080", "200"),
    ] {
        let heard =
            [over_http1(address, method, path, host).await, over_http2(address, method, path, host).await];
        assert_eq!(heard, [expected; 2], "{method} {path} of {host}");
    }
    system.settle_at("rebound.example", 2, 0).await;
    // HTTP/1.0 has no such header, and no browser speaks it.
    let answer = by_hand(&public, "GET /totals HTTP/1.0\r\n\r\n").await;
    assert_eq!(answer.split(' ').nth(1), Some("200"), "{answer}");
    let answer = by_hand(&public, "GET /totals HTTP/1.1\r\nConnection: close\r\n\r\n").await;
    assert_eq!(answer.split(' ').nth(1), Some("403"), "{answer}");
}

#[tokio::test]
async fn whoever_is_let_in_otherwise_may_use_any_name() {
    let tokens = Tokens::new();
    let reader = tokens.add("reader", "read");
    let host = ("host", REBOUND);
    let guarded = System::standalone(&[tokens.variable()]).await;
    let open = System::standalone(&[("CATCHALL_OPEN", "yes")]).await;
    let ask = async |service: &Service, headers: &[(&str, &str)]| {
        service.request(Method::GET, "/totals", headers, "").await.0
    };
    assert_eq!(ask(open.events(), &[host]).await, StatusCode::OK);
    assert_eq!(ask(guarded.events(), &[host, ("authorization", &reader)]).await, StatusCode::OK);
    assert_eq!(ask(guarded.events(), &[host]).await, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn whatever_has_a_type_is_taken_for_nothing_else() {
    let system = System::standalone(&[]).await;
    for (method, path, expected) in [
        (Method::GET, "/totals", 200),
        (Method::HEAD, "/totals", 200),
        (Method::GET, "/openapi.json", 200),
        (Method::GET, "/maps/rspamd/catch-all", 200),
        (Method::HEAD, "/maps/rspamd/catch-all", 200),
        (Method::GET, "/unknown", 404),
        (Method::HEAD, "/unknown", 404),
        (Method::POST, "/events", 415),
    ] {
        let (status, headers, _) = system.events().request(method.clone(), path, &[], "").await;
        assert_eq!(status.as_u16(), expected, "{method} {path}");
        assert_eq!(headers["x-content-type-options"], "nosniff", "{method} {path}");
        let policy = &headers["content-security-policy"];
        assert_eq!(policy, "default-src 'none'; frame-ancestors 'none'", "{method} {path}");
    }
    let put = "/events/example.com/delivered";
    let (_, headers, _) = system.events().request(Method::PUT, put, &[], "").await;
    assert!(!headers.contains_key("x-content-type-options"), "{headers:?}");
}
