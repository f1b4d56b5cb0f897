//! The feed of changes: as pages, with a wait and as server-sent events.

mod positions;

use std::collections::{BTreeMap, BTreeSet};
use std::iter::once;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use catchall::batch::Batch;
use catchall::counters::Status;
use catchall::event::{Event, Outcome};
use catchall::position::Place;
use catchall::shutdown::GRACE;
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
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};

async fn send(system: &System, domain: &str, event: &str, count: u64) {
    system.events().post_events(&json!([{"domain": domain, "event": event, "count": count}])).await;
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
        assert!(begun.elapsed() < GRACE, "{:?}", begun.elapsed());
    }
}

/// Counts events of one outcome, enough to make a domain a catch-all, in one transaction.
async fn count(ledger: &Ledger, outcome: Outcome, domains: impl Iterator<Item = String>) {
    let mut batch = Batch::default();
    for domain in domains {
        batch.record(Event { domain: domain.parse().unwrap(), outcome, count: 1001, key: None });
    }
    let request =
        ApplyRequest { entries: vec![Entry { tag: 0, id: None, batch }], ..ApplyRequest::default() };
    ledger.apply(Arc::new(request), 0..1).await.unwrap();
}

/// Follows the feed as fast as can be until all of it is written. Returns the last status of each domain, and
/// how many changes there were.
async fn follow(reader: Replica, written: Arc<AtomicBool>) -> (BTreeMap<String, Status>, usize) {
    let (mut place, mut seen, mut entries) = (Place::default(), BTreeMap::new(), 0_usize);
    let mut failures = 0;
    loop {
        let is_last = written.load(Ordering::SeqCst);
        // The replay of so many changes ends a read now and then, and a client asks again.
        let changes = match reader.changes(place.clone(), 1000).await {
            Ok(read) => {
                failures = 0;
                read.changes
            }
            Err(error) => {
                failures += 1;
                assert!(failures < 1000, "{error}");
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            }
        };
        if changes.is_empty() && is_last {
            return (seen, entries);
        }
        for change in changes {
            assert!(change.place > place, "{:?} after {place:?}", change.place);
            place = change.place;
            entries += 1;
            let before = seen.insert(change.report.domain.to_string(), change.report.status);
            // No change of a domain comes twice, and none comes after a later one.
            assert!(before.is_none_or(|before| before < change.report.status), "{:?}", change.report);
        }
    }
}

/// 1 once all changes are in the feed.
const AT_THE_END: &str =
    "select count(*) from (select max(changed_in) as last from domain_statuses) as changes
    where last < pg_snapshot_xmin(pg_current_snapshot())::text::bigint";

/// What a follower of the replica and one of the primary have seen once both writers are done.
async fn followed(servers: &Servers, write: impl AsyncFnOnce()) -> [(BTreeMap<String, Status>, usize); 2] {
    let written = Arc::new(AtomicBool::new(false));
    let [replica, primary] = [&servers.replica_url, &servers.database_url].map(|url| {
        let config = ReplicaConfig { replica_url: url.parse().unwrap() };
        tokio::spawn(follow(Replica::new(&config, 2), Arc::clone(&written)))
    });
    write().await;
    sql::replayed(&servers.database_url, &servers.replica_url).await.unwrap();
    for url in [&servers.database_url, &servers.replica_url] {
        // An open transaction of another test holds the feed up too.
        eventually("the feed has come to the end", async || {
            (sql::number(url, AT_THE_END).await.unwrap() == 1).then_some(())
        })
        .await;
    }
    written.store(true, Ordering::SeqCst);
    [replica.await.unwrap(), primary.await.unwrap()]
}

/// Domains of one transaction of the tests below, and how many transactions each writer makes in the first: a
/// million changes by two writers.
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
            let name = move |domain| format!("d{domain}.t{number}.w{writer}.com");
            count(&ledger, outcome, (0..DOMAINS).map(name)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_as_fast_as_can_be_misses_no_change_of_two_writers() {
    let servers = Servers::fresh().await;
    let writing = async || {
        for writer in [0, 1].map(|writer| tokio::spawn(write(servers.ledger(), writer))) {
            writer.await.unwrap();
        }
    };
    for (seen, entries) in followed(&servers, writing).await {
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

/// Who makes it a catch-all and who ends that may come in either order, and wait for each other.
#[tokio::test(flavor = "multi_thread")]
async fn two_writers_of_the_same_domains_lose_no_last_status() {
    const ROUNDS: usize = 100;
    let servers = Servers::fresh().await;
    let writing = async || {
        let writers = [Outcome::Delivered, Outcome::Bounced].map(|outcome| {
            let ledger = servers.ledger();
            tokio::spawn(async move {
                for round in 0..ROUNDS {
                    let name = move |domain| format!("d{domain}.r{round}.com");
                    count(&ledger, outcome, (0..DOMAINS).map(name)).await;
                }
            })
        });
        for writer in writers {
            writer.await.unwrap();
        }
    };
    for (seen, _) in followed(&servers, writing).await {
        assert_eq!(seen.len(), ROUNDS * DOMAINS);
        for (domain, status) in seen {
            assert_eq!(status, Status::NotCatchAll, "{domain}");
        }
    }
    assert_eq!(sql::deadlocks(&servers.database_url).await.unwrap(), 0);
}

/// Each writer has a row of its own in the totals. The feed waits, but nobody who counts other domains does.
#[tokio::test]
async fn a_transaction_that_stays_open_blocks_no_other_domains() {
    let servers = Servers::fresh().await;
    // It is held at its commit, when it has noted a status and added to the totals.
    servers
        .execute(
            "create function hold() returns trigger language plpgsql as
                $$ begin
                    -- However long the test takes meanwhile.
                    perform set_config('lock_timeout', '0', true);
                    perform pg_advisory_xact_lock(1);
                    return null;
                end $$;
            create constraint trigger hold after insert on domain_statuses deferrable initially deferred
                for each row when (new.domain = 'held.com') execute function hold()",
        )
        .await;
    let mut gate = PgConnection::connect(&servers.database_url).await.unwrap();
    sqlx::raw_sql("select pg_advisory_lock(1)").execute(&mut gate).await.unwrap();
    let ledger = servers.ledger();
    let held =
        tokio::spawn(async move { count(&ledger, Outcome::Bounced, once("held.com".to_owned())).await });
    let waits = "select count(*) from pg_stat_activity
        where datname = current_database() and wait_event = 'advisory'";
    eventually("it is held", async || (servers.number(waits).await == 1).then_some(())).await;
    let other = servers.ledger();
    let counting = count(&other, Outcome::Bounced, once("other.com".to_owned()));
    tokio::time::timeout(Duration::from_secs(30), counting).await.expect("it waits for nobody");
    assert_eq!(servers.number("select count(*) from domain_statuses where domain = 'other.com'").await, 1);
    let config = ReplicaConfig { replica_url: servers.database_url.parse().unwrap() };
    let primary = Replica::new(&config, 1);
    let feed = async || {
        let read = primary.changes(Place::default(), 10).await.unwrap();
        read.changes.iter().map(|change| change.report.domain.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(feed().await, Vec::<String>::new(), "it does not pass what is still to come");
    sqlx::raw_sql("select pg_advisory_unlock(1)").execute(&mut gate).await.unwrap();
    held.await.unwrap();
    let both = ["held.com", "other.com"];
    eventually("the feed has both", async || (feed().await == both).then_some(())).await;
}
