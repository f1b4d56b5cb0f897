//! The feed of changes: as pages, with a wait, as server-sent events and as messages.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use catchall::batch::Batch;
use catchall::event::{Event, Outcome};
use catchall::position::Position;
use catchall::store::DomainSource;
use catchall::store::ledger::{ApplyRequest, Entry, Ledger};
use catchall::store::replica::{Replica, ReplicaConfig};
use harness::processes::Service;
use harness::servers::{Servers, eventually};
use harness::sql;
use harness::system::System;
use http_body_util::{BodyExt, Empty};
use hyper::{Method, Request, StatusCode, header};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use lapin::types::AMQPValue;
use serde_json::{Value, json};

async fn send(system: &System, domain: &str, event: &str, count: u64) {
    let body = json!([{"domain": domain, "event": event, "count": count}]).to_string();
    let headers = [("content-type", "application/json")];
    let (status, _, answer) = system.events().request(Method::POST, "/events", &headers, body).await;
    assert_eq!(status, StatusCode::ACCEPTED, "{answer}");
}

/// A page of the feed: domain and status of each change, and the position after it.
async fn page(service: &Service, query: &str) -> (Vec<String>, String) {
    let (status, page) = service.get(&format!("/changes?{query}")).await;
    assert_eq!(status, StatusCode::OK, "{page}");
    let changes = page["changes"].as_array().unwrap().iter().map(short).collect();
    (changes, page["position"].as_str().unwrap().to_owned())
}

fn short(change: &Value) -> String {
    format!("{} {}", change["domain"].as_str().unwrap(), change["status"].as_str().unwrap())
}

#[tokio::test]
async fn the_feed_has_each_domain_once_at_its_latest_change() {
    for system in System::both(&[]).await {
        let query = system.domains();
        let (nothing, beginning) = page(query, "").await;
        assert_eq!(nothing, Vec::<String>::new());
        assert_eq!(page(query, &format!("since={beginning}")).await, (vec![], beginning.clone()));

        send(&system, "a.com", "delivered", 1001).await;
        query.answers("a.com", "catch-all", 1001, 0).await;
        send(&system, "b.com", "bounced", 1).await;
        query.answers("b.com", "not catch-all", 0, 1).await;
        // Neither of these changes a status.
        send(&system, "a.com", "delivered", 5).await;
        send(&system, "u.com", "delivered", 1000).await;
        query.answers("u.com", "unknown", 1000, 0).await;
        query.answers("a.com", "catch-all", 1006, 0).await;
        let whole = async || page(query, "").await;
        let expected = ["a.com catch-all", "b.com not catch-all"];
        eventually("both changes are in the feed", async || (whole().await.0 == expected).then_some(()))
            .await;
        let (first, after_first) = page(query, "limit=1").await;
        assert_eq!(first, expected[..1]);
        let (rest, end) = page(query, &format!("since={after_first}")).await;
        assert_eq!(rest, expected[1..]);
        assert_eq!(page(query, &format!("since={end}")).await, (vec![], end.clone()));

        // It moves to its new place.
        let (_, now) = page(query, "since=now").await;
        send(&system, "a.com", "bounced", 1).await;
        let moved = ["b.com not catch-all", "a.com not catch-all"];
        eventually("the change is in the feed", async || (whole().await.0 == moved).then_some(())).await;
        for since in [end, now] {
            assert_eq!(page(query, &format!("since={since}")).await.0, moved[1..]);
        }
        // An entry is a report.
        let (_, last) = query.get(&format!("/changes?since={after_first}&limit=2")).await;
        assert_eq!(last["changes"][1], query.get("/domains/a.com").await.1);
    }
}

#[tokio::test]
async fn a_client_waits_for_a_change_and_no_longer() {
    for system in System::both(&[]).await {
        let query = system.domains();
        let (_, position) = page(query, "since=now").await;
        let begun = Instant::now();
        assert_eq!(page(query, &format!("since={position}&wait=1")).await, (vec![], position.clone()));
        assert!(begun.elapsed() >= Duration::from_secs(1));
        let patient = format!("since={position}&wait=60");
        let (waited, ()) = tokio::join!(page(query, &patient), async {
            // Counted, but no change.
            send(&system, "u.com", "delivered", 1).await;
            tokio::time::sleep(Duration::from_millis(300)).await;
            send(&system, "a.com", "bounced", 1).await;
        });
        assert_eq!(waited.0, ["a.com not catch-all"]);
    }
}

/// A stream of server-sent events.
struct Events {
    body: hyper::body::Incoming,
    text: String,
}

impl Events {
    async fn open(service: &Service, path: &str, last_event_id: Option<&str>) -> Self {
        let mut request =
            Request::get(format!("{}{path}", service.url())).header(header::ACCEPT, "text/event-stream");
        if let Some(id) = last_event_id {
            request = request.header("last-event-id", id);
        }
        let client = Client::builder(TokioExecutor::new()).build_http::<Empty<Bytes>>();
        let answer = client.request(request.body(Empty::new()).unwrap()).await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        assert_eq!(answer.headers()[header::CONTENT_TYPE], "text/event-stream");
        assert_eq!(answer.headers()[header::CACHE_CONTROL], "no-store");
        let mut events = Self { body: answer.into_body(), text: String::new() };
        // The first tells the position alone, so that a client that connects again goes on there.
        let first = events.block().await.unwrap();
        assert!(first.starts_with("id: ") && !first.contains("data:"), "{first}");
        events
    }

    /// The next block of lines, if there is one.
    async fn block(&mut self) -> Option<String> {
        loop {
            if let Some((block, rest)) = self.text.split_once("\n\n") {
                let (block, rest) = (block.to_owned(), rest.to_owned());
                self.text = rest;
                return Some(block);
            }
            let frame = tokio::time::timeout(Duration::from_mins(1), self.body.frame()).await.unwrap()?;
            let data = frame.ok()?.into_data().unwrap_or_default();
            self.text.push_str(std::str::from_utf8(&data).unwrap());
        }
    }

    /// The next change, and its id.
    async fn next(&mut self) -> (String, String) {
        loop {
            let block = self.block().await.unwrap();
            let Some((id, data)) = block.split_once('\n') else { continue };
            let change = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
            return (short(&change), id.strip_prefix("id: ").unwrap().to_owned());
        }
    }
}

#[tokio::test]
async fn subscribers_hear_of_each_change_and_go_on_where_they_were() {
    for system in System::both(&[]).await {
        let query = system.domains();
        send(&system, "old.com", "bounced", 1).await;
        query.answers("old.com", "not catch-all", 0, 1).await;
        eventually("it is in the feed", async || (page(query, "").await.0.len() == 1).then_some(())).await;
        let mut from_now = Events::open(query, "/changes?since=now", None).await;
        let mut from_the_beginning = Events::open(query, "/changes", None).await;
        assert_eq!(from_the_beginning.next().await.0, "old.com not catch-all");
        for number in 0..20 {
            send(&system, &format!("d{number}.com"), "bounced", 1).await;
        }
        let mut ids = Vec::new();
        let mut heard = BTreeSet::new();
        for _ in 0..20 {
            let (change, id) = from_now.next().await;
            assert_eq!(from_the_beginning.next().await, (change.clone(), id.clone()));
            heard.insert(change);
            ids.push(id);
        }
        assert_eq!(heard, (0..20).map(|number| format!("d{number}.com not catch-all")).collect());
        // After a cut, the id of the last event is where it goes on, whatever the address says.
        let mut again = Events::open(query, "/changes?since=now", Some(&ids[9])).await;
        for id in &ids[10..] {
            assert_eq!(again.next().await.1, *id);
        }
        let (status, _, answer) = query
            .request(Method::GET, "/changes", &[("accept", "text/event-stream"), ("last-event-id", "x")], "")
            .await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{answer}");
    }
}

#[tokio::test]
async fn a_stop_does_not_wait_for_subscribers() {
    for system in System::both(&[]).await {
        let query = system.domains();
        let mut events = Events::open(query, "/changes?since=now", None).await;
        let begun = Instant::now();
        query.signal("TERM");
        while events.block().await.is_some() {}
        // Well before the grace period ends, after which connections are dropped.
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    }
}

/// Domains of one transaction of the test below, and how many transactions each writer makes: a million
/// changes by two writers.
const DOMAINS: usize = 250;
const TRANSACTIONS: usize = 1000;

/// One writer counts what changes domains again and again; each domain twice.
async fn write(ledger: Ledger, writer: usize) {
    for transaction in 0..TRANSACTIONS {
        // Each domain is first a catch-all, and some transactions later no more.
        for (outcome, number) in
            [(Outcome::Delivered, Some(transaction)), (Outcome::Bounced, transaction.checked_sub(3))]
        {
            let Some(number) = number else { continue };
            let mut batch = Batch::default();
            for domain in 0..DOMAINS {
                let domain = format!("d{domain}.t{number}.w{writer}.com").parse().unwrap();
                batch.record(Event { domain, outcome, count: 1001, key: None });
            }
            let request =
                ApplyRequest { entries: vec![Entry { tag: 0, id: None, batch }], ..ApplyRequest::default() };
            ledger.apply(Arc::new(request), 0..1).await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_as_fast_as_can_be_misses_no_change_of_two_writers() {
    let servers = Servers::fresh().await;
    let readers = [servers.replica_url.clone(), servers.database_url.clone()].map(|url| {
        let config = ReplicaConfig { replica_url: url.parse().unwrap() };
        Replica::new(&config, 2)
    });
    let written = Arc::new(AtomicBool::new(false));
    let writers = [0, 1].map(|writer| {
        let ledger = servers.ledger();
        tokio::spawn(write(ledger, writer))
    });
    let followers = readers.map(|reader| {
        let written = Arc::clone(&written);
        tokio::spawn(async move {
            let (mut position, mut seen, mut entries) = (Position::beginning(), BTreeMap::new(), 0_usize);
            loop {
                let is_last = written.load(Ordering::SeqCst);
                let changes = reader.changes(position.clone(), 1000).await.unwrap();
                if changes.is_empty() && is_last {
                    return (seen, entries);
                }
                for change in changes {
                    assert!(change.position > position, "{:?} after {position:?}", change.position);
                    position = change.position;
                    entries += 1;
                    let before = seen.insert(change.report.domain.to_string(), change.report.status);
                    // No change of a domain comes twice, and none comes after a later one.
                    assert!(before.is_none_or(|before| before < change.report.status), "{:?}", change.report);
                }
            }
        })
    });
    for writer in writers {
        writer.await.unwrap();
    }
    sql::replayed(&servers.database_url, &servers.replica_url).await.unwrap();
    written.store(true, Ordering::SeqCst);
    for follower in followers {
        let (seen, entries) = follower.await.unwrap();
        assert_eq!(seen.len(), 2 * TRANSACTIONS * DOMAINS);
        // A reader that is fast sees nearly every change; one that is slow at least the last of each domain.
        assert!(entries >= seen.len());
        for (domain, status) in seen {
            let transaction: usize =
                domain.split(".t").nth(1).unwrap().split('.').next().unwrap().parse().unwrap();
            let expected = if transaction + 3 < TRANSACTIONS { "not catch-all" } else { "catch-all" };
            assert_eq!(status.name(), expected, "{domain}");
        }
    }
}

#[tokio::test]
async fn changes_are_messages_for_whoever_binds_a_queue() {
    let servers = Servers::fresh().await;
    let (own, exchange) = ("catchall.changes.test", "catchall.changes");
    servers
        .declare(&json!({
            "queues": [{"name": own, "durable": true, "auto_delete": false, "arguments": {}}],
            "bindings": [{"source": exchange, "destination": own, "destination_type": "queue",
                "routing_key": "#", "arguments": {}}]
        }))
        .await;
    let ingest = Service::ready("ingest", &servers, &[]).await;
    let mut worker = Service::ready("worker", &servers, &[]).await;
    let client = servers.publisher().await;
    let mut heard = BTreeMap::new();
    for round in 0..4 {
        let events = (0..50).map(|number| {
            json!({"domain": format!("d{number}.r{round}.com"), "event": "delivered", "count": 1001})
        });
        let bounces =
            (0..50).map(|number| json!({"domain": format!("d{number}.r{round}.com"), "event": "bounced"}));
        for events in [events.collect::<Vec<_>>(), bounces.collect()] {
            let body = Value::from(events).to_string();
            let sent =
                ingest.request(Method::POST, "/events", &[("content-type", "application/json")], body).await;
            assert_eq!(sent.0, StatusCode::ACCEPTED);
        }
        if round % 2 == 1 {
            // Whoever publishes next goes on where this one was, and may publish some again.
            worker.signal("KILL");
            worker.ended().await;
            worker = Service::ready("worker", &servers, &[]).await;
        }
    }
    eventually("every domain's last change was published", async || {
        while let Some((body, headers, properties)) = client.take(own).await {
            let change: Value = serde_json::from_slice(&body).unwrap();
            assert_eq!(properties.message_id().as_ref().unwrap().as_str(), short(&change));
            assert_eq!(properties.content_type().as_ref().unwrap().as_str(), "application/json");
            let AMQPValue::LongLongInt(changed_in) = headers.inner()["catchall-changed-in"] else {
                panic!("{headers:?}");
            };
            let status = change["status"].as_str().unwrap().to_owned();
            let domain = change["domain"].as_str().unwrap().to_owned();
            let latest = heard.entry(domain).or_insert((changed_in, status.clone()));
            if changed_in >= latest.0 {
                *latest = (changed_in, status);
            }
        }
        let last = heard.values().filter(|(_, status)| status == "not catch-all").count();
        (last == 200).then_some(())
    })
    .await;
}
