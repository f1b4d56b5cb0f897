//! Claims are forgotten, and never while a copy of what they guard can come back.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use catchall::batch::Batch;
use catchall::broker::{self, EVENTS, Message, Priority, Publisher};
use catchall::event::IdempotencyKey;
use catchall::health::Health;
use catchall::ledger::{ApplyError, Kind, Ledger, Portion, RetentionConfig, Watermark};
use clap::Parser;
use futures::stream::{self, StreamExt};
use harness::processes::Service;
use harness::proxy::{Proxy, host};
use harness::servers::{Servers, eventually};
use hyper::Method;
use lapin::BasicProperties;
use lapin::types::AMQPValue;
use serde_json::Value;
use sqlx::{Connection as _, PgConnection};
use tokio::time::Instant;
use uuid::Uuid;

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
const SHORT: [(&str, &str); 4] = [
    ("CATCHALL_MESSAGE_RETENTION_SECS", "1"),
    ("CATCHALL_EVENT_RETENTION_SECS", "1"),
    ("CATCHALL_MAX_HOLD_SECS", "8"),
    ("CATCHALL_STATEMENT_TIMEOUT_SECS", "3"),
];

const EVENT: &[u8] = br#"{"domain":"a.com","event":"delivered"}"#;
const KEYED: &[u8] = br#"{"domain":"a.com","event":"bounced","id":"e-1"}"#;

async fn claims(servers: &Servers) -> i64 {
    servers.number("select (select count(*) from message_claims) + (select count(*) from event_claims)").await
}

async fn forget_all(ledger: &Ledger, config: &RetentionConfig) -> u64 {
    let mut forgotten = 0;
    for kind in [Kind::Message, Kind::Event] {
        let mut pruning = ledger.prune(kind, config);
        loop {
            match pruning.step().await.unwrap() {
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
        servers.number("select count(*) from watermarks").await < 40,
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
    servers.execute("update watermarks set arrived_at = null; truncate forgotten_claims").await;
    servers.execute("update message_claims set claimed_at = now() - interval '1 year'").await;
    servers.execute("update event_claims set claimed_at = now() - interval '1 year'").await;
    servers.execute("update watermarks set published_at = now() - interval '1 minute'").await;
    let (ledger, config) = (servers.ledger(), retention(1, 1));
    assert!(ledger.begin_watermark(Duration::from_secs(1)).await.unwrap().is_some());
    servers.execute("update watermarks set published_at = published_at - interval '1 minute'").await;
    ledger.move_horizon(&config).await.unwrap();
    assert_eq!(forget_all(&ledger, &config).await, 0, "no mark has come through the queue");
    let _worker = Service::ready("worker", &servers, &SHORT).await;
    servers.settle_at("a.com", 2, 1).await;
}

/// Counts nothing but the mark.
async fn arrive(ledger: &Ledger, mark: Uuid) {
    let empty = (Some(IdempotencyKey::fresh()), Batch::default());
    let portion = Portion { batches: vec![empty], marks: vec![mark], before: None };
    ledger.apply(Arc::new(portion), 0..1).await.unwrap();
}

#[tokio::test]
async fn a_watermark_counts_once_nobody_can_hold_what_was_before_it() {
    let servers = Servers::fresh().await;
    let ledger = servers.ledger();
    let begin = async || ledger.begin_watermark(Duration::from_mins(1)).await.unwrap();
    let Watermark { lowest, highest } = begin().await.unwrap();
    assert_eq!(begin().await, None, "one is enough");
    for mark in [lowest, highest] {
        arrive(&ledger, mark).await;
        let horizon = ledger.move_horizon(&retention(10, 3600)).await.unwrap();
        assert_eq!(horizon.messages, None, "somebody may hold what was handed out before the mark");
    }
    let earlier = "update watermarks set published_at = published_at - interval '61 minutes', arrived_at = arrived_at - interval '61 minutes'";
    servers.execute(earlier).await;
    let horizon = ledger.move_horizon(&retention(10, 3600)).await.unwrap();
    let (messages, events) = (horizon.messages.unwrap(), horizon.events.unwrap());
    assert_eq!(messages, events);
    assert!(messages.elapsed().unwrap() >= Duration::from_mins(61) + Duration::from_secs(10));
    let again = ledger.move_horizon(&retention(1000, 3600)).await.unwrap();
    assert_eq!(again, horizon, "what is forgotten stays forgotten when the retention is raised");
}

#[tokio::test]
async fn half_a_watermark_shows_nothing_however_long_ago_it_arrived() {
    let servers = Servers::fresh().await;
    let ledger = servers.ledger();
    let begin = async || ledger.begin_watermark(Duration::ZERO).await.unwrap().unwrap();
    let earlier = "update watermarks set published_at = published_at - interval '2 days', arrived_at = arrived_at - interval '2 days'";
    // Halves of two do not make one.
    let (one, other) = (begin().await, begin().await);
    arrive(&ledger, one.lowest).await;
    arrive(&ledger, one.lowest).await;
    arrive(&ledger, other.highest).await;
    servers.execute(earlier).await;
    assert_eq!(ledger.move_horizon(&retention(10, 3600)).await.unwrap().messages, None);
    assert_eq!(servers.number("select count(*) from watermarks").await, 4, "the rest may still come");
    let whole = begin().await;
    arrive(&ledger, whole.highest).await;
    arrive(&ledger, whole.lowest).await;
    servers.execute(earlier).await;
    assert!(ledger.move_horizon(&retention(10, 3600)).await.unwrap().messages.is_some());
    assert_eq!(servers.number("select count(*) from watermarks").await, 2, "the halves are dropped");
}

/// What a watermark leaves behind that was published and arrived so long ago.
async fn watermark(servers: &Servers, published: &str, arrived: &str) {
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
    let config = retention(60, 60);
    let both = async || {
        let (one, other) = tokio::join!(forget_all(&ledgers[0], &config), forget_all(&ledgers[1], &config));
        one + other + forget_all(&ledgers[0], &config).await
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
async fn a_worker_begins_to_forget_soon_after_it_has_started() {
    let servers = Servers::fresh().await;
    servers
        .execute(
            "insert into message_claims select gen_random_uuid(), now() - interval '9 days' from generate_series(1, 12000);
             insert into event_claims select gen_random_uuid(), now() - interval '9 days' from generate_series(1, 12000);",
        )
        .await;
    watermark(&servers, "3 days", "2 days").await;
    let _worker = Service::ready("worker", &servers, &[]).await;
    eventually("all are forgotten", async || (claims(&servers).await == 0).then_some(())).await;
    eventually("a watermark has come through", async || {
        let arrived = servers
            .number("select count(*) from queue_progress where published_at > now() - interval '1 hour'");
        (arrived.await == 1).then_some(())
    })
    .await;
}

/// The first pass finds a database and no broker. Its watermark is not the one of the hour.
#[tokio::test]
async fn a_watermark_that_could_not_be_sent_is_soon_followed_by_one_that_can() {
    let servers = Servers::fresh().await;
    let wire = Proxy::to(host(&servers.amqp_url), false).await;
    let behind = Servers { amqp_url: wire.through(&servers.amqp_url), ..servers.clone() };
    let worker = Service::start("worker", &behind, &[]).await;
    eventually("one is noted", async || {
        (servers.number("select count(*) from watermarks").await == 2).then_some(())
    })
    .await;
    eventually("it is withdrawn", async || {
        (servers.number("select count(*) from watermarks").await == 0).then_some(())
    })
    .await;
    wire.mend();
    worker.becomes_ready().await;
    eventually("one has come through", async || {
        (servers.number("select count(*) from queue_progress").await == 1).then_some(())
    })
    .await;
}

#[tokio::test]
async fn forgetting_disturbs_nobody() {
    const OLD: u32 = 100_000;
    const AT_ONCE: usize = 32;
    let servers = Servers::fresh().await;
    // Some come once more while they are forgotten: each is known or not, and counts once at most.
    let met_again: Vec<String> = (0..1000).map(|number| format!("old-{number}")).collect();
    let mut connection = PgConnection::connect(&servers.database_url).await.unwrap();
    let key = |id: &String| id.parse::<IdempotencyKey>().unwrap().as_uuid();
    sqlx::query(
        "insert into message_claims select id, now() - interval '9 days' from unnest($1::uuid[]) as old (id)
         union all select gen_random_uuid(), now() - interval '9 days' - number * interval '1 ms' from generate_series(1, $2) as old (number)",
    )
    .bind(met_again.iter().map(key).collect::<Vec<_>>())
    .bind(i32::try_from(OLD).unwrap())
    .execute(&mut connection)
    .await
    .unwrap();
    sqlx::query("insert into event_claims select id, claimed_at from message_claims")
        .execute(&mut connection)
        .await
        .unwrap();
    watermark(&servers, "3 days", "2 days").await;
    let workers =
        [Service::ready("worker", &servers, &[]).await, Service::ready("worker", &servers, &[]).await];

    let left = async || {
        servers.number("select (select count(*) from message_claims where claimed_at < now() - interval '8 days') + (select count(*) from event_claims where claimed_at < now() - interval '8 days')").await
    };
    let publisher = servers.publisher().await;
    let publish = async |domain: &str, ids: Vec<String>| {
        let publisher = &publisher;
        stream::iter(ids)
            .for_each_concurrent(AT_ONCE, |id| async move {
                // Rows that both workers want, and one of its own.
                let body = format!(
                    r#"[{{"domain":"{domain}","event":"delivered"}},{{"domain":"{domain}","event":"bounced","id":"{id}"}},{{"domain":"{id}.com","event":"delivered"}}]"#
                );
                publisher.publish(body.as_bytes(), Some(&id)).await;
            })
            .await;
    };
    let (mut published, mut counted_meanwhile, mut again) = (0_i64, 0, met_again.chunks(100));
    let begun = Instant::now();
    loop {
        let before = left().await;
        let some: Vec<String> = (published..published + 200).map(|number| format!("new-{number}")).collect();
        published += 200;
        publish("new.com", some).await;
        if let Some(some) = again.next() {
            publish("again.com", some.to_vec()).await;
        }
        eventually("commits go on", async || {
            let waiting = servers.number(
                "select count(*) from pg_stat_activity as waiting, unnest(pg_blocking_pids(waiting.pid)) as blocker
                 join pg_stat_activity as blocking on blocking.pid = blocker
                 where waiting.datname = current_database() and blocking.query like '%catchall: forget%'
                    and waiting.query_start < clock_timestamp() - interval '5 seconds'",
            );
            assert_eq!(waiting.await, 0, "somebody waits for a row that is being forgotten");
            (servers.counters("new.com").await == (published, published)).then_some(())
        })
        .await;
        let after = left().await;
        if 0 < after && after < before {
            counted_meanwhile += 1;
        }
        if after == 0 && again.len() == 0 {
            break;
        }
        assert!(begun.elapsed() < Duration::from_mins(5), "{after} are left");
    }
    assert!(counted_meanwhile > 0, "nothing was counted while claims were forgotten");
    servers.settle_at("new.com", published, published).await;
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
    for worker in workers {
        for trouble in ["deadlock", "lock timeout"] {
            assert!(!worker.has_logged(trouble), "{:?}", worker.log());
        }
    }
}

/// Lets a test move the clock of its database, as everything that is said by `now()` sees it.
async fn movable_clock(servers: &Servers) {
    servers
        .execute(
            "create table moved_clock (by interval not null);
             insert into moved_clock values ('0');
             create function public.now() returns timestamptz stable language sql as
                'select pg_catalog.now() + (select by from public.moved_clock)';
             alter table message_claims alter claimed_at set default public.now();
             alter table event_claims alter claimed_at set default public.now();
             alter table watermarks alter published_at set default public.now();",
        )
        .await;
    servers.alter_database("set search_path = public, pg_catalog").await;
}

/// What was claimed and noted by a clock that was ten days ahead is in the future of the clock it is set back to.
#[tokio::test]
async fn a_clock_that_is_set_back_forgets_nothing_it_should_not_and_marks_go_on() {
    let servers = Servers::fresh().await;
    movable_clock(&servers).await;
    servers.execute("update moved_clock set by = '10 days'").await;
    let worker = Service::ready("worker", &servers, &SHORT).await;
    let publisher = servers.publisher().await;
    publisher.publish(EVENT, Some("m-1")).await;
    publisher.publish(KEYED, None).await;
    servers.settle_at("a.com", 1, 1).await;
    eventually("both claims are forgotten", async || (claims(&servers).await == 0).then_some(())).await;
    let ahead = async || {
        servers.number("select (select count(*) from watermarks where published_at > pg_catalog.now() + interval '1 day') + (select count(*) from forgotten_claims where used_before > pg_catalog.now() + interval '1 day')").await
    };
    assert!(ahead().await > 2);

    servers.execute("update moved_clock set by = '0'").await;
    publisher.publish(EVENT, Some("m-2")).await;
    servers.settle_at("a.com", 2, 1).await;
    eventually("it is noticed", async || {
        worker.has_logged("the primary's clock went back by 86").then_some(())
    })
    .await;
    eventually("nothing is left of the future", async || (ahead().await == 0).then_some(())).await;
    eventually("watermarks come through again", async || {
        let arrived =
            servers.number("select count(*) from queue_progress where arrived_at <= pg_catalog.now()");
        (arrived.await > 0).then_some(())
    })
    .await;
    // The one that shows it may go has not been through for as long as messages may be held.
    publisher.publish(EVENT, Some("m-2")).await;
    servers.settle_at("a.com", 2, 1).await;
    assert!(worker.readyz().await.0.is_success());
    // And then it goes, as ever.
    eventually("all claims are forgotten", async || (claims(&servers).await == 0).then_some(())).await;
}

/// A worker of a version before, or a crash at the wrong moment, leaves a horizon and watermarks of the future.
#[tokio::test]
async fn what_a_clock_that_was_ahead_has_left_behind_deletes_nothing() {
    let servers = Servers::fresh().await;
    let (ledger, config) = (servers.ledger(), retention(3600, 600));
    servers
        .execute(
            "insert into forgotten_claims values ('message', now() + interval '1 year'), ('event', now() + interval '1 year');
             insert into message_claims values (gen_random_uuid(), now() - interval '59 minutes'), (gen_random_uuid(), now());
             insert into event_claims values (gen_random_uuid(), now() - interval '59 minutes'), (gen_random_uuid(), now());",
        )
        .await;
    let nothing_goes = async |what: &str| {
        ledger.move_horizon(&config).await.unwrap();
        assert_eq!(forget_all(&ledger, &config).await, 0, "{what}");
    };
    nothing_goes("a horizon of the future").await;
    watermark(&servers, "-1 year", "-1 year").await;
    nothing_goes("a watermark of the future").await;
    // Published by a clock that was ahead, it arrived by one that was not, or the other way round.
    watermark(&servers, "-1 year", "2 hours").await;
    watermark(&servers, "2 hours", "3 hours").await;
    watermark(&servers, "2 hours", "-1 year").await;
    nothing_goes("watermarks that never were").await;
    // The queue has let through all that was published until an hour and a half ago: the claims are younger.
    watermark(&servers, "90 minutes", "80 minutes").await;
    nothing_goes("claims that were met since").await;
    // It has let through all until a minute ago, but the retention has not passed.
    watermark(&servers, "21 minutes", "20 minutes").await;
    nothing_goes("claims within the retention").await;

    assert!(ledger.begin_watermark(Duration::from_hours(1)).await.unwrap().is_none(), "one was sent");
    servers
        .execute("delete from watermarks where published_at between now() - interval '1 hour' and now()")
        .await;
    assert!(
        ledger.begin_watermark(Duration::from_hours(1)).await.unwrap().is_some(),
        "those of the future are none"
    );
    ledger.discard_future().await.unwrap();
    assert_eq!(servers.number("select count(*) from watermarks where published_at > now()").await, 0);
    let horizon = ledger.horizon().await.unwrap();
    assert!(horizon.messages.unwrap() <= SystemTime::now() && horizon.events.unwrap() <= SystemTime::now());

    // Here the primary's clock is behind all others, and its horizon is right.
    movable_clock(&servers).await;
    servers.execute("update moved_clock set by = '-10 days'").await;
    let behind = servers.ledger();
    behind.discard_future().await.unwrap();
    assert_eq!(behind.horizon().await.unwrap(), horizon, "what is forgotten stays so");
    servers.execute("update moved_clock set by = '0'").await;

    servers.execute("update message_claims set claimed_at = claimed_at - interval '10 hours'").await;
    watermark(&servers, "21 minutes", "20 minutes").await;
    ledger.move_horizon(&config).await.unwrap();
    assert_eq!(forget_all(&ledger, &config).await, 2, "what is old by every clock goes");
}

/// Another worker tells by the new time how long ago a watermark has arrived; by the old time, which is later, this one
/// may not hold its messages.
#[tokio::test]
async fn what_is_held_becomes_too_old_also_while_the_clock_is_set_back() {
    let servers = Servers::fresh().await;
    movable_clock(&servers).await;
    let ledger = servers.ledger();
    ledger.ready().await;
    let portion = |before| {
        let batches = vec![(Some(IdempotencyKey::fresh()), Batch::from_json(EVENT).unwrap())];
        Arc::new(Portion { batches, marks: Vec::new(), before: Some(before) })
    };
    let before = ledger.clock().after(Duration::from_secs(30));
    ledger.apply(portion(before), 0..1).await.unwrap();
    servers.execute("update moved_clock set by = '-1 hour'").await;
    // As its watch does each second.
    ledger.ready().await;
    ledger.apply(portion(before), 0..1).await.unwrap();
    servers.execute("update moved_clock set by = '-1 hour' + interval '31 seconds'").await;
    let error = ledger.apply(portion(before), 0..1).await.unwrap_err();
    assert!(matches!(error, ApplyError::TooLate), "{error}");
    let before = ledger.clock().after(Duration::from_secs(30));
    ledger.apply(portion(before), 0..1).await.unwrap();
    assert_eq!(servers.counters("a.com").await, (3, 0));
}

/// The statements of the version before: one of its workers may run for as long as an upgrade takes.
#[tokio::test]
async fn workers_of_the_version_before_send_no_marks_and_move_no_horizon() {
    let servers = Servers::fresh().await;
    let mut connection = PgConnection::connect(&servers.database_url).await.unwrap();
    let begun = sqlx::query(
        "insert into queue_marks (id) select gen_random_uuid() where not exists (
            select from queue_marks where published_at > now() - make_interval(secs => 3600)) returning id",
    )
    .fetch_all(&mut connection)
    .await
    .unwrap();
    assert!(begun.is_empty(), "it sends none");
    let ledger = servers.ledger();
    let whole = ledger.begin_watermark(Duration::ZERO).await.unwrap().unwrap();
    for mark in [whole.lowest, whole.highest] {
        sqlx::query(
            "update queue_marks set arrived_at = now() where id = any($1::uuid[]) and arrived_at is null",
        )
        .bind(vec![mark])
        .execute(&mut connection)
        .await
        .unwrap();
    }
    assert_eq!(servers.number("select count(*) from watermarks where arrived_at is null").await, 2);
    for statement in [
        "insert into forgotten_claims as f (kind, used_before)
         select kind, through.published_at - make_interval(secs => retention)
         from (values ('event', 1::float8), ('message', 1::float8)) as kinds (kind, retention),
            (select max(published_at) as published_at from queue_marks
             where arrived_at < now() - make_interval(secs => 0)) as through
         where through.published_at is not null
         on conflict (kind) do update set used_before = greatest(f.used_before, excluded.used_before)",
        "delete from queue_marks where published_at < (
            select max(published_at) from queue_marks where arrived_at < now() - make_interval(secs => 0))",
    ] {
        sqlx::query(statement).execute(&mut connection).await.unwrap();
    }
    assert_eq!(ledger.horizon().await.unwrap().messages, None, "it moves no horizon");
    assert_eq!(servers.number("select count(*) from queue_marks").await, 1, "and will not");
    connection.close().await.unwrap();
}

/// Whatever the broker makes of priorities: once both marks have been handed out, so has all that was published before.
/// The higher of them alone shows what this broker makes of them, and that the test could fail.
#[tokio::test]
async fn a_watermark_overtakes_no_message_of_any_priority() {
    const LOW: [Option<u8>; 7] = [None, Some(0), Some(3), None, Some(4), Some(1), Some(2)];
    const HIGH: [Option<u8>; 7] = [Some(9), Some(255), Some(5), Some(31), Some(30), Some(32), Some(200)];
    let servers = Servers::fresh().await;
    let client = servers.publisher().await;
    let config = broker::Config { amqp_url: servers.amqp_url.parse().unwrap() };
    let broker = Health::default().dependency("broker");
    let marks = Publisher::connect(config, "marks".into(), broker, Duration::from_secs(30));
    let mut overtaken_by_highest = 0;
    // Where two classes take turns, the rarer one is through first.
    for (many, few) in [(LOW, HIGH), (HIGH, LOW)] {
        let mut watermarks = Vec::new();
        let mut published = 0;
        for round in 0..4 {
            let of_many = many.iter().cycle().skip(round).take(40);
            let of_few = few.iter().cycle().skip(round).take(6);
            for priority in of_few.chain(of_many) {
                let properties = BasicProperties::default().with_delivery_mode(2);
                let properties = properties.with_message_id(published.to_string().into());
                let properties = match priority {
                    Some(priority) => properties.with_priority(*priority),
                    None => properties,
                };
                client.publish_with(EVENT, properties).await;
                published += 1;
            }
            let watermark = Watermark { lowest: Uuid::now_v7(), highest: Uuid::now_v7() };
            let lowest = Message::mark(watermark.lowest, Priority::Lowest);
            let highest = Message::mark(watermark.highest, Priority::Highest);
            marks.publish(vec![lowest, highest], Instant::now() + Duration::from_secs(30)).await.unwrap();
            watermarks.push((watermark, published));
            // Some are handed out and come back.
            for _ in 0..round {
                client.give_back(EVENTS).await;
            }
        }
        let mut order: BTreeMap<String, usize> = BTreeMap::new();
        while let Some((_, headers, properties)) = client.take(EVENTS).await {
            let name = match headers.inner().get("catchall-mark") {
                Some(AMQPValue::LongString(mark)) => String::from_utf8(mark.as_bytes().to_vec()).unwrap(),
                _ => properties.message_id().as_ref().unwrap().to_string(),
            };
            order.insert(name, order.len());
        }
        assert_eq!(order.len(), published + 2 * watermarks.len());
        for (Watermark { lowest, highest }, before) in watermarks {
            let (lowest, highest) = (order[&lowest.to_string()], order[&highest.to_string()]);
            let overtaken =
                |arrived| (0..before).filter(|event: &usize| order[&event.to_string()] > arrived).count();
            assert_eq!(overtaken(lowest.max(highest)), 0, "{order:?}");
            overtaken_by_highest += overtaken(highest);
        }
    }
    let overview: Value =
        serde_json::from_str(&servers.management(Method::GET, "/api/overview", "").await).unwrap();
    let version = overview["rabbitmq_version"].as_str().unwrap();
    let major: u32 = version.split('.').next().unwrap().parse().unwrap();
    assert_eq!(
        overtaken_by_highest > 0,
        major >= 4,
        "{overtaken_by_highest} overtaken by the mark of the highest priority alone on {version}"
    );
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
