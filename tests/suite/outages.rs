//! Servers that are away at start, or go away later: everyone waits, says so, and loses nothing.

use std::time::Duration;

use catchall::broker::DEAD;
use harness::processes::Service;
use harness::proxy::{Proxy, Wire, host};
use harness::servers::{Servers, eventually, topology};
use hyper::{Method, StatusCode, header};
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;

#[tokio::test]
async fn ingest_waits_for_its_broker_and_refuses_meanwhile() {
    let servers = Servers::fresh().await;
    let wire = Proxy::to(host(&servers.amqp_url), false).await;
    let behind = Servers { amqp_url: wire.through(&servers.amqp_url), ..servers.clone() };
    let ingest = Service::start("ingest", &behind, &[("CATCHALL_PUBLISH_DEADLINE_MS", "10000")]).await;
    ingest.becomes_unready("connection refused").await;
    ingest.logs("broker is not available, trying again").await;
    let (status, headers, body) = ingest.request(Method::PUT, "/events/a.com/delivered", &[], "").await;
    assert_eq!(
        (status, &headers[header::RETRY_AFTER]),
        (StatusCode::SERVICE_UNAVAILABLE, &"1".parse().unwrap())
    );
    assert!(body.contains("\"urn:catchall:problem:not-counted\""), "{body}");
    assert!(!body.contains("127.0.0.1"), "where the broker is is nobody's business: {body}");

    wire.mend();
    ingest.becomes_ready().await;
    assert_eq!(ingest.put("/events/a.com/delivered").await, StatusCode::ACCEPTED);
    wire.cut();
    ingest.becomes_unready("broker: ").await;
    assert_eq!(ingest.put("/events/a.com/delivered").await, StatusCode::SERVICE_UNAVAILABLE);
    wire.mend();
    ingest.becomes_ready().await;
    assert_eq!(ingest.put("/events/a.com/delivered").await, StatusCode::ACCEPTED);
    let _worker = Service::ready("worker", &servers, &[]).await;
    servers.settle_at("a.com", 2, 0).await;
}

#[tokio::test]
async fn an_event_rides_out_a_short_cut() {
    let servers = Servers::fresh().await;
    let wire = Proxy::to(host(&servers.amqp_url), true).await;
    let behind = Servers { amqp_url: wire.through(&servers.amqp_url), ..servers.clone() };
    let ingest = Service::ready("ingest", &behind, &[("CATCHALL_PUBLISH_DEADLINE_MS", "20000")]).await;
    wire.cut();
    let (status, ()) = tokio::join!(ingest.put("/events/a.com/delivered"), async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        wire.mend();
    });
    assert_eq!(status, StatusCode::ACCEPTED);
    let _worker = Service::ready("worker", &servers, &[]).await;
    servers.settle_at("a.com", 1, 0).await;
}

/// A peer that takes connections and says nothing must not collect what was given up.
#[tokio::test]
async fn an_attempt_that_is_given_up_is_closed() {
    let servers = Servers::bare().await;
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("amqp://a:b@{}/x?connection_timeout=200", silent.local_addr().unwrap());
    let behind = Servers { amqp_url: url, ..servers };
    let ingest = Service::start("ingest", &behind, &[("CATCHALL_THREADS", "1")]).await;
    for _ in 0..4 {
        let (mut attempt, _) = silent.accept().await.unwrap();
        let mut said = Vec::new();
        attempt.read_to_end(&mut said).await.unwrap();
        // On a busy machine the time may be over before anything is said.
        assert!(said.is_empty() || said == b"AMQP\0\0\x09\x01", "{said:?}");
    }
    ingest.becomes_unready("no answer within 200ms").await;
}

/// As a balancer does whose only broker has just died.
#[tokio::test]
async fn a_connection_that_is_closed_at_once_is_told_by_its_likely_causes() {
    let servers = Servers::bare().await;
    let balancer = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("amqp://a:b@{}/x", balancer.local_addr().unwrap());
    let behind = Servers { amqp_url: url, ..servers };
    let ingest = Service::start("ingest", &behind, &[("CATCHALL_THREADS", "1")]).await;
    let closing = tokio::spawn(async move {
        loop {
            // Read first: what is closed with bytes unread is reset.
            let (mut attempt, _) = balancer.accept().await.unwrap();
            let _ = attempt.read_exact(&mut [0; 8]).await;
        }
    });
    ingest.becomes_unready("a load balancer chose a broker that is down").await;
    let (_, reason) = ingest.readyz().await;
    assert!(
        reason.find("balancer") < reason.find("starting") && reason.find("starting") < reason.find("TLS"),
        "{reason}"
    );
    closing.abort();
}

/// Confirms take longer than half of the deadline. A publisher that waited for one before it publishes the
/// next message would be late.
#[tokio::test]
async fn a_broker_that_confirms_late_but_in_time_refuses_nobody() {
    let servers = Servers::fresh().await;
    let wire = Proxy::to(host(&servers.amqp_url), true).await;
    let behind = Servers { amqp_url: wire.through(&servers.amqp_url), ..servers.clone() };
    let ingest = Service::ready("ingest", &behind, &[("CATCHALL_PUBLISH_DEADLINE_MS", "15000")]).await;
    wire.be(Wire::LateConfirms(Duration::from_secs(9)));
    let puts = (0..200).map(async |number| {
        tokio::time::sleep(Duration::from_millis(20 * number)).await;
        ingest.put("/events/late.com/delivered").await
    });
    let statuses = futures::future::join_all(puts).await;
    assert!(statuses.iter().all(|status| *status == StatusCode::ACCEPTED), "{statuses:?}");
    // Once this is in the log, so is all that was logged before.
    ingest.signal("TERM");
    ingest.logs("stopping on SIGTERM").await;
    assert!(!ingest.has_logged("broker is not available"), "a slow connection is not a dead one");
    wire.mend();
    let _worker = Service::ready("worker", &servers, &[]).await;
    servers.settle_at("late.com", 200, 0).await;
}

#[tokio::test]
async fn a_worker_waits_for_both_sides_and_holds_what_it_has() {
    let servers = Servers::fresh().await;
    let broker = Proxy::to(host(&servers.amqp_url), false).await;
    let database = Proxy::to(host(&servers.database_url), false).await;
    let behind = Servers {
        amqp_url: broker.through(&servers.amqp_url),
        database_url: database.through(&servers.database_url),
        ..servers.clone()
    };
    let worker = Service::start("worker", &behind, &[]).await;
    worker.becomes_unready("connection refused").await;
    let publisher = servers.publisher().await;
    publisher.publish(br#"{"domain":"a.com","event":"delivered"}"#, Some("m-1")).await;
    broker.mend();
    database.mend();
    worker.becomes_ready().await;
    servers.settle_at("a.com", 1, 0).await;

    database.cut();
    worker.becomes_unready("database: ").await;
    publisher.publish(br#"{"domain":"a.com","event":"delivered"}"#, Some("m-2")).await;
    publisher.publish(b"poison", None).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    database.mend();
    worker.becomes_ready().await;
    servers.settle_at("a.com", 2, 0).await;
    // What is not acknowledged yet would come again, and the dead letter with it.
    eventually("the dead letter is there", async || (publisher.waiting(DEAD).await == 1).then_some(())).await;
    servers.settle().await;

    broker.cut();
    worker.becomes_unready("broker: ").await;
    publisher.publish(br#"{"domain":"a.com","event":"bounced"}"#, Some("m-3")).await;
    broker.mend();
    worker.becomes_ready().await;
    servers.settle_at("a.com", 2, 1).await;
    let dead = publisher.dead_letter().await.unwrap();
    assert_eq!(dead.0, b"poison");
    assert!(publisher.dead_letter().await.is_none(), "an outage makes no dead letters");
}

#[tokio::test]
async fn query_says_so_while_its_replica_is_away() {
    let servers = Servers::fresh().await;
    let wire = Proxy::to(host(&servers.replica_url), false).await;
    let behind = Servers { replica_url: wire.through(&servers.replica_url), ..servers };
    let query = Service::start("query", &behind, &[]).await;
    query.becomes_unready("connection refused").await;
    let (status, headers, body) = query.request(Method::GET, "/domains/a.com", &[], "").await;
    assert_eq!(
        (status, &headers[header::RETRY_AFTER]),
        (StatusCode::SERVICE_UNAVAILABLE, &"1".parse().unwrap())
    );
    assert!(body.contains("\"urn:catchall:problem:unavailable\"") && !body.contains("127.0.0.1"), "{body}");
    wire.mend();
    query.becomes_ready().await;
    query.answers("a.com", "unknown", 0, 0).await;
    wire.cut();
    query.becomes_unready("replica: ").await;
    wire.mend();
    query.becomes_ready().await;
    query.answers("a.com", "unknown", 0, 0).await;
}

#[tokio::test]
async fn a_missing_topology_is_named_with_the_way_to_create_it() {
    let servers = Servers::bare().await;
    catchall::store::postgres::migrate(&servers.database_url.parse().unwrap()).await.unwrap();
    let ingest = Service::start("ingest", &servers, &[("CATCHALL_PUBLISH_DEADLINE_MS", "10000")]).await;
    let worker = Service::start("worker", &servers, &[]).await;
    for service in [&ingest, &worker] {
        service.becomes_unready("has no exchange \"catchall.events\": create it with `rabbitmqctl").await;
    }
    assert_eq!(ingest.put("/events/a.com/delivered").await, StatusCode::SERVICE_UNAVAILABLE);
    servers.declare(&topology()).await;
    ingest.becomes_ready().await;
    worker.becomes_ready().await;
    assert_eq!(ingest.put("/events/a.com/delivered").await, StatusCode::ACCEPTED);
}

#[tokio::test]
async fn a_missing_schema_is_named_with_the_way_to_create_it() {
    let servers = Servers::bare().await;
    servers.declare(&topology()).await;
    let worker = Service::start("worker", &servers, &[]).await;
    let query = Service::start("query", &servers, &[]).await;
    worker.becomes_unready("the schema is missing: run catchall-migrate").await;
    query.becomes_unready("replica: ").await;
    let migrate =
        || harness::processes::run("migrate", &[], &[("CATCHALL_DATABASE_URL", &servers.database_url)]);
    let at_once = std::thread::scope(|scope| {
        let runs: Vec<_> = (0..3).map(|_| scope.spawn(migrate)).collect();
        runs.into_iter().map(|run| run.join().unwrap()).collect::<Vec<_>>()
    });
    for (status, stdout, stderr) in at_once {
        assert!(status.success() && stdout.contains("is up to date"), "{stdout}{stderr}");
    }
    worker.becomes_ready().await;
    query.becomes_ready().await;
}
