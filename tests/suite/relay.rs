//! The changes as messages: what the relay publishes, and what it says of those that wait.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use harness::instance::rabbitmqctl;
use harness::processes::{LONG_DEADLINE, Service, run};
use harness::proxy::{Proxy, host};
use harness::servers::{Servers, eventually};
use hyper::{Method, StatusCode};
use lapin::types::AMQPValue;
use serde_json::{Value, json};
use uuid::Uuid;

/// Declares a queue, and binds it to all changes.
async fn subscribe(servers: &Servers, queue: &str, arguments: &Value) {
    subscribe_to("#", servers, queue, arguments).await;
}

/// Declares a queue, and binds it to changes to some statuses.
async fn subscribe_to(statuses: &str, servers: &Servers, queue: &str, arguments: &Value) {
    let definitions = json!({
        "queues": [{"name": queue, "durable": true, "auto_delete": false, "arguments": arguments}],
        "bindings": [{"source": "catchall.changes", "destination": queue, "destination_type": "queue",
            "routing_key": statuses, "arguments": {}}]
    });
    servers.declare(&definitions).await;
}

fn short(change: &Value) -> String {
    format!("{} {}", change["domain"].as_str().unwrap(), change["status"].as_str().unwrap())
}

/// The body of a message with a bounce of each domain.
fn bounces(domains: &[String]) -> Vec<u8> {
    let events = domains.iter().map(|domain| json!({"domain": domain, "event": "bounced"}));
    serde_json::to_vec(&events.collect::<Vec<_>>()).unwrap()
}

#[tokio::test]
async fn changes_are_messages_for_whoever_binds_a_queue() {
    let servers = Servers::fresh().await;
    let own = "catchall.changes.test";
    subscribe(&servers, own, &json!({})).await;
    let ingest = Service::ready("ingest", &servers, &[LONG_DEADLINE]).await;
    let mut worker = Service::ready("worker", &servers, &[]).await;
    let client = servers.publisher().await;
    let mut heard = BTreeMap::new();
    for round in 0..4 {
        let events = (0..50).map(|number| {
            json!({"domain": format!("d{number}.r{round}.com"), "event": "delivered", "count": 1001})
        });
        let bounces =
            (0..50).map(|number| json!({"domain": format!("d{number}.r{round}.com"), "event": "bounced"}));
        for events in [events.collect::<Vec<_>>(), bounces.collect()] {
            let body = Value::from(events).to_string();
            let sent =
                ingest.request(Method::POST, "/events", &[("content-type", "application/json")], body).await;
            assert_eq!(sent.0, StatusCode::ACCEPTED);
        }
        if round % 2 == 1 {
            // Whoever publishes next goes on where this one was, and may publish some again.
            worker.signal("KILL");
            worker.ended().await;
            worker = Service::ready("worker", &servers, &[]).await;
        }
    }
    eventually("every domain's last change was published", async || {
        while let Some((body, headers, properties)) = client.take(own).await {
            let change: Value = serde_json::from_slice(&body).unwrap();
            assert_eq!(properties.message_id().as_ref().unwrap().as_str(), short(&change));
            assert_eq!(properties.content_type().as_ref().unwrap().as_str(), "application/json");
            let AMQPValue::LongLongInt(changed_in) = headers.inner()["catchall-changed-in"] else {
                panic!("{headers:?}");
            };
            let status = change["status"].as_str().unwrap().to_owned();
            let domain = change["domain"].as_str().unwrap().to_owned();
            let latest = heard.entry(domain).or_insert((changed_in, status.clone()));
            if changed_in >= latest.0 {
                *latest = (changed_in, status);
            }
        }
        let last = heard.values().filter(|(_, status)| status == "not catch-all").count();
        (last == 200).then_some(())
    })
    .await;
}

/// With its status, such a name is longer than the id of a message may be.
#[tokio::test]
async fn a_change_of_the_longest_domain_is_a_message_like_any_other() {
    let servers = Servers::fresh().await;
    let own = "catchall.changes.test";
    subscribe(&servers, own, &json!({})).await;
    let (client, mut worker) = (servers.publisher().await, Service::ready("worker", &servers, &[]).await);
    let label = "a".repeat(63);
    let longest = format!("{label}.{label}.{label}.{}", "b".repeat(61));
    assert_eq!(longest.len(), 253);
    let namespace: Uuid = "7d1f6f0e-58c4-4f0b-9d3a-c0a7ca110003".parse().unwrap();
    let id = Uuid::new_v5(&namespace, format!("{longest} not catch-all").as_bytes());
    for (domain, id) in
        [(longest, id.to_string()), ("short.com".to_owned(), "short.com not catch-all".to_owned())]
    {
        client.publish(&bounces(std::slice::from_ref(&domain)), None).await;
        let taken = eventually("the change is published", async || client.take(own).await).await;
        let (body, _, properties) = taken;
        let change: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(short(&change), format!("{domain} not catch-all"));
        assert_eq!(properties.message_id().as_ref().unwrap().as_str(), id);
    }
    assert!(worker.has_ended().is_none());
    assert!(!worker.has_logged("panicked"));
}

/// The broker's process for the connection that publishes changes.
async fn relay_connection(servers: &Servers) -> String {
    let list = ["--silent", "list_connections", "pid", "vhost", "client_properties"];
    let connections = rabbitmqctl(&list).await.unwrap();
    let mut ours = connections
        .lines()
        .filter(|line| line.contains(&servers.name) && line.contains("catchall-worker changes"));
    let pid = ours.next().and_then(|line| line.split_whitespace().next()).map(str::to_owned);
    assert_eq!(ours.next(), None, "there is one");
    pid.expect("the relay is connected")
}

#[tokio::test]
async fn changes_that_no_queue_takes_are_not_sent_one_by_one() {
    let servers = Servers::fresh().await;
    let (client, worker) = (servers.publisher().await, Service::ready("worker", &servers, &[]).await);
    let metric = async |name: &str| worker.metric(&format!("catchall_worker_changes_{name}_total")).await;
    let published = async |number: f64| {
        eventually("changes are published", async || {
            (metric("published").await > number - 0.5).then_some(())
        })
        .await;
    };
    let names = |kind: &str| (0..2000).map(|number| format!("{kind}{number}.com")).collect::<Vec<_>>();
    client.publish(&bounces(&names("before")), None).await;
    published(2000.0).await;
    assert!((metric("unheard").await - 2000.0).abs() < 0.5);
    let connection = relay_connection(&servers).await;
    // One status is heard, the other is not.
    let own = "catchall.changes.own";
    subscribe_to("catch-all", &servers, own, &json!({})).await;
    let proven = names("proven");
    let delivered =
        proven.iter().map(|domain| json!({"domain": domain, "event": "delivered", "count": 1001}));
    client.publish(&serde_json::to_vec(&delivered.collect::<Vec<_>>()).unwrap(), None).await;
    client.publish(&bounces(&names("refused")), None).await;
    published(6000.0).await;
    assert!((metric("unheard").await - 4000.0).abs() < 0.5);
    let mut heard = BTreeSet::new();
    while let Some((body, ..)) = client.take(own).await {
        heard.insert(short(&serde_json::from_slice(&body).unwrap()));
    }
    let expected = proven.iter().map(|domain| format!("{domain} catch-all"));
    assert_eq!(heard, expected.collect());
    let path = format!("/api/exchanges/{}/catchall.changes", servers.name);
    let sent = eventually("the broker has counted what it got", async || {
        let exchange: Value =
            serde_json::from_str(&servers.management(Method::GET, &path, "").await).unwrap();
        exchange["message_stats"]["publish_in"].as_u64().filter(|sent| *sent >= 2000)
    })
    .await;
    // Those that are heard, and a few questions; some steps may have been repeated.
    assert!(sent < 4000, "{sent} of 6000");
    assert_eq!(relay_connection(&servers).await, connection, "no question ended it");
}

/// Its limit is its owner's business.
#[tokio::test]
async fn a_queue_that_refuses_changes_misses_them_and_nobody_else_does() {
    let servers = Servers::fresh().await;
    let (own, full) = ("catchall.changes.own", "catchall.changes.full");
    subscribe(&servers, own, &json!({})).await;
    subscribe(&servers, full, &json!({"x-max-length": 1, "x-overflow": "reject-publish"})).await;
    let (client, worker) = (servers.publisher().await, Service::ready("worker", &servers, &[]).await);
    let metric = async |name: &str| worker.metric(&format!("catchall_worker_changes_{name}")).await;
    let domains: Vec<String> = (0..20).map(|number| format!("d{number:02}.com")).collect();
    for domains in domains.chunks(5) {
        client.publish(&bounces(domains), None).await;
    }
    eventually("all changes are published", async || {
        let published = metric("published_total").await;
        (published > 19.5 && metric("unpublished").await < 0.5).then_some(())
    })
    .await;
    // What is published again comes within a second.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let mut heard = Vec::new();
    while let Some((body, ..)) = client.take(own).await {
        let change: Value = serde_json::from_slice(&body).unwrap();
        heard.push(change["domain"].as_str().unwrap().to_owned());
    }
    assert_eq!(heard, domains);
    assert_eq!(client.waiting(full).await, 1);
    for (name, value) in [("published_total", 20.0), ("refused_total", 19.0)] {
        let shown = metric(name).await;
        assert!((shown - value).abs() < 0.5, "{name} {shown}");
    }
    worker.logs_times("refuses changes, as a full queue does", 1).await;
    assert!(!worker.has_logged("changes are not published"));
}

#[tokio::test]
async fn what_waits_is_shown_until_another_worker_shows_it() {
    let servers = Servers::fresh().await;
    // The feed does not come to this change before long. The domain has been so for a year, as it may be
    // after a move.
    servers
        .execute(
            "insert into domain_statuses (domain, status, since, changed_in) values
                ('old.com', 2, now() - interval '1 year', 1000000000 + pg_current_xact_id()::text::bigint)",
        )
        .await;
    let wire = Proxy::to(host(&servers.database_url), true).await;
    let behind = Servers { database_url: wire.through(&servers.database_url), ..servers.clone() };
    let worker = Service::ready("worker", &behind, &[]).await;
    let shown = async |worker: &Service| {
        let waiting = worker.metric("catchall_worker_changes_unpublished").await;
        (waiting, worker.metric("catchall_worker_changes_oldest_unpublished_seconds").await)
    };
    let waits = async |worker: &Service| {
        let (waiting, oldest) = shown(worker).await;
        (waiting > 0.5 && oldest > 1.0).then_some(oldest)
    };
    let oldest = eventually("the change is seen to wait", async || waits(&worker).await).await;
    assert!(oldest < 600.0, "{oldest} s");
    wire.cut();
    worker.becomes_unready("database: ").await;
    eventually("it has asked again in vain", async || (shown(&worker).await.1 > oldest + 5.0).then_some(()))
        .await;
    let (waiting, _) = shown(&worker).await;
    assert!((waiting - 1.0).abs() < 0.5, "{waiting}");
    let other = Service::ready("worker", &servers, &[]).await;
    eventually("the other has the turn", async || waits(&other).await).await;
    wire.mend();
    eventually("the first knows of the other", async || {
        let (waiting, oldest) = shown(&worker).await;
        (waiting + oldest < 0.1).then_some(())
    })
    .await;
    assert!(waits(&other).await.is_some());
}

/// Whoever publishes next need not wait until the turn is over, and repeats nothing.
#[tokio::test]
async fn a_worker_that_stops_passes_its_turn_on() {
    let servers = Servers::fresh().await;
    let own = "catchall.changes.test";
    subscribe(&servers, own, &json!({})).await;
    let client = servers.publisher().await;
    let holders = async || servers.number("select count(*) from change_relay where holder is not null").await;
    for domain in ["a.com", "b.com", "c.com"] {
        assert_eq!(holders().await, 0);
        let mut worker = Service::ready("worker", &servers, &[]).await;
        client.publish(&bounces(&[domain.to_owned()]), None).await;
        let (body, ..) = eventually("the change is published", async || client.take(own).await).await;
        assert_eq!(short(&serde_json::from_slice(&body).unwrap()), format!("{domain} not catch-all"));
        assert_eq!(holders().await, 1);
        worker.signal("TERM");
        assert!(worker.ended().await.success());
    }
}

/// A dump of another server has numbers of transactions that are still to come here.
#[tokio::test]
async fn a_relay_goes_on_once_what_was_restored_is_brought_into_the_present() {
    let servers = Servers::fresh().await;
    let own = "catchall.changes.test";
    subscribe(&servers, own, &json!({})).await;
    servers
        .execute(
            "insert into domain_counters (domain, delivered, bounced) values ('a.com', 0, 1);
            insert into domain_statuses (domain, status, since, changed_in) values
                ('a.com', 2, now(), 1000000000 + pg_current_xact_id()::text::bigint);
            update change_relay set changed_in = 1000000001 + pg_current_xact_id()::text::bigint",
        )
        .await;
    let _worker = Service::ready("worker", &servers, &[]).await;
    let holders = "select count(*) from change_relay where holder is not null";
    eventually("it has the turn", async || (servers.number(holders).await == 1).then_some(())).await;
    let database = ("CATCHALL_DATABASE_URL", &*servers.database_url);
    let (status, out, said) = run("admin", &["reclassify", "--by", "tests"], &[database]);
    assert!(status.success(), "{out}{said}");
    let client = servers.publisher().await;
    let (body, ..) = eventually("the change is published", async || client.take(own).await).await;
    assert_eq!(short(&serde_json::from_slice(&body).unwrap()), "a.com not catch-all");
}

/// Lets the process of a queue do nothing, or go on.
async fn order(servers: &Servers, queue: &str, order: &str) {
    let find = format!("rabbit_misc:r(<<\"{}\">>, queue, <<\"{queue}\">>)", servers.name);
    let expression =
        format!("{{ok, Q}} = rabbit_amqqueue:lookup({find}), ok = sys:{order}(amqqueue:get_pid(Q)).");
    rabbitmqctl(&["eval", &expression]).await.unwrap();
}

/// Like a quorum queue without its majority.
#[tokio::test]
async fn a_queue_that_does_not_confirm_leaves_the_worker_ready_and_is_tried_ever_more_rarely() {
    let servers = Servers::fresh().await;
    let (own, stuck) = ("catchall.changes.own", "catchall.changes.stuck");
    subscribe(&servers, own, &json!({})).await;
    subscribe(&servers, stuck, &json!({})).await;
    let (client, worker) = (servers.publisher().await, Service::ready("worker", &servers, &[]).await);
    let metric = async |name: &str| worker.metric(&format!("catchall_worker_changes_{name}")).await;
    order(&servers, stuck, "suspend").await;
    client.publish(&bounces(&["a.com".to_owned()]), None).await;
    eventually("the change has waited for a while", async || {
        let (status, reason) = worker.readyz().await;
        assert_eq!(status, StatusCode::OK, "{reason}");
        (metric("oldest_unpublished_seconds").await > 25.0).then_some(())
    })
    .await;
    let heard = client.waiting(own).await;
    assert!((1..=4).contains(&heard), "{heard} times");
    worker.logs_times("is bound to catchall.changes does not confirm", 1).await;
    assert!(!worker.has_logged("broker is not available"));
    order(&servers, stuck, "resume").await;
    client.publish(&bounces(&["b.com".to_owned()]), None).await;
    eventually("both changes are published", async || {
        let published = metric("published_total").await;
        (published > 1.5 && metric("unpublished").await < 0.5).then_some(())
    })
    .await;
    assert_eq!(worker.count_logged("changes are not published"), 1);
}
