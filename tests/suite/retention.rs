//! Claims are forgotten, and never while a copy of what they guard can come back.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use catchall::batch::Batch;
use catchall::event::IdempotencyKey;
use catchall::ledger::{Kind, Ledger, Portion, RetentionConfig};
use clap::Parser;

use crate::processes::Service;
use crate::servers::{Servers, eventually};

#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    retention: RetentionConfig,
}

/// A retention, and a hold, in seconds.
fn retention(retention: u32, hold: u32) -> RetentionConfig {
    let arguments = format!(
        "- --message-retention-secs {retention} --event-retention-secs {retention} --max-hold-secs {hold}"
    );
    Arguments::parse_from(arguments.split(' ')).retention
}

/// The hold is longer than a busy machine takes for anything: what is held longer is given back.
const SHORT: [(&str, &str); 3] = [
    ("CATCHALL_MESSAGE_RETENTION_SECS", "1"),
    ("CATCHALL_EVENT_RETENTION_SECS", "1"),
    ("CATCHALL_MAX_HOLD_SECS", "8"),
];

const EVENT: &[u8] = br#"{"domain":"a.com","event":"delivered"}"#;
const KEYED: &[u8] = br#"{"domain":"a.com","event":"bounced","id":"e-1"}"#;

async fn claims(servers: &Servers) -> i64 {
    servers.number("select (select count(*) from message_claims) + (select count(*) from event_claims)").await
}

async fn forget_all(ledger: &Ledger) -> u64 {
    let mut forgotten = 0;
    for kind in [Kind::Message, Kind::Event] {
        loop {
            match ledger.forget_some(kind).await.unwrap() {
                0 => break,
                some => forgotten += some,
            }
        }
    }
    forgotten
}

#[tokio::test]
async fn workers_forget_claims_once_their_time_is_over() {
    let servers = Servers::fresh().await;
    let _workers =
        [Service::ready("worker", &servers, &SHORT).await, Service::ready("worker", &servers, &SHORT).await];
    let publisher = servers.publisher().await;
    publisher.publish(EVENT, Some("m-1")).await;
    publisher.publish(KEYED, None).await;
    servers.settle_at("a.com", 1, 1).await;
    eventually("both claims are forgotten", async || (claims(&servers).await == 0).then_some(())).await;
    let horizon = servers.ledger().horizon().await.unwrap();
    assert!(horizon.messages.is_some_and(|before| before < SystemTime::now()) && horizon.events.is_some());
    // A publisher that sends again after the retention is counted again: that is what the retention means.
    publisher.publish(EVENT, Some("m-1")).await;
    servers.settle_at("a.com", 2, 1).await;
    assert!(
        servers.number("select count(*) from queue_marks").await < 10,
        "old marks are dropped with what they were for"
    );
    assert!(publisher.dead_letter().await.is_none(), "marks are read like any message");
}

#[tokio::test]
async fn an_outage_of_all_workers_forgets_nothing() {
    let servers = Servers::fresh().await;
    let mut worker = Service::ready("worker", &servers, &SHORT).await;
    let publisher = servers.publisher().await;
    publisher.publish(EVENT, Some("m-1")).await;
    publisher.publish(KEYED, None).await;
    servers.settle_at("a.com", 1, 1).await;
    worker.signal("KILL");
    worker.ended().await;
    // Copies that wait out the outage. Marks may have arrived until now; what counts is that none does later.
    publisher.publish(EVENT, Some("m-2")).await;
    publisher.publish(EVENT, Some("m-1")).await;
    publisher.publish(KEYED, None).await;
    servers.execute("update queue_marks set arrived_at = null; truncate forgotten_claims").await;
    servers.execute("update message_claims set claimed_at = now() - interval '1 year'").await;
    servers.execute("update event_claims set claimed_at = now() - interval '1 year'").await;
    servers.execute("update queue_marks set published_at = now() - interval '1 minute'").await;
    let (ledger, config) = (servers.ledger(), retention(1, 1));
    assert!(ledger.begin_mark(Duration::from_secs(1)).await.unwrap().is_some());
    tokio::time::sleep(Duration::from_millis(2100)).await;
    ledger.move_horizon(&config).await.unwrap();
    assert_eq!(forget_all(&ledger).await, 0, "no mark has come through the queue");
    let _worker = Service::ready("worker", &servers, &SHORT).await;
    servers.settle_at("a.com", 2, 1).await;
}

/// Counts nothing but the marks.
async fn arrive(ledger: &Ledger, mark: uuid::Uuid) {
    let empty = (Some(IdempotencyKey::fresh()), Batch::default());
    let portion = Portion { batches: vec![empty], marks: vec![mark], before: None };
    ledger.apply(Arc::new(portion), 0..1).await.unwrap();
}

#[tokio::test]
async fn a_mark_counts_once_nobody_can_hold_what_was_before_it() {
    let servers = Servers::fresh().await;
    let ledger = servers.ledger();
    let mark = ledger.begin_mark(Duration::from_mins(1)).await.unwrap().unwrap();
    assert_eq!(ledger.begin_mark(Duration::from_mins(1)).await.unwrap(), None, "one is enough");
    arrive(&ledger, mark).await;
    let horizon = ledger.move_horizon(&retention(10, 3600)).await.unwrap();
    assert_eq!(horizon.messages, None, "somebody may hold what was handed out before the mark");
    servers.execute("update queue_marks set arrived_at = now() - interval '61 minutes'").await;
    let horizon = ledger.move_horizon(&retention(10, 3600)).await.unwrap();
    let (messages, events) = (horizon.messages.unwrap(), horizon.events.unwrap());
    assert_eq!(messages, events);
    assert!(messages.elapsed().unwrap() >= Duration::from_secs(10));
    let again = ledger.move_horizon(&retention(1000, 3600)).await.unwrap();
    assert_eq!(again, horizon, "what is forgotten stays forgotten when the retention is raised");
}

#[tokio::test]
async fn only_what_is_behind_the_horizon_is_forgotten_also_by_two_at_once() {
    let servers = Servers::fresh().await;
    let ledgers = [servers.ledger(), servers.ledger()];
    servers
        .execute(
            "insert into message_claims select gen_random_uuid(), now() - interval '2 hours' from generate_series(1, 12000);
             insert into message_claims select gen_random_uuid(), now() from generate_series(1, 500);
             insert into event_claims select gen_random_uuid(), now() - interval '2 hours' from generate_series(1, 700);
             insert into forgotten_claims values
                ('message', now() - interval '1 hour'), ('event', now() - interval '3 hours');",
        )
        .await;
    let (one, other) = tokio::join!(forget_all(&ledgers[0]), forget_all(&ledgers[1]));
    assert_eq!(one + other + forget_all(&ledgers[0]).await, 12_000);
    assert_eq!(claims(&servers).await, 500 + 700);
}

#[tokio::test]
async fn a_duplicate_renews_its_claim() {
    let servers = Servers::fresh().await;
    let ledger = servers.ledger();
    let message = (Some(IdempotencyKey::fresh()), Batch::from_json(KEYED).unwrap());
    let other = (Some(IdempotencyKey::fresh()), Batch::from_json(KEYED).unwrap());
    let count = async |message: &(Option<IdempotencyKey>, Batch)| {
        let portion = Portion { batches: vec![message.clone()], ..Portion::default() };
        ledger.apply(Arc::new(portion), 0..1).await.unwrap().duplicates
    };
    assert_eq!(count(&message).await, 0);
    servers.execute("update message_claims set claimed_at = now() - interval '1 year'").await;
    servers.execute("update event_claims set claimed_at = now() - interval '1 year'").await;
    assert_eq!((count(&message).await, count(&other).await), (1, 1));
    let old = servers
        .number(
            "select (select count(*) from message_claims where claimed_at < now() - interval '1 day')
                  + (select count(*) from event_claims where claimed_at < now() - interval '1 day')",
        )
        .await;
    assert_eq!(old, 0);
    assert_eq!(servers.counters("a.com").await, (0, 1));
}
