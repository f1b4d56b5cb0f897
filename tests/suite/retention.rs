//! Claims are pruned, and never while a copy of what they guard can come back.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use catchall::batch::Batch;
use catchall::idempotency_key::IdempotencyKey;
use catchall::store::ledger::{ApplyRequest, ClaimKind, Entry, Ledger, RetentionConfig};
use clap::Parser;
use futures::stream::{self, StreamExt};
use harness::amqp::AmqpClient;
use harness::processes::Service;
use harness::servers::{Servers, eventually};
use sqlx::{Connection as _, PgConnection};
use tokio::time::Instant;
use uuid::Uuid;

#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    retention: RetentionConfig,
}

/// A retention and an ack deadline, in seconds.
pub(crate) fn retention(retention: u32, ack_deadline: u32) -> RetentionConfig {
    let arguments = format!(
        "- --message-retention-secs {retention} --event-retention-secs {retention} \
         --ack-deadline-secs {ack_deadline}"
    );
    Arguments::parse_from(arguments.split(' ')).retention
}

/// The ack deadline is longer than a busy machine takes for anything: what is kept longer is given back.
pub(crate) const SHORT: [(&str, &str); 4] = [
    ("CATCHALL_MESSAGE_RETENTION_SECS", "1"),
    ("CATCHALL_EVENT_RETENTION_SECS", "1"),
    ("CATCHALL_ACK_DEADLINE_SECS", "8"),
    ("CATCHALL_STATEMENT_TIMEOUT_SECS", "3"),
];

pub(crate) const EVENT: &[u8] = br#"{"domain":"a.com","event":"delivered"}"#;
pub(crate) const KEYED: &[u8] = br#"{"domain":"a.com","event":"bounced","id":"e-1"}"#;

/// Publishes an event with each kind of id, and waits until both are counted.
pub(crate) async fn count_both(servers: &Servers) -> AmqpClient {
    let publisher = servers.publisher().await;
    publisher.publish(EVENT, Some("m-1")).await;
    publisher.publish(KEYED, None).await;
    servers.settle_at("a.com", 1, 1).await;
    publisher
}

pub(crate) async fn claims(servers: &Servers) -> i64 {
    servers.number("select (select count(*) from message_claims) + (select count(*) from event_claims)").await
}

pub(crate) async fn prune_all(ledger: &Ledger, config: &RetentionConfig) -> u64 {
    let mut pruned = 0;
    for kind in [ClaimKind::Message, ClaimKind::Event] {
        let mut pruning = ledger.prune(kind, config);
        loop {
            match pruning.step().await.unwrap() {
                0 => break,
                some => pruned += some,
            }
        }
    }
    pruned
}

#[tokio::test]
async fn workers_prune_claims_once_their_time_is_over() {
    let servers = Servers::fresh().await;
    let _workers =
        [Service::ready("worker", &servers, &SHORT).await, Service::ready("worker", &servers, &SHORT).await];
    let publisher = count_both(&servers).await;
    eventually("both claims are pruned", async || (claims(&servers).await == 0).then_some(())).await;
    let oldest = async || {
        servers.number("select (extract(epoch from min(published_at)) * 1000)::bigint from watermarks").await
    };
    let first = oldest().await;
    let horizon = servers.ledger().horizon().await.unwrap();
    assert!(horizon.messages.is_some_and(|before| before < SystemTime::now()) && horizon.events.is_some());
    // A publisher that sends again after the retention is counted again: that is what the retention means.
    publisher.publish(EVENT, Some("m-1")).await;
    servers.settle_at("a.com", 2, 1).await;
    // Some thirty are there at a time, and more for a while where the machine has stood still.
    eventually("old watermarks are dropped with what they were for", async || {
        let few = servers.number("select count(*) from watermarks").await < 40;
        (few && oldest().await > first).then_some(())
    })
    .await;
    assert!(publisher.dead_letter().await.is_none(), "watermarks are read like any message");
}

#[tokio::test]
async fn an_outage_of_all_workers_prunes_nothing() {
    let servers = Servers::fresh().await;
    let mut worker = Service::ready("worker", &servers, &SHORT).await;
    let publisher = count_both(&servers).await;
    worker.signal("KILL");
    worker.ended().await;
    // Copies that wait out the outage. Watermarks may have arrived until now; what matters is that none does
    // later.
    publisher.publish(EVENT, Some("m-2")).await;
    publisher.publish(EVENT, Some("m-1")).await;
    publisher.publish(KEYED, None).await;
    servers.execute("update watermarks set arrived_at = null; truncate pruned_claims").await;
    servers.execute("update message_claims set claimed_at = now() - interval '1 year'").await;
    servers.execute("update event_claims set claimed_at = now() - interval '1 year'").await;
    servers.execute("update watermarks set published_at = now() - interval '1 minute'").await;
    let (ledger, config) = (servers.ledger(), retention(1, 1));
    assert!(ledger.begin_watermark(Duration::from_secs(1)).await.unwrap().is_some());
    servers.execute("update watermarks set published_at = published_at - interval '1 minute'").await;
    ledger.move_horizon(&config).await.unwrap();
    assert_eq!(prune_all(&ledger, &config).await, 0, "no watermark has come through the queue");
    let _worker = Service::ready("worker", &servers, &SHORT).await;
    servers.settle_at("a.com", 2, 1).await;
}

/// What a watermark leaves behind that was published and arrived so long ago.
pub(crate) async fn watermark(servers: &Servers, published: &str, arrived: &str) {
    let mut connection = PgConnection::connect(&servers.database_url).await.unwrap();
    let pair = Uuid::now_v7();
    for id in [pair, Uuid::now_v7()] {
        sqlx::query(
            "insert into watermarks values ($1, $2, now() - $3::text::interval, now() - $4::text::interval)",
        )
        .bind(id)
        .bind(pair)
        .bind(published)
        .bind(arrived)
        .execute(&mut connection)
        .await
        .unwrap();
    }
    connection.close().await.unwrap();
}

#[tokio::test]
async fn only_what_is_behind_the_horizon_is_pruned_also_by_two_at_once() {
    let servers = Servers::fresh().await;
    let ledgers = [servers.ledger(), servers.ledger()];
    servers
        .execute(
            "insert into message_claims select gen_random_uuid(), now() - interval '2 hours'
                from generate_series(1, 12000);
             insert into message_claims select gen_random_uuid(), now() from generate_series(1, 500);
             insert into event_claims select gen_random_uuid(), now() - interval '2 hours'
                from generate_series(1, 700);
             insert into pruned_claims values
                ('message', now() - interval '1 hour'), ('event', now() - interval '3 hours');",
        )
        .await;
    let config = retention(60, 60);
    let both = async || {
        let (one, other) = tokio::join!(prune_all(&ledgers[0], &config), prune_all(&ledgers[1], &config));
        one + other + prune_all(&ledgers[0], &config).await
    };
    assert_eq!(both().await, 0, "no watermark shows that it may be");
    watermark(&servers, "3 hours", "2 hours").await;
    assert_eq!(both().await, 0, "the watermark is older than the claims");
    watermark(&servers, "30 minutes", "20 minutes").await;
    assert_eq!(both().await, 12_000);
    assert_eq!(claims(&servers).await, 500 + 700);
}

/// Workers live for minutes where they are replaced often, and their upkeep has to come in that time.
#[tokio::test]
async fn a_worker_prunes_soon_after_it_has_started() {
    let servers = Servers::fresh().await;
    servers
        .execute(
            "insert into message_claims select gen_random_uuid(), now() - interval '9 days'
                from generate_series(1, 12000);
             insert into event_claims select gen_random_uuid(), now() - interval '9 days'
                from generate_series(1, 12000);",
        )
        .await;
    watermark(&servers, "3 days", "2 days").await;
    let _worker = Service::ready("worker", &servers, &[]).await;
    eventually("all are pruned", async || (claims(&servers).await == 0).then_some(())).await;
    eventually("a watermark has come through", async || {
        let arrived = servers
            .number("select count(*) from queue_progress where published_at > now() - interval '1 hour'");
        (arrived.await == 1).then_some(())
    })
    .await;
}

/// Puts old claims of both kinds into the ledger: of these ids, and of so many others.
async fn claim_long_ago(servers: &Servers, ids: &[String], others: u32) {
    let mut connection = PgConnection::connect(&servers.database_url).await.unwrap();
    let key = |id: &String| id.parse::<IdempotencyKey>().unwrap().as_uuid();
    sqlx::query(
        "insert into message_claims select id, now() - interval '9 days' from unnest($1::uuid[]) as old (id)
         union all select gen_random_uuid(), now() - interval '9 days' - number * interval '1 ms'
            from generate_series(1, $2) as old (number)",
    )
    .bind(ids.iter().map(key).collect::<Vec<_>>())
    .bind(i32::try_from(others).unwrap())
    .execute(&mut connection)
    .await
    .unwrap();
    sqlx::query("insert into event_claims select id, claimed_at from message_claims")
        .execute(&mut connection)
        .await
        .unwrap();
    connection.close().await.unwrap();
}

/// Notes when claims are pruned.
async fn note_prunings(servers: &Servers) {
    servers
        .execute(
            "create table prunings (at timestamptz not null);
             create function note_pruning() returns trigger language plpgsql as
                $$ begin
                    insert into prunings select clock_timestamp() from pruned limit 1;
                    return null;
                end $$;
             create trigger note_pruning after delete on message_claims referencing old table as pruned
                for each statement execute function note_pruning();
             create trigger note_pruning after delete on event_claims referencing old table as pruned
                for each statement execute function note_pruning();",
        )
        .await;
}

/// Publishes a message for each id, with rows that all of them want and one of its own.
async fn publish_together(publisher: &AmqpClient, domain: &str, ids: Vec<String>) {
    const AT_ONCE: usize = 32;
    stream::iter(ids)
        .for_each_concurrent(AT_ONCE, |id| async move {
            let body = format!(
                r#"[{{"domain":"{domain}","event":"delivered"}},
                    {{"domain":"{domain}","event":"bounced","id":"{id}"}},
                    {{"domain":"{id}.com","event":"delivered"}}]"#
            );
            publisher.publish(body.as_bytes(), Some(&id)).await;
        })
        .await;
}

async fn each_was_counted_once_at_most(servers: &Servers) {
    let (delivered, bounced) = servers.counters("again.com").await;
    assert!((0..=1000).contains(&delivered) && (0..=1000).contains(&bounced), "{delivered} {bounced}");
    assert_eq!(
        servers
            .number(
                "select max(delivered) from domain_counters where domain like 'old-%' or domain like 'new-%'"
            )
            .await,
        1
    );
    assert_eq!(
        servers.number("select deadlocks from pg_stat_database where datname = current_database()").await,
        0
    );
}

#[tokio::test]
async fn pruning_disturbs_nobody() {
    const OLD: u32 = 100_000;
    let servers = Servers::fresh().await;
    // Some come once more while they are pruned: each is known or not, and counts once at most.
    let met_again: Vec<String> = (0..1000).map(|number| format!("old-{number}")).collect();
    claim_long_ago(&servers, &met_again, OLD).await;
    note_prunings(&servers).await;
    watermark(&servers, "3 days", "2 days").await;
    let workers =
        [Service::ready("worker", &servers, &[]).await, Service::ready("worker", &servers, &[]).await];

    let left = async || {
        servers
            .number(
                "select (select count(*) from message_claims where claimed_at < now() - interval '8 days')
                      + (select count(*) from event_claims where claimed_at < now() - interval '8 days')",
            )
            .await
    };
    let publisher = servers.publisher().await;
    let publish = async |domain: &str, ids| publish_together(&publisher, domain, ids).await;
    let (mut published, mut again) = (0_i64, met_again.chunks(100));
    let begun = Instant::now();
    loop {
        let some: Vec<String> = (published..published + 200).map(|number| format!("new-{number}")).collect();
        published += 200;
        publish("new.com", some).await;
        if let Some(some) = again.next() {
            publish("again.com", some.to_vec()).await;
        }
        eventually("commits go on", async || {
            let waiting = servers.number(
                "select count(*) from pg_stat_activity as waiting,
                    unnest(pg_blocking_pids(waiting.pid)) as blocker
                 join pg_stat_activity as blocking on blocking.pid = blocker
                 where waiting.datname = current_database() and blocking.query like '%catchall: prune%'
                    and waiting.query_start < clock_timestamp() - interval '5 seconds'",
            );
            assert_eq!(waiting.await, 0, "somebody waits for a row that is being pruned");
            (servers.counters("new.com").await == (published, published)).then_some(())
        })
        .await;
        let left = left().await;
        if left == 0 && again.len() == 0 {
            break;
        }
        assert!(begun.elapsed() < Duration::from_mins(5), "{left} are left");
    }
    let counted_meanwhile = servers.number(
        "select count(*) from message_claims
         where claimed_at > (select min(at) from prunings) and claimed_at < (select max(at) from prunings)",
    );
    assert!(counted_meanwhile.await > 0, "nothing was counted while claims were pruned");
    servers.settle_at("new.com", published, published).await;
    each_was_counted_once_at_most(&servers).await;
    for worker in workers {
        // Once this is in the log, so is all that was logged before.
        worker.signal("TERM");
        worker.logs("stopping on SIGTERM").await;
        for trouble in ["deadlock", "lock timeout"] {
            assert!(!worker.has_logged(trouble), "{:?}", worker.log());
        }
    }
}

#[tokio::test]
async fn a_duplicate_renews_its_claim() {
    let servers = Servers::fresh().await;
    let ledger = servers.ledger();
    let message =
        Entry { tag: 0, id: Some(IdempotencyKey::fresh()), batch: Batch::from_json(KEYED).unwrap() };
    let other = Entry { tag: 0, id: Some(IdempotencyKey::fresh()), batch: Batch::from_json(KEYED).unwrap() };
    let count = async |message: &Entry| {
        let request = ApplyRequest { entries: vec![message.clone()], ..ApplyRequest::default() };
        ledger.apply(Arc::new(request), 0..1).await.unwrap().duplicates
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
