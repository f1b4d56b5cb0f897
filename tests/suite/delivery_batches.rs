//! Delivery batches: too large for the primary, so rare that hand-out times are uncertain, or of large
//! messages.

use std::time::{Duration, Instant};

use catchall::broker::EVENTS;
use harness::processes::Service;
use harness::servers::{Servers, eventually};
use serde_json::json;

use crate::poison::lock_counters;
use crate::retention::watermark;

#[tokio::test]
async fn what_the_primary_does_not_write_in_time_is_counted_in_smaller_delivery_batches() {
    const MESSAGES: i64 = 300;
    // So few that a message can fill a delivery batch again.
    const MAX_ROWS: (&str, f64) = ("400", 400.0);
    let servers = Servers::fresh().await;
    // Fifty rows a second, of which a statement may take one.
    servers
        .execute(
            "create function slow() returns trigger language plpgsql as \
             $$ begin perform pg_sleep(0.02); return new; end $$; \
             create trigger slow before insert on domain_counters for each row execute function slow()",
        )
        .await;
    let publisher = servers.publisher().await;
    for number in 0..MESSAGES {
        let body = format!(r#"{{"domain":"d{number}.com","event":"delivered"}}"#);
        // Half of them twice: what was counted in part is not counted again.
        for _ in 0..=number % 2 {
            publisher.publish(body.as_bytes(), Some(&format!("m-{number}"))).await;
        }
    }
    let variables = [("CATCHALL_STATEMENT_TIMEOUT_SECS", "1"), ("CATCHALL_MAX_ROWS", MAX_ROWS.0)];
    let worker = Service::start("worker", &servers, &variables).await;
    servers.settle().await;
    assert_eq!(
        servers.number("select count(*) from domain_counters where domain like 'd%.com'").await,
        MESSAGES
    );
    let sum = "select sum(delivered)::int8 from domain_counters where domain like 'd%.com'";
    assert_eq!(servers.number(sum).await, MESSAGES);
    worker.logs("rows were not written in time, the next delivery batches are smaller").await;
    let limit = async || worker.metric("catchall_worker_row_limit").await;
    let fallen = limit().await;
    assert!((1.0..MAX_ROWS.1).contains(&fallen), "{fallen}");
    // A smaller delivery batch each time, not the same one again and again.
    let late = worker.count_logged("rows were not written in time");
    assert!(late <= 30, "{late} statements were too late");

    // It rises while all goes well.
    servers.execute("drop trigger slow on domain_counters").await;
    let events = (0..300).map(|number| json!({"domain": format!("r{number}.com"), "event": "delivered"}));
    let body = serde_json::to_vec(&events.collect::<Vec<_>>()).unwrap();
    eventually("the limit is as high as it may be", async || {
        publisher.publish(&body, None).await;
        (limit().await >= MAX_ROWS.1).then_some(())
    })
    .await;
    servers.settle().await;
    assert!(limit().await <= MAX_ROWS.1);
}

/// The timeout is that of one statement: a transaction of several slow statements has not lost its peer.
#[tokio::test]
async fn a_transaction_may_take_longer_than_any_of_its_statements() {
    let servers = Servers::fresh().await;
    servers
        .execute(
            "create function slow() returns trigger language plpgsql as \
             $$ begin perform pg_sleep(1.2); return null; end $$; \
             create trigger slow before insert on message_claims for each statement execute function slow(); \
             create trigger slow before insert on event_claims for each statement execute function slow(); \
             create trigger slow before insert on domain_counters for each statement execute function slow()",
        )
        .await;
    // A statement may take two seconds, and three pass until the primary is taken to be gone.
    let worker = Service::start("worker", &servers, &[("CATCHALL_STATEMENT_TIMEOUT_SECS", "2")]).await;
    let publisher = servers.publisher().await;
    let body = br#"{"domain":"slow.com","event":"delivered","id":"e-1"}"#;
    publisher.publish(body, Some("m-1")).await;
    servers.settle_at("slow.com", 1, 0).await;
    // Once this is in the log, so is all that was logged before.
    worker.signal("TERM");
    worker.logs("stopping on SIGTERM").await;
    assert!(!worker.has_logged("no answer within 3s"));
}

#[tokio::test]
async fn a_queue_with_few_messages_gives_nothing_back() {
    const HOLD: Duration = Duration::from_secs(15);
    let servers = Servers::fresh().await;
    let variables = [("CATCHALL_ACK_DEADLINE_SECS", "15"), ("CATCHALL_STATEMENT_TIMEOUT_SECS", "2")];
    let worker = Service::ready("worker", &servers, &variables).await;
    let publisher = servers.publisher().await;
    let begun = Instant::now();
    let mut sent = 0;
    while begun.elapsed() < 2 * HOLD {
        publisher
            .publish(br#"{"domain":"trickle.com","event":"delivered"}"#, Some(&format!("m-{sent}")))
            .await;
        sent += 1;
        // Now and then nothing comes for longer than a quarter of that.
        tokio::time::sleep(if sent % 8 == 0 { HOLD / 3 } else { Duration::from_millis(200) }).await;
    }
    servers.settle_at("trickle.com", sent, 0).await;
    let (_, metrics) = worker.ops("/metrics").await;
    assert!(metrics.contains("catchall_worker_duplicates_total 0"), "{metrics}");
    worker.signal("TERM");
    worker.logs("stopping on SIGTERM").await;
    assert!(!worker.has_logged("returning them to the queue"));
}

/// A message of nearly 1 MiB, and how many events it has.
fn large(domain: &str) -> (Vec<u8>, i64) {
    let events = vec![json!({"domain": domain, "event": "delivered"}); 20_000];
    (serde_json::to_vec(&events).unwrap(), 20_000)
}

/// A worker that has settled so much that it takes as many messages ahead as it may, up to 128.
async fn trusting(servers: &Servers, variables: &[(&str, &str)]) -> Service {
    // With this one no watermark is due, whose messages would count as well.
    watermark(servers, "0 seconds", "0 seconds").await;
    let publisher = servers.publisher().await;
    for number in 0..200 {
        publisher
            .publish(br#"{"domain":"first.com","event":"delivered"}"#, Some(&format!("first-{number}")))
            .await;
    }
    let worker = Service::ready("worker", servers, variables).await;
    servers.settle_at("first.com", 200, 0).await;
    worker
}

#[tokio::test]
async fn large_messages_are_taken_ahead_only_as_far_as_memory_is_meant_for_them() {
    const MESSAGES: u32 = 24;
    const AHEAD: u32 = 8;
    let servers = Servers::fresh().await;
    let worker = trusting(&servers, &[("CATCHALL_PREFETCH_MIB", "8")]).await;
    worker.logs("taking at most 8 messages ahead instead of 1000 (CATCHALL_PREFETCH)").await;
    let publisher = servers.publisher().await;
    let locks = lock_counters(&servers).await;
    let (body, events) = large("large.com");
    for _ in 0..MESSAGES {
        publisher.publish(&body, None).await;
    }
    let rest = async || (publisher.waiting(EVENTS).await == MESSAGES - AHEAD).then_some(());
    eventually("all but eight wait in the queue", rest).await;
    drop(locks);
    servers.settle_at("large.com", i64::from(MESSAGES) * events, 0).await;
}

/// While it has messages at hand, its only thread has other things to do as well.
#[tokio::test]
async fn a_worker_is_there_while_it_reads() {
    const MESSAGES: i64 = 120;
    let servers = Servers::fresh().await;
    let worker = trusting(&servers, &[]).await;
    let publisher = servers.publisher().await;
    let (body, events) = large("large.com");
    let begun = Instant::now();
    let sending = async {
        for _ in 0..MESSAGES {
            publisher.publish(&body, None).await;
        }
        servers.settle_at("large.com", MESSAGES * events, 0).await;
    };
    let mut longest = Duration::ZERO;
    let looking = async {
        loop {
            let asked = Instant::now();
            worker.ops("/livez").await;
            longest = longest.max(asked.elapsed());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::select! {
        () = sending => {}
        () = looking => {}
    }
    let took = begun.elapsed();
    println!("{MESSAGES} messages took {took:?}, the longest answer {longest:?}");
    assert!(longest < took / 2, "of {took:?}, it was away for {longest:?}");
}
