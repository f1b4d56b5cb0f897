//! A clock is set forward and back, and nothing is pruned too early or taken for new.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use catchall::batch::Batch;
use catchall::idempotency_key::IdempotencyKey;
use catchall::store::ledger::{ApplyError, ApplyRequest, Entry};
use harness::processes::Service;
use harness::servers::{Servers, eventually};
use harness::sql;
use harness::system::System;
use hyper::{Method, StatusCode};
use sqlx::{Connection, PgConnection};

use crate::retention::{EVENT, SHORT, claims, count_both, prune_all, retention, watermark};

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

/// What was claimed and noted by a clock that was ten days ahead is in the future of the clock it is set back
/// to.
#[tokio::test]
async fn a_clock_that_is_set_back_prunes_nothing_it_should_not_and_watermarks_go_on() {
    let servers = Servers::fresh().await;
    movable_clock(&servers).await;
    servers.execute("update moved_clock set by = '10 days'").await;
    let worker = Service::ready("worker", &servers, &SHORT).await;
    let publisher = count_both(&servers).await;
    eventually("both claims are pruned", async || (claims(&servers).await == 0).then_some(())).await;
    let ahead = async || {
        servers
            .number(
                "select (select count(*) from watermarks
                         where published_at > pg_catalog.now() + interval '1 day')
                      + (select count(*) from pruned_claims
                         where used_before > pg_catalog.now() + interval '1 day')",
            )
            .await
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
    worker.becomes_ready().await;
    // And then it goes, as ever.
    eventually("all claims are pruned", async || (claims(&servers).await == 0).then_some(())).await;
}

/// A worker of a version before, or a crash at the wrong moment, leaves a horizon and watermarks of the
/// future.
#[tokio::test]
async fn what_a_clock_that_was_ahead_has_left_behind_deletes_nothing() {
    let servers = Servers::fresh().await;
    let (ledger, config) = (servers.ledger(), retention(3600, 600));
    servers
        .execute(
            "insert into pruned_claims values ('message', now() + interval '1 year'),
                ('event', now() + interval '1 year');
             insert into message_claims values (gen_random_uuid(), now() - interval '59 minutes'),
                (gen_random_uuid(), now());
             insert into event_claims values (gen_random_uuid(), now() - interval '59 minutes'),
                (gen_random_uuid(), now());",
        )
        .await;
    let nothing_goes = async |what: &str| {
        ledger.move_horizon(&config).await.unwrap();
        assert_eq!(prune_all(&ledger, &config).await, 0, "{what}");
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
    assert_eq!(behind.horizon().await.unwrap(), horizon, "what is pruned stays pruned");
    servers.execute("update moved_clock set by = '0'").await;

    servers.execute("update message_claims set claimed_at = claimed_at - interval '10 hours'").await;
    watermark(&servers, "21 minutes", "20 minutes").await;
    ledger.move_horizon(&config).await.unwrap();
    assert_eq!(prune_all(&ledger, &config).await, 2, "what is old by every clock goes");
}

/// Another worker tells by the new time how long ago a watermark has arrived; by the old time, which is
/// later, this one may not hold its messages.
#[tokio::test]
async fn what_is_held_becomes_too_old_also_while_the_clock_is_set_back() {
    let servers = Servers::fresh().await;
    movable_clock(&servers).await;
    let ledger = servers.ledger();
    ledger.ready().await;
    let request = |before| {
        let entries = vec![Entry {
            tag: 0,
            id: Some(IdempotencyKey::fresh()),
            batch: Batch::from_json(EVENT).unwrap(),
        }];
        Arc::new(ApplyRequest { entries, watermark_ids: Vec::new(), before: Some(before) })
    };
    let before = ledger.clock().after(Duration::from_secs(30));
    ledger.apply(request(before), 0..1).await.unwrap();
    servers.execute("update moved_clock set by = '-1 hour'").await;
    // As its watch does each second.
    ledger.ready().await;
    ledger.apply(request(before), 0..1).await.unwrap();
    servers.execute("update moved_clock set by = '-1 hour' + interval '31 seconds'").await;
    let error = ledger.apply(request(before), 0..1).await.unwrap_err();
    assert!(matches!(error, ApplyError::TooLate), "{error}");
    let before = ledger.clock().after(Duration::from_secs(30));
    ledger.apply(request(before), 0..1).await.unwrap();
    assert_eq!(servers.counters("a.com").await, (3, 0));
}

/// The claims of what is repeated may be pruned soon after the deadline.
#[tokio::test]
async fn what_becomes_too_old_while_it_waits_for_claims_is_not_counted() {
    let servers = Servers::fresh().await;
    let ledger = servers.ledger();
    ledger.ready().await;
    let mut gate = PgConnection::connect(&servers.database_url).await.unwrap();
    sqlx::raw_sql("begin; lock table message_claims in share mode").execute(&mut gate).await.unwrap();
    let batch = Batch::from_json(EVENT).unwrap();
    let entries = vec![Entry { tag: 0, id: Some(IdempotencyKey::fresh()), batch }];
    let before = Some(ledger.clock().after(Duration::from_secs(1)));
    let request = Arc::new(ApplyRequest { entries, watermark_ids: Vec::new(), before });
    let open = async {
        tokio::time::sleep(Duration::from_secs(2)).await;
        sqlx::raw_sql("rollback").execute(&mut gate).await.unwrap();
    };
    let (applied, ()) = tokio::join!(ledger.apply(request, 0..1), open);
    let error = applied.unwrap_err();
    assert!(matches!(error, ApplyError::TooLate), "{error}");
    assert_eq!(servers.counters("a.com").await, (0, 0));
    assert_eq!(servers.number("select count(*) from message_claims").await, 0);
}

/// The totals of half an hour by a clock that was hours ahead.
const AHEAD: &str = "\
insert into totals (counted_at, writer, delivered)
select date_bin('10 seconds', now(), 'epoch') + make_interval(hours => 3, mins => ago), gen_random_uuid(), 40
from generate_series(1, 30) as ago";
const AHEAD_IN_FILE: &str = "\
insert into totals (counted_at, delivered)
with recursive ahead (minutes) as (values (1) union all select minutes + 1 from ahead where minutes < 30)
select unixepoch() / 10 * 10 + 3 * 3600 + minutes * 60, 40 from ahead";

#[tokio::test]
async fn what_a_clock_that_was_ahead_has_counted_is_not_of_the_last_hour() {
    for mut system in System::both(&[]).await {
        let event = r#"[{"domain": "a.com", "event": "delivered", "count": 3}]"#;
        let headers = [("content-type", "application/json")];
        let (status, ..) = system.events().request(Method::POST, "/events", &headers, event).await;
        assert_eq!(status, StatusCode::ACCEPTED);
        system.domains().answers("a.com", "unknown", 3, 0).await;
        let place = system.place().1.to_owned();
        if system.is_standalone() {
            sql::execute_in(place.as_ref(), AHEAD_IN_FILE).await.unwrap();
        } else {
            system.servers.execute(AHEAD).await;
        }
        let are_right = async |system: &System, what: &str| {
            let totals = eventually("all is in the totals", async || {
                let (_, totals) = system.domains().get("/totals").await;
                (totals["events"]["delivered"] == 1203).then_some(totals)
            })
            .await;
            assert_eq!(totals["recent"]["hour"], 3, "{what}");
            let minutes = totals["minutes"].as_array().unwrap();
            let counted: u64 = minutes.iter().map(|minute| minute["delivered"].as_u64().unwrap()).sum();
            assert_eq!(counted, 3, "{what}: {totals}");
        };
        are_right(&system, "they are ahead").await;
        // Otherwise it would be of the last hour when its time comes.
        if system.is_standalone() {
            system.events().signal("TERM");
            assert!(system.started_again().await.success());
            let left = "select count(*) from totals where counted_at > unixepoch() + 3600";
            let left = async || sql::number_in(place.as_ref(), left).await.unwrap();
            eventually("nothing is left ahead", async || (left().await == 0).then_some(())).await;
        } else {
            system.servers.ledger().fold_totals().await.unwrap();
            let left = "select count(*) from totals where counted_at > now() + interval '1 hour'";
            assert_eq!(system.servers.number(left).await, 0);
        }
        are_right(&system, "they are folded").await;
    }
}
