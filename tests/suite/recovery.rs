//! Faults while messages are being counted: which messages a worker keeps, returns or dead-letters.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::stream::{self, StreamExt};
use harness::processes::{LONG_DEADLINE, Service};
use harness::proxy::{Proxy, host};
use harness::servers::{Servers, eventually};
use hyper::{Method, StatusCode};
use sqlx::{Connection, PgConnection};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

fn event(domain: &str) -> Vec<u8> {
    format!(r#"{{"domain":"{domain}","event":"delivered"}}"#).into_bytes()
}

/// Waits until a session of the test's database waits for a lock, which is what `what` says.
async fn waits_for_a_lock(servers: &Servers, what: &str) {
    const WAITING: &str = "select count(*) from pg_stat_activity \
        where datname = current_database() and wait_event_type = 'Lock'";
    eventually(what, async || (servers.number(WAITING).await > 0).then_some(())).await;
}

#[tokio::test]
async fn a_message_the_database_refuses_is_told_from_the_good_ones_around_it() {
    let servers = Servers::fresh().await;
    servers
        .execute(
            "alter table domain_counters add constraint no_good \
        check (domain not in ('bad.com', 'worse.com'))",
        )
        .await;
    let publisher = servers.publisher().await;
    for number in 0..60 {
        publisher.publish(&event("good.com"), Some(&format!("good-{number}"))).await;
        match number {
            17 | 18 => publisher.publish(&event("bad.com"), Some(&format!("bad-{number}"))).await,
            41 => publisher
                .publish(
                    br#"[{"domain":"good.com","event":"bounced"},{"domain":"worse.com","event":"bounced"}]"#,
                    None,
                )
                .await,
            _ => {}
        }
    }
    let worker = Service::ready("worker", &servers, &[]).await;
    servers.settle_at("good.com", 60, 0).await;
    let mut dead = Vec::new();
    for _ in 0..3 {
        let (body, _, properties) =
            eventually("a dead letter is there", async || publisher.dead_letter().await).await;
        dead.push((properties.message_id().as_ref().map(ToString::to_string), body));
    }
    dead.sort();
    assert_eq!(dead[1], (Some("bad-17".into()), event("bad.com")));
    assert_eq!(dead[2], (Some("bad-18".into()), event("bad.com")));
    assert_eq!(dead[0].0, None);
    assert!(publisher.dead_letter().await.is_none());
    worker.logs("no_good").await;
    // With the reason gone, what is replayed counts.
    servers.execute("alter table domain_counters drop constraint no_good").await;
    publisher.publish(&dead[1].1, Some("bad-17")).await;
    servers.settle_at("bad.com", 1, 0).await;
}

#[tokio::test]
async fn a_deadlock_is_one_more_try() {
    let servers = Servers::fresh().await;
    servers.execute("insert into domain_counters values ('a.com', 0, 0), ('b.com', 0, 0)").await;
    let _worker = Service::ready("worker", &servers, &[]).await;
    let mut rival = PgConnection::connect(&servers.database_url).await.unwrap();
    let mut rival = rival.begin().await.unwrap();
    // The rival waits longer before it looks for a deadlock, so the worker is the one that finds it.
    sqlx::query("set deadlock_timeout = '1min'").execute(&mut *rival).await.unwrap();
    sqlx::query("update domain_counters set bounced = bounced where domain = 'b.com'")
        .execute(&mut *rival)
        .await
        .unwrap();
    let body = br#"[{"domain":"a.com","event":"delivered"},{"domain":"b.com","event":"delivered"}]"#;
    servers.publisher().await.publish(body, Some("m-1")).await;
    waits_for_a_lock(&servers, "the worker has a.com and waits for b.com").await;
    sqlx::query("update domain_counters set bounced = bounced where domain = 'a.com'")
        .execute(&mut *rival)
        .await
        .expect("the worker gave way");
    rival.commit().await.unwrap();
    servers.settle_at("a.com", 1, 0).await;
    servers.settle_at("b.com", 1, 0).await;
    assert!(servers.publisher().await.dead_letter().await.is_none());
}

#[tokio::test]
async fn an_acknowledgement_is_never_sent_on_another_connection_than_its_message_came() {
    let servers = Servers::fresh().await;
    let wire = Proxy::to(host(&servers.amqp_url), true).await;
    let behind = Servers { amqp_url: wire.through(&servers.amqp_url), ..servers.clone() };
    let worker = Service::ready("worker", &behind, &[("CATCHALL_PREFETCH", "4")]).await;
    let mut rival = PgConnection::connect(&servers.database_url).await.unwrap();
    let publisher = servers.publisher().await;
    for round in 0..3 {
        // The delivery batch hangs in its transaction, its connection is replaced, and the next session gets
        // the same tags for other messages too.
        let mut lock = rival.begin().await.unwrap();
        sqlx::query("lock table domain_counters in exclusive mode").execute(&mut *lock).await.unwrap();
        for number in 0..10 {
            publisher.publish(&event("a.com"), Some(&format!("m-{round}-{number}"))).await;
        }
        waits_for_a_lock(&servers, "a delivery batch waits for the table").await;
        wire.cut();
        worker.becomes_unready("broker: ").await;
        wire.mend();
        worker.becomes_ready().await;
        lock.commit().await.unwrap();
        servers.settle_at("a.com", 10 * (round + 1), 0).await;
    }
}

#[tokio::test]
async fn a_worker_gives_back_what_it_could_not_count_in_time() {
    let servers = Servers::fresh().await;
    let wire = Proxy::to(host(&servers.database_url), true).await;
    let behind = Servers { database_url: wire.through(&servers.database_url), ..servers.clone() };
    let worker = Service::ready(
        "worker",
        &behind,
        &[("CATCHALL_ACK_DEADLINE_SECS", "6"), ("CATCHALL_STATEMENT_TIMEOUT_SECS", "2")],
    )
    .await;
    let publisher = servers.publisher().await;
    publisher.publish(&event("a.com"), Some("m-1")).await;
    servers.settle_at("a.com", 1, 0).await;
    wire.cut();
    worker.becomes_unready("database: ").await;
    publisher.publish(&event("a.com"), Some("m-2")).await;
    tokio::time::sleep(Duration::from_secs(8)).await;
    wire.mend();
    eventually("it gives back", async || worker.has_logged("returning them to the queue").then_some(()))
        .await;
    worker.becomes_ready().await;
    servers.settle_at("a.com", 2, 0).await;
    assert!(publisher.dead_letter().await.is_none());
}

/// Confirms that are swapped or lost would show here: some of what is published at once is refused, and the
/// answer to each must be its own.
#[tokio::test]
async fn every_202_is_counted_while_the_broker_refuses_others() {
    let servers = Servers::fresh().await;
    let policy = r#"{"pattern":"^catchall.events$","apply-to":"queues","definition":{"max-length":20}}"#;
    servers.management(Method::PUT, &format!("/api/policies/{}/small", servers.name), policy).await;
    let ingest = Service::ready("ingest", &servers, &[]).await;
    let put = async |number: usize| {
        let domain = format!("d{number}.com");
        let status = ingest.put(&format!("/events/{domain}/delivered")).await;
        (domain, status)
    };
    let mut answers: BTreeMap<String, StatusCode> = BTreeMap::new();
    // Without a worker the queue fills.
    let mut number = 0;
    while !answers.values().any(|status| *status == StatusCode::SERVICE_UNAVAILABLE) {
        assert!(number < 10_000, "the queue never was at its limit");
        answers.extend(
            stream::iter(number..number + 50).map(put).buffer_unordered(50).collect::<Vec<_>>().await,
        );
        number += 50;
    }
    // With one it is now full and now not.
    let _worker = Service::ready("worker", &servers, &[("CATCHALL_PREFETCH", "1")]).await;
    answers
        .extend(stream::iter(number..number + 1500).map(put).buffer_unordered(50).collect::<Vec<_>>().await);
    eventually("a PUT is taken again", async || {
        (ingest.put("/events/last.com/delivered").await == StatusCode::ACCEPTED).then_some(())
    })
    .await;
    eventually("the last is counted", async || (servers.counters("last.com").await.0 > 0).then_some(()))
        .await;
    let accepted = answers.values().filter(|status| **status == StatusCode::ACCEPTED).count();
    assert!(accepted > 0 && accepted < answers.len(), "{accepted} of {}", answers.len());
    let mut connection = PgConnection::connect(&servers.database_url).await.unwrap();
    let counted: Vec<(String, i64)> = sqlx::query_as("select domain, delivered from domain_counters")
        .fetch_all(&mut connection)
        .await
        .unwrap();
    let counted: BTreeMap<String, i64> = counted.into_iter().collect();
    for (domain, status) in answers {
        let count = counted.get(&domain).copied().unwrap_or(0);
        match status {
            StatusCode::ACCEPTED => assert_eq!(count, 1, "{domain} was accepted"),
            _ => assert!(count <= 1, "{domain} was answered with {status} and is counted {count} times"),
        }
    }
}

/// The publisher owns the confirms, not the request: clients that leave before their answer leave nothing
/// behind, and disturb nobody.
#[tokio::test]
async fn clients_that_leave_before_the_confirm_disturb_nobody() {
    let servers = Servers::fresh().await;
    let ingest = Service::ready("ingest", &servers, &[LONG_DEADLINE]).await;
    let address = ingest.url().trim_start_matches("http://").to_owned();
    for _ in 0..20 {
        let leaving = (0..20).map(async |_| {
            let mut client = TcpStream::connect(&address).await.unwrap();
            client
                .write_all(b"PUT /events/gone.com/delivered HTTP/1.1\r\nHost: localhost\r\n\r\n")
                .await
                .unwrap();
        });
        let (_, status) =
            tokio::join!(futures::future::join_all(leaving), ingest.put("/events/stayed.com/delivered"));
        assert_eq!(status, StatusCode::ACCEPTED);
    }
    let _worker = Service::ready("worker", &servers, &[]).await;
    servers.settle_at("stayed.com", 20, 0).await;
    let gone = eventually("what was accepted is counted", async || {
        let (gone, _) = servers.counters("gone.com").await;
        let (_, metrics) = ingest.ops("/metrics").await;
        let counted = format!("catchall_ingest_accepted_events_total {}", 20 + gone);
        metrics.lines().any(|line| line == counted).then_some(gone)
    })
    .await;
    assert!((0..=400).contains(&gone), "each counts once or not at all: {gone}");
}
