//! Watermarks: what has come through the queue shows which claims may be pruned.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use catchall::batch::Batch;
use catchall::broker::{self, EVENTS, Message, Priority, Publisher};
use catchall::health::Health;
use catchall::idempotency_key::IdempotencyKey;
use catchall::store::ledger::{ApplyRequest, Entry, Ledger, Watermark};
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

use crate::retention::{EVENT, retention};

/// Counts nothing but half of a watermark.
async fn arrive(ledger: &Ledger, half: Uuid) {
    let empty = Entry { tag: 0, id: Some(IdempotencyKey::fresh()), batch: Batch::default() };
    let request = ApplyRequest { entries: vec![empty], watermark_ids: vec![half], before: None };
    ledger.apply(Arc::new(request), 0..1).await.unwrap();
}

#[tokio::test]
async fn a_watermark_counts_once_nobody_can_hold_what_was_before_it() {
    let servers = Servers::fresh().await;
    let ledger = servers.ledger();
    let begin = async || ledger.begin_watermark(Duration::from_mins(1)).await.unwrap();
    let Watermark { lowest, highest } = begin().await.unwrap();
    assert_eq!(begin().await, None, "one is enough");
    for half in [lowest, highest] {
        arrive(&ledger, half).await;
        let horizon = ledger.move_horizon(&retention(10, 3600)).await.unwrap();
        assert_eq!(horizon.messages, None, "somebody may hold what was handed out before the watermark");
    }
    let earlier = "update watermarks set published_at = published_at - interval '61 minutes', \
    arrived_at = arrived_at - interval '61 minutes'";
    servers.execute(earlier).await;
    let horizon = ledger.move_horizon(&retention(10, 3600)).await.unwrap();
    let (messages, events) = (horizon.messages.unwrap(), horizon.events.unwrap());
    assert_eq!(messages, events);
    assert!(messages.elapsed().unwrap() >= Duration::from_mins(61) + Duration::from_secs(10));
    let again = ledger.move_horizon(&retention(1000, 3600)).await.unwrap();
    assert_eq!(again, horizon, "what is pruned stays pruned when the retention is raised");
}

#[tokio::test]
async fn half_a_watermark_shows_nothing_however_long_ago_it_arrived() {
    let servers = Servers::fresh().await;
    let ledger = servers.ledger();
    let begin = async || ledger.begin_watermark(Duration::ZERO).await.unwrap().unwrap();
    let earlier = "update watermarks set published_at = published_at - interval '2 days', \
    arrived_at = arrived_at - interval '2 days'";
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

/// The statements of the version before: one of its workers may run for as long as an upgrade takes.
#[tokio::test]
async fn workers_of_the_version_before_send_no_watermarks_and_move_no_horizon() {
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
    for half in [whole.lowest, whole.highest] {
        sqlx::query(
            "update queue_marks set arrived_at = now() where id = any($1::uuid[]) and arrived_at is null",
        )
        .bind(vec![half])
        .execute(&mut connection)
        .await
        .unwrap();
    }
    assert_eq!(servers.number("select count(*) from watermarks where arrived_at is null").await, 2);
    for statement in [
        "insert into pruned_claims as f (kind, used_before)
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

/// Whatever the broker makes of priorities: once both halves have been handed out, so has all that was
/// published before. The higher of them alone shows what this broker makes of them, and that the test could
/// fail.
#[tokio::test]
async fn a_watermark_overtakes_no_message_of_any_priority() {
    const LOW: [Option<u8>; 7] = [None, Some(0), Some(3), None, Some(4), Some(1), Some(2)];
    const HIGH: [Option<u8>; 7] = [Some(9), Some(255), Some(5), Some(31), Some(30), Some(32), Some(200)];
    let servers = Servers::fresh().await;
    let client = servers.publisher().await;
    let config = broker::BrokerConfig::new(servers.amqp_url.parse().unwrap());
    let broker = Health::default().dependency("broker");
    let publisher = Publisher::connect(config, "watermarks".into(), broker, Duration::from_secs(30));
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
            let lowest = Message::watermark(watermark.lowest, Priority::Lowest);
            let highest = Message::watermark(watermark.highest, Priority::Highest);
            publisher.publish(vec![lowest, highest], Instant::now() + Duration::from_secs(30)).await.unwrap();
            watermarks.push((watermark, published));
            // Some are handed out and come back.
            for _ in 0..round {
                client.give_back(EVENTS).await;
            }
        }
        let mut order: BTreeMap<String, usize> = BTreeMap::new();
        while let Some((_, headers, properties)) = client.take(EVENTS).await {
            let name = match headers.inner().get("catchall-watermark") {
                Some(AMQPValue::LongString(half)) => String::from_utf8(half.as_bytes().to_vec()).unwrap(),
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
        "{overtaken_by_highest} overtaken by the half of the highest priority alone on {version}"
    );
}
