//! The ledger against a model: whatever happens between a delivery and its acknowledgement, the sums are
//! right.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use catchall::batch::Batch;
use catchall::counters::Counters;
use catchall::idempotency_key::IdempotencyKey;
use catchall::store::Applied;
use catchall::store::ledger::{ApplyError, ApplyRequest, Entry, Ledger};
use harness::proxy::{Proxy, host};
use harness::servers::{Servers, eventually};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

/// Messages there are, by number.
const MESSAGES: usize = 12;

/// One step of a history. Messages are numbers; each has one content and one id for good.
#[derive(Clone, Debug)]
enum Step {
    /// A worker takes messages in one delivery batch and counts them. The acknowledgement may be lost, the same
    /// may be delivered again by any later step, by the broker, its publisher or a replay of dead letters,
    /// which keeps the id: the ledger cannot tell.
    Count(Vec<usize>),
    /// Two workers count at once, also the same messages, one of them in the opposite order.
    Both(Vec<usize>, Vec<usize>),
    /// A worker is killed, or its wire is cut, so many milliseconds after it began: before or after its
    /// commit.
    Killed(Vec<usize>, u64),
    /// A caller gives up after so many microseconds; its work may go on.
    Abandoned(Vec<usize>, u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let some = || prop::collection::vec(0..MESSAGES, 1..8);
    prop::collection::vec(
        prop_oneof![
            3 => some().prop_map(Step::Count),
            2 => (some(), some()).prop_map(|(one, other)| Step::Both(one, other)),
            2 => (some(), 0..8_u64).prop_map(|(messages, after)| Step::Killed(messages, after)),
            2 => (some(), 0..4_000_u64).prop_map(|(messages, after)| Step::Abandoned(messages, after)),
        ],
        1..16,
    )
}

/// An event: its domain, whether it was delivered, how many it stands for, and its key if it has one.
type Drawn = (u8, bool, u64, Option<u8>);

fn contents() -> impl Strategy<Value = Vec<Vec<Drawn>>> {
    let event = (0..4_u8, any::<bool>(), 1..100_u64, prop::option::of(0..5_u8));
    prop::collection::vec(prop::collection::vec(event, 0..6), MESSAGES)
}

/// The messages of a case. Of the events under one key all say the same, as senders that repeat one do: which
/// of different ones counts is the first to be committed, which a model cannot know.
fn messages(history: usize, contents: &[Vec<Drawn>]) -> Vec<Entry> {
    let event = |(domain, delivered, count, key): &Drawn| match key {
        None => format!(
            r#"{{"domain":"d{domain}.h{history}.com","event":"{}","count":{count}}}"#,
            if *delivered { "delivered" } else { "bounced" }
        ),
        Some(key) => format!(
            r#"{{"domain":"d{}.h{history}.com","event":"bounced","count":{},"id":"key-{history}-{key}"}}"#,
            key % 4,
            u64::from(*key) + 1
        ),
    };
    contents
        .iter()
        .map(|events| {
            let body = format!("[{}]", events.iter().map(event).collect::<Vec<_>>().join(","));
            Entry {
                tag: 0,
                id: Some(IdempotencyKey::fresh()),
                batch: Batch::from_json(body.as_bytes()).unwrap(),
            }
        })
        .collect()
}

/// What the sums have to be once every message has been counted: a set of ids and a map of sums.
fn model(messages: &[Entry]) -> BTreeMap<String, Counters> {
    let mut keys = BTreeSet::new();
    let mut sums: BTreeMap<String, Counters> = BTreeMap::new();
    for Entry { batch, .. } in messages {
        for (domain, counters) in batch.plain.iter() {
            *sums.entry(domain.to_string()).or_default() += *counters;
        }
        for (key, event) in &batch.keyed {
            if keys.insert(*key) {
                *sums.entry(event.domain.to_string()).or_default() +=
                    Counters::of(event.outcome, event.count);
            }
        }
    }
    sums
}

struct History<'a> {
    workers: [Ledger; 2],
    /// A worker behind a wire that can be cut.
    doomed: Ledger,
    wire: &'a Proxy,
    messages: Vec<Entry>,
}

fn whole(request: &ApplyRequest) -> Range<usize> {
    0..request.entries.len()
}

async fn count(ledger: &Ledger, request: ApplyRequest) -> Result<Applied, ApplyError> {
    let all = whole(&request);
    ledger.apply(Arc::new(request), all).await
}

impl History<'_> {
    fn request(&self, messages: &[usize]) -> ApplyRequest {
        let entries = messages.iter().map(|number| self.messages[*number].clone()).collect();
        ApplyRequest { entries, ..ApplyRequest::default() }
    }

    async fn perform(&self, step: &Step) {
        match step {
            Step::Count(messages) => {
                count(&self.workers[0], self.request(messages)).await.unwrap();
            }
            Step::Both(one, other) => {
                let reversed: Vec<usize> = other.iter().rev().copied().collect();
                let (one, other) = tokio::join!(
                    count(&self.workers[0], self.request(one)),
                    count(&self.workers[1], self.request(&reversed)),
                );
                one.unwrap();
                other.unwrap();
            }
            Step::Killed(messages, after) => {
                let (_, ()) = tokio::join!(count(&self.doomed, self.request(messages)), async {
                    tokio::time::sleep(Duration::from_millis(*after)).await;
                    self.wire.cut();
                });
                self.wire.mend();
            }
            Step::Abandoned(messages, after) => {
                let counting = count(&self.workers[1], self.request(messages));
                let _ = tokio::time::timeout(Duration::from_micros(*after), counting).await;
            }
        }
    }
}

#[test]
fn every_message_counts_once_whatever_happens_to_its_deliveries() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let servers = runtime.block_on(Servers::fresh());
    let wire = runtime.block_on(Proxy::to(host(&servers.database_url), true));
    let behind = Servers { database_url: wire.through(&servers.database_url), ..servers.clone() };
    let config = Config { cases: 24, failure_persistence: None, ..Config::default() };
    let histories = AtomicUsize::new(0);
    let checked = TestRunner::new(config).run(&(contents(), steps()), |(contents, steps)| {
        runtime.block_on(async {
            // What an earlier one has abandoned may still be counted: each history has domains and keys of
            // its own.
            let number = histories.fetch_add(1, Ordering::Relaxed);
            let history = History {
                workers: [servers.ledger(), servers.ledger()],
                doomed: behind.ledger(),
                wire: &wire,
                messages: messages(number, &contents),
            };
            for step in &steps {
                history.perform(step).await;
            }
            // What was not acknowledged is delivered again in the end, and what is in doubt is replayed.
            for messages in [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11], [11, 0, 10, 1, 9, 2]] {
                history.perform(&Step::Count(messages.into())).await;
            }
            let rows: Vec<(String, i64, i64)> = {
                let mut connection =
                    <sqlx::PgConnection as sqlx::Connection>::connect(&servers.database_url).await.unwrap();
                sqlx::query_as(
                    "select domain, delivered, bounced from domain_counters \
                    where domain like '%.h' || $1::text || '.com'",
                )
                .bind(number.to_string())
                .fetch_all(&mut connection)
                .await
                .unwrap()
            };
            let counted: BTreeMap<String, Counters> = rows
                .into_iter()
                .map(|(domain, delivered, bounced)| {
                    let count = |count: i64| u64::try_from(count).unwrap();
                    (domain, Counters { delivered: count(delivered), bounced: count(bounced) })
                })
                .collect();
            prop_assert_eq!(counted, model(&history.messages));
            Ok(())
        })
    });
    if let Err(error) = checked {
        panic!("{error}");
    }
}

/// A future of the driver that is dropped in `begin` hands its connection back inside a transaction; what is
/// written on it later reports success and is gone with the connection.
#[tokio::test]
async fn a_caller_that_gives_up_leaves_no_open_transaction_behind() {
    let servers = Servers::fresh().await;
    let ledger = servers.ledger();
    let request = |domain: &str, id: Option<IdempotencyKey>| {
        let body = format!(r#"{{"domain":"{domain}","event":"delivered"}}"#);
        ApplyRequest {
            entries: vec![Entry { id, batch: Batch::from_json(body.as_bytes()).unwrap(), tag: 0 }],
            ..ApplyRequest::default()
        }
    };
    for round in 0..200 {
        let given_up = Duration::from_micros(round * 20);
        let id = Some(IdempotencyKey::fresh());
        let _ = tokio::time::timeout(given_up, count(&ledger, request("given-up.com", id))).await;
        let applied = count(&ledger, request("after.com", None)).await.unwrap();
        assert_eq!(applied.rows, 1);
    }
    let mut last = (0, 0);
    eventually("all work that was begun has ended", async || {
        let begun = servers.number(
            "select count(*) from pg_stat_activity where datname = current_database() \
            and xact_start is not null and pid <> pg_backend_pid()",
        );
        (begun.await == 0).then_some(())
    })
    .await;
    for domain in ["given-up.com", "after.com"] {
        last = servers.counters(domain).await;
        assert_eq!(last, (200, 0), "{domain}: what was begun is done, and what was reported is there");
    }
    drop((ledger, last));
    assert_eq!(servers.counters("after.com").await, (200, 0), "also once the connections are closed");
}

/// What makes an update cheap is that it needs neither an index entry nor another page.
///
/// A version of a row is pruned only when it is dead to everybody, and a snapshot is as old as the oldest
/// transaction that was running anywhere on the server: so each round waits for those that other tests had
/// open in the last one.
#[tokio::test]
async fn later_versions_of_a_row_stay_on_its_page() {
    const DOMAINS: usize = 3_000;
    let servers = Servers::fresh().await;
    // Its snapshots are of this database, and would keep versions too.
    servers.execute("alter table domain_counters set (autovacuum_enabled = false)").await;
    let ledger = servers.ledger();
    let add = async |every: usize, from: usize| {
        let event = |i| format!(r#"{{"domain":"d{i:04}.example.com","event":"delivered"}}"#);
        let events: Vec<String> = (from..DOMAINS).step_by(every).map(event).collect();
        let body = format!("[{}]", events.join(","));
        let request = ApplyRequest {
            entries: vec![Entry { id: None, batch: Batch::from_json(body.as_bytes()).unwrap(), tag: 0 }],
            ..ApplyRequest::default()
        };
        count(&ledger, request).await.unwrap();
        let after = servers.number("select pg_current_xact_id()::text::bigint").await;
        eventually("all transactions are over that began before this one was", async || {
            let oldest = servers.number("select pg_snapshot_xmin(pg_current_snapshot())::text::bigint").await;
            (oldest > after).then_some(())
        })
        .await;
    };
    add(1, 0).await;
    let pages =
        || servers.number("select pg_relation_size('domain_counters') / current_setting('block_size')::int");
    let before = pages().await;
    for round in 0..40 {
        add(10, round % 10).await;
    }
    assert_eq!(pages().await, before, "pages, of which each row had four updates");
    assert_eq!(servers.number("select sum(delivered)::bigint from domain_counters").await, 5 * 3_000);
    assert_eq!(servers.number("select count(*) from domain_counters where padding is not null").await, 0);
}
