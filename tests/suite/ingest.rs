//! What submitters send over HTTP, and what they get.

use std::io::Write;

use harness::processes::{LONG_DEADLINE, Service};
use harness::servers::{Servers, eventually, topology};
use harness::system::System;
use hyper::{Method, StatusCode, header};
use serde_json::{Value, json};

const NDJSON: (&str, &str) = ("content-type", "application/x-ndjson");
const JSON: (&str, &str) = ("content-type", "application/json");

/// A request that is refused: status, detail.
async fn refused(
    ingest: &Service,
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
    body: impl Into<bytes::Bytes>,
) -> (StatusCode, Value) {
    let (status, answered, body) = ingest.request(method, path, headers, body).await;
    let kind = answered.get(header::CONTENT_TYPE).unwrap_or_else(|| panic!("{path}: {status} {body}"));
    assert_eq!(kind, "application/problem+json", "{path}: {body}");
    let problem: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(problem["status"], status.as_u16(), "{problem}");
    assert!(problem["title"].is_string() && problem["detail"].is_string(), "{problem}");
    (status, problem)
}

#[tokio::test]
async fn every_way_in_counts() {
    for system in System::both(&[("CATCHALL_THRESHOLD", "5")]).await {
        let ingest = system.events();
        let query = system.domains();

        for spelling in ["ExAmPle.COM.", "example.com", "EXAMPLE.com"] {
            assert_eq!(ingest.put(&format!("/events/{spelling}/delivered")).await, StatusCode::ACCEPTED);
        }
        let lines = "{\"domain\":\"example.com\",\"event\":\"delivered\",\"count\":3}\n\n\
                 {\"domain\":\"m\u{fc}ller.de\",\"event\":\"bounced\"}\r\n";
        let (status, _, body) = ingest.request(Method::POST, "/events", &[NDJSON], lines).await;
        assert_eq!((status, &*body), (StatusCode::ACCEPTED, r#"{"accepted":2,"rejected":[]}"#));
        let array = r#"[{"domain":"example.org","event":"delivered","count":5}]"#;
        let (status, _, body) = ingest.request(Method::POST, "/events", &[JSON], array).await;
        assert_eq!((status, &*body), (StatusCode::ACCEPTED, r#"{"accepted":1,"rejected":[]}"#));
        assert_eq!(ingest.put("/events/m%C3%BCller.de/bounced").await, StatusCode::ACCEPTED);

        query.answers("example.com", "catch-all", 6, 0).await;
        query.answers("example.org", "unknown", 5, 0).await;
        query.answers("xn--mller-kva.de", "not catch-all", 0, 2).await;
    }
}

#[tokio::test]
async fn packed_bodies_are_unpacked() {
    for system in System::both(&[]).await {
        let ingest = system.events();
        let query = system.domains();
        let lines = "{\"domain\":\"packed.com\",\"event\":\"delivered\"}\n".repeat(500);
        // The names of encodings have no case.
        for (encoding, packed) in [
            ("gzip", gzip(lines.as_bytes())),
            ("x-gzip", gzip(lines.as_bytes())),
            ("ZSTD", zstd(lines.as_bytes())),
            ("Identity", lines.clone().into_bytes()),
        ] {
            let headers = [NDJSON, ("content-encoding", encoding)];
            let (status, _, body) = ingest.request(Method::POST, "/events", &headers, packed).await;
            assert_eq!(
                (status, &*body),
                (StatusCode::ACCEPTED, r#"{"accepted":500,"rejected":[]}"#),
                "{encoding}"
            );
        }
        query.answers("packed.com", "catch-all", 2000, 0).await;

        let bomb = gzip(&vec![b'\n'; 64 * 1024 * 1024]);
        assert!(bomb.len() < 1024 * 1024);
        let headers = [NDJSON, ("content-encoding", "gzip")];
        let (status, problem) = refused(ingest, Method::POST, "/events", &headers, bomb).await;
        assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE, "{problem}");
        let (status, problem) = refused(ingest, Method::POST, "/events", &headers, "no gzip").await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{problem}");
        let headers = [NDJSON, ("content-encoding", "br")];
        let (status, problem) = refused(ingest, Method::POST, "/events", &headers, "x").await;
        assert_eq!(status, StatusCode::UNSUPPORTED_MEDIA_TYPE);
        assert!(problem["detail"].as_str().unwrap().contains("send gzip, zstd or none"), "{problem}");
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packer.write_all(bytes).unwrap();
    packer.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).unwrap()
}

#[tokio::test]
async fn the_good_events_of_a_request_count_and_the_bad_ones_are_named() {
    for system in System::both(&[]).await {
        let ingest = system.events();
        let query = system.domains();
        let lines = [
            r#"{"domain":"good.com","event":"delivered"}"#,
            r#"{"domain":"localhost","event":"delivered"}"#,
            "",
            r#"{"domain":"good.com","event":"opened"}"#,
            "not JSON",
            r#"{"domain":"good.com","event":"delivered","id":""}"#,
            r#"{"domain":"good.com","event":"delivered"}"#,
        ];
        let (status, _, body) = ingest.request(Method::POST, "/events", &[NDJSON], lines.join("\n")).await;
        let answer: Value = serde_json::from_str(&body).unwrap();
        assert_eq!((status, &answer["accepted"]), (StatusCode::ACCEPTED, &json!(2)), "{body}");
        let rejected = answer["rejected"].as_array().unwrap();
        let indices: Vec<u64> = rejected.iter().map(|event| event["index"].as_u64().unwrap()).collect();
        assert_eq!(indices, [1, 2, 3, 4]);
        let expected = [
            ("invalid-domain", "at least two labels"),
            ("invalid-event", "unknown event \"opened\""),
            ("invalid-event", "expected"),
            ("invalid-key", "1 to 255 bytes, this one has 0"),
        ];
        assert_eq!(rejected.len(), expected.len());
        for (event, (kind, reason)) in rejected.iter().zip(expected) {
            assert_eq!(event["type"], format!("urn:catchall:problem:{kind}"), "{event}");
            assert!(event["detail"].as_str().unwrap().contains(reason), "{event}");
        }
        query.answers("good.com", "unknown", 2, 0).await;
    }
}

/// Sends what has to be refused, and checks that the problem names what is wrong.
async fn names(
    ingest: &Service,
    method: &Method,
    (path, headers, body): (&str, &[(&str, &str)], &str),
    (status, kind, detail): (u16, &str, &str),
) {
    let (answered, problem) = refused(ingest, method.clone(), path, headers, body.to_owned()).await;
    assert_eq!(answered.as_u16(), status, "{method} {path} {problem}");
    assert_eq!(problem["type"], format!("urn:catchall:problem:{kind}"), "{method} {path}");
    assert!(problem["detail"].as_str().unwrap().contains(detail), "{method} {path} {problem}");
}

#[tokio::test]
async fn an_event_that_cannot_be_taken_is_a_problem_that_names_it() {
    for system in System::both(&[]).await {
        let ingest = system.events();
        let (put, get, delete) = (Method::PUT, Method::GET, Method::DELETE);
        for (method, path, status, kind, detail) in [
            (
                &put,
                "/events/localhost/delivered",
                400,
                "invalid-domain",
                "\"localhost\" is not valid: a domain name",
            ),
            (&put, "/events/10.0.0.1/delivered", 400, "invalid-domain", "an IP address is not a domain name"),
            (&put, "/events/a_b.com/bounced", 400, "invalid-domain", "letters, digits and inner hyphens"),
            (&put, "/events/a%2Fb.com/bounced", 400, "invalid-domain", "letters, digits and inner hyphens"),
            (&put, "/events/%FF.com/bounced", 400, "invalid-domain", "UTF-8"),
            (&put, "/events/a.com/opened", 404, "not-found", "unknown event \"opened\""),
            (&put, "/events/a.com", 404, "not-found", "there is nothing at /events/a.com"),
            (&put, "/nothing", 404, "not-found", "there is nothing at /nothing"),
            (
                &get,
                "/events/a.com/bounced",
                405,
                "method-not-allowed",
                "GET is not allowed at /events/a.com/",
            ),
            (&delete, "/events", 405, "method-not-allowed", "DELETE is not allowed at /events"),
        ] {
            names(ingest, method, (path, &[], ""), (status, kind, detail)).await;
        }
        let long = "k".repeat(256);
        for (keys, detail) in [
            (&[("idempotency-key", "")][..], "1 to 255 bytes, this one has 0"),
            (&[("idempotency-key", &long)], "this one has 256"),
            (&[("idempotency-key", "a"), ("idempotency-key", "b")], "more than once"),
        ] {
            names(ingest, &put, ("/events/a.com/bounced", keys, ""), (400, "invalid-key", detail)).await;
        }
        system.settle_at("a.com", 0, 0).await;
    }
}

#[tokio::test]
async fn a_body_that_cannot_be_taken_is_a_problem_that_names_it() {
    for system in System::both(&[]).await {
        let ingest = system.events();
        let too_many = "{\"domain\":\"a.com\",\"event\":\"bounced\"}\n".repeat(10_001);
        let too_large = "x".repeat(10 * 1024 * 1024 + 1);
        let post = Method::POST;
        for (method, path, headers, body, status, kind, detail) in [
            (
                &post,
                "/events",
                &[][..],
                "{}",
                415,
                "unsupported-media-type",
                "Content-Type is missing: send application/x-ndjson or application/json",
            ),
            (
                &post,
                "/events",
                &[("content-type", "text/csv")],
                "a",
                415,
                "unsupported-media-type",
                "\"text/csv\" is not supported",
            ),
            (&post, "/events", &[NDJSON][..], "", 400, "invalid-body", "the body has no event"),
            (
                &post,
                "/events",
                &[NDJSON],
                "nothing\nreadable",
                400,
                "nothing-readable",
                "no event could be read",
            ),
            (
                &post,
                "/events",
                &[JSON],
                "{\"domain\":\"a.com\",\"event\":\"bounced\"}",
                400,
                "invalid-body",
                "not a JSON array",
            ),
            (
                &post,
                "/events",
                &[JSON],
                "[",
                400,
                "invalid-body",
                "not a JSON array of events: EOF while parsing",
            ),
            (&post, "/events", &[NDJSON], &too_many, 413, "too-large", "at most 10000 events"),
            (&post, "/events", &[NDJSON], &too_large, 413, "too-large", "at most 10485760 bytes"),
        ] {
            names(ingest, method, (path, headers, body), (status, kind, detail)).await;
        }
        system.settle_at("a.com", 0, 0).await;
    }
}

#[tokio::test]
async fn a_problem_tells_what_is_allowed_and_which_events_are_rejected() {
    for system in System::both(&[]).await {
        let ingest = system.events();
        let (_, headers, _) = ingest.request(Method::GET, "/events/a.com/delivered", &[], "").await;
        assert_eq!(headers[header::ALLOW], "PUT");
        let (_, problem) = refused(ingest, Method::POST, "/events", &[NDJSON], "nothing").await;
        assert_eq!(problem["rejected"][0]["index"], 0, "{problem}");
    }
}

/// Sends keyed events again and again, one or all to each instance: `once.com` has 9, `twice.com` has 2.
async fn send_keyed(instances: &[&Service]) {
    for instance in instances {
        for key in ["0192f3a4-7c00-7000-8000-00000000beef", "any string: \"\u{e4}\""] {
            let headers = [("idempotency-key", key)];
            let sent = instance.request(Method::PUT, "/events/once.com/delivered", &headers, "").await;
            assert_eq!(sent.0, StatusCode::ACCEPTED);
        }
    }
    let line = r#"{"domain":"once.com","event":"delivered","count":7,"id":"bulk-1"}"#;
    let body = format!(
        "{line}\n{line}\n{}",
        r#"{"domain":"once.com","event":"delivered","id":"any string: \"ä\""}"#
    );
    for instance in instances {
        let sent = instance.request(Method::POST, "/events", &[NDJSON], body.clone()).await;
        assert_eq!(sent.0, StatusCode::ACCEPTED);
    }
    // Under a key of the whole request, each event counts once under its place.
    let body = "{\"domain\":\"twice.com\",\"event\":\"delivered\"}\nnonsense\n\
    {\"domain\":\"twice.com\",\"event\":\"delivered\"}\n";
    for instance in instances {
        let headers = [NDJSON, ("idempotency-key", "request-1")];
        let sent = instance.request(Method::POST, "/events", &headers, body).await;
        assert_eq!(sent.0, StatusCode::ACCEPTED);
    }
    // The first event under a key is the one that counts, whatever a later one says.
    let other = r#"{"domain":"other.com","event":"bounced","id":"bulk-1"}"#;
    let sent = instances[0].request(Method::POST, "/events", &[NDJSON], other).await;
    assert_eq!(sent.0, StatusCode::ACCEPTED);
}

#[tokio::test]
async fn a_key_counts_once_however_it_is_sent() {
    for system in System::both(&[]).await {
        send_keyed(&[system.events(), system.events()]).await;
        for (domain, delivered) in [("once.com", 9), ("twice.com", 2), ("other.com", 0)] {
            system.settle_at(domain, delivered, 0).await;
        }
    }
}

#[tokio::test]
async fn a_key_counts_once_wherever_it_is_sent() {
    let system = System::cluster(&[]).await;
    let another = Service::ready("ingest", &system.servers, &[LONG_DEADLINE]).await;
    send_keyed(&[system.events(), &another, system.events()]).await;
    let publisher = system.servers.publisher().await;
    publisher.publish(br#"{"domain":"other.com","event":"bounced","id":"bulk-1"}"#, None).await;
    for (domain, delivered) in [("once.com", 9), ("twice.com", 2), ("other.com", 0)] {
        system.settle_at(domain, delivered, 0).await;
    }
}

#[tokio::test]
async fn a_full_queue_is_a_503_and_loses_nothing() {
    let servers = Servers::bare().await;
    catchall::store::postgres::migrate(&servers.database_url.parse().unwrap()).await.unwrap();
    let mut small = topology();
    let queues = small["queues"].as_array_mut().unwrap();
    let events = queues.iter_mut().find(|queue| queue["name"] == catchall::broker::EVENTS).unwrap();
    events["arguments"]["x-max-length"] = 3.into();
    servers.declare(&small).await;
    let ingest = Service::ready("ingest", &servers, &[LONG_DEADLINE]).await;
    let mut accepted = 0;
    loop {
        let (status, headers, body) =
            ingest.request(Method::PUT, "/events/full.com/delivered", &[], "").await;
        if status != StatusCode::ACCEPTED {
            assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{body}");
            assert_eq!(headers[header::RETRY_AFTER], "1");
            assert!(body.contains("\"urn:catchall:problem:queue-full\""), "{body}");
            break;
        }
        accepted += 1;
        assert!(accepted < 100, "a queue of 3 took 100 messages");
    }
    let _worker = Service::ready("worker", &servers, &[]).await;
    eventually("there is room again", async || {
        (ingest.put("/events/other.com/delivered").await == StatusCode::ACCEPTED).then_some(())
    })
    .await;
    servers.settle_at("full.com", accepted, 0).await;
}
