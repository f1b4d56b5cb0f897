//! What direct publishers send, counted once.

use harness::processes::Service;
use harness::servers::Servers;
use serde_json::json;

#[tokio::test]
async fn messages_are_single_events_or_arrays_with_counts() {
    let servers = Servers::fresh().await;
    let _worker = Service::ready("worker", &servers, &[]).await;
    let publisher = servers.publisher().await;
    publisher.publish(br#"{"domain": "Single.com", "event": "delivered"}"#, None).await;
    publisher.publish(br#"{"domain": "single.com.", "event": "delivered", "count": 3}"#, None).await;
    let array = br#"[{"domain":"single.com","event":"bounced"},
    {"domain":"other.com","event":"delivered","count":1000000000}]"#;
    publisher.publish(array, None).await;
    publisher.publish(b"[]", None).await;
    servers.settle_at("single.com", 4, 1).await;
    servers.settle_at("other.com", 1_000_000_000, 0).await;
}

#[tokio::test]
async fn a_message_id_counts_once_and_so_does_an_event_id() {
    let servers = Servers::fresh().await;
    let worker = Service::ready("worker", &servers, &[]).await;
    let publisher = servers.publisher().await;
    let plain = br#"{"domain": "once.com", "event": "delivered"}"#;
    let keyed = br#"[{"domain":"once.com","event":"delivered","count":10,"id":"e-1"},
    {"domain":"once.com","event":"bounced","id":"e-2"}]"#;
    for round in 0..3 {
        publisher.publish(plain, Some("m-1")).await;
        publisher.publish(keyed, None).await;
        // Another message with the same events: the events' own ids count once across messages.
        publisher.publish(keyed, Some(&format!("m-keyed-{round}"))).await;
        servers.settle_at("once.com", 11, 1).await;
    }
    // Message ids and event ids are two namespaces.
    publisher
        .publish(br#"{"domain":"once.com","event":"delivered","count":100,"id":"m-1"}"#, Some("e-1"))
        .await;
    publisher.publish(plain, Some("")).await;
    servers.settle_at("once.com", 11 + 100 + 1, 1).await;
    // In each round but the first one message, and of the keyed events all but the two that were the first.
    assert!((worker.metric("catchall_worker_duplicates_total").await - (2.0 + 10.0)).abs() < 0.5);
}

#[tokio::test]
async fn workers_share_the_queue_and_the_domains() {
    let servers = Servers::fresh().await;
    let workers = [
        Service::ready("worker", &servers, &[("CATCHALL_PREFETCH", "100"), ("CATCHALL_MAX_ROWS", "50")])
            .await,
        Service::ready("worker", &servers, &[("CATCHALL_PREFETCH", "100"), ("CATCHALL_MAX_ROWS", "50")])
            .await,
    ];
    let publisher = servers.publisher().await;
    for message in 0..400 {
        let events: Vec<_> = (0..20)
            .map(|i| json!({"domain": format!("d{}.com", (message + i * 7) % 30), "event": "delivered"}))
            .collect();
        let body = serde_json::to_vec(&events).unwrap();
        publisher.publish(&body, Some(&format!("shared-{message}"))).await;
        if message % 3 == 0 {
            publisher.publish(&body, Some(&format!("shared-{message}"))).await;
        }
    }
    let mut expected = [0; 30];
    (0..400 * 20).for_each(|event| expected[(event / 20 + event % 20 * 7) % 30] += 1);
    for (domain, delivered) in expected.into_iter().enumerate() {
        servers.settle_at(&format!("d{domain}.com"), delivered, 0).await;
    }
    for worker in &workers {
        assert!(worker.metric("catchall_worker_messages_total").await > 0.0, "both must have taken part");
        // Once this is in the log, so is all that was logged before.
        worker.signal("TERM");
        worker.logs("stopping on SIGTERM").await;
        assert!(!worker.has_logged("deadlock"));
    }
}

#[tokio::test]
async fn a_sum_stops_at_the_end_of_its_type() {
    let servers = Servers::fresh().await;
    let _worker = Service::ready("worker", &servers, &[]).await;
    let mut connection =
        <sqlx::PgConnection as sqlx::Connection>::connect(&servers.database_url).await.unwrap();
    sqlx::query("insert into domain_counters values ('large.com', 9223372036854775800, 0)")
        .execute(&mut connection)
        .await
        .unwrap();
    let publisher = servers.publisher().await;
    publisher.publish(br#"{"domain":"large.com","event":"delivered","count":1000}"#, None).await;
    publisher.publish(br#"{"domain":"small.com","event":"delivered"}"#, None).await;
    servers.settle_at("large.com", i64::MAX, 0).await;
    servers.settle_at("small.com", 1, 0).await;
}
