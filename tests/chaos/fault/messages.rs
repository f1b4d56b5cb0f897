//! Messages that are delivered several times, or in an order that could make two workers deadlock.

use anyhow::Result;
use futures::future::join_all;
use harness::amqp::AmqpClient;
use harness::expected::ExpectedCounts;
use serde_json::json;

use super::lifted::Lifted;
use crate::cluster::Cluster;

/// Messages that are published again and again.
const MESSAGES: usize = 60;

/// How often each is published by each of two publishers.
const TIMES: usize = 3;

/// How many domains both workers write.
const DOMAINS: usize = 1000;

/// How many messages with all these domains are sent in each order.
const PASSES: usize = 15;

/// The broker delivers messages to the workers in turn, so both have copies of a message at the same time.
pub(super) async fn deliver_twice(cluster: &mut Cluster, label: &str) -> Result<Lifted> {
    let mut expected = ExpectedCounts::default();
    let messages: Vec<(String, Vec<u8>)> = (0..MESSAGES)
        .map(|number| {
            let domain = format!("d{}.{label}.twice.test", number % 7);
            expected.expect(domain.clone(), 3, 3);
            let event = json!({"domain": domain, "event": "delivered", "count": 3});
            (format!("{label}-{number}"), event.to_string().into_bytes())
        })
        .collect();
    let (left, right) = (cluster.servers.publisher().await, cluster.servers.publisher().await);
    for _ in 0..TIMES {
        tokio::join!(publish(&left, &messages), publish(&right, &messages));
    }
    Ok(Lifted { expected, ..Lifted::now() })
}

async fn publish(publisher: &AmqpClient, messages: &[(String, Vec<u8>)]) {
    join_all(messages.iter().map(|(id, body)| publisher.publish(body, Some(id)))).await;
}

pub(super) async fn opposite_orders(cluster: &mut Cluster, label: &str) -> Result<Lifted> {
    let mut expected = ExpectedCounts::default();
    let mut events: Vec<_> = (0..DOMAINS)
        .map(|number| {
            let domain = format!("d{number}.{label}.order.test");
            let all = 2 * PASSES as u64;
            expected.expect(domain.clone(), all, all);
            json!({"domain": domain, "event": "delivered"})
        })
        .collect();
    let there = serde_json::to_vec(&events).expect("it is JSON");
    events.reverse();
    let back = serde_json::to_vec(&events).expect("it is JSON");
    let bodies: Vec<_> =
        (0..PASSES).flat_map(|pass| [(pass, "there", &there), (pass, "back", &back)]).collect();
    let messages: Vec<(String, Vec<u8>)> =
        bodies.into_iter().map(|(pass, way, body)| (format!("{label}-{way}-{pass}"), body.clone())).collect();
    publish(&cluster.servers.publisher().await, &messages).await;
    let mut lifted = Lifted { expected, ..Lifted::now() };
    lifted.failures.extend(deadlocks(cluster));
    Ok(lifted)
}

/// Whether a worker has logged a deadlock.
fn deadlocks(cluster: &Cluster) -> Option<String> {
    let seen = cluster.workers.iter().any(|worker| worker.service.has_logged("deadlock"));
    seen.then(|| "a worker has logged a deadlock".to_owned())
}
