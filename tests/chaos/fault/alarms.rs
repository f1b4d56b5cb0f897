//! A broker that is available but accepts nothing.

use anyhow::Result;
use harness::instance::rabbitmqctl;
use hyper::Method;
use serde_json::json;

use super::lifted::Lifted;
use crate::cluster::{Cluster, PUBLISH_DEADLINE};
use crate::rng::Rng;

pub(super) async fn memory(rng: &mut Rng) -> Result<Lifted> {
    rabbitmqctl(&["set_vm_memory_high_watermark", "0.00001"]).await?;
    outlast(rng).await;
    rabbitmqctl(&["set_vm_memory_high_watermark", "0.4"]).await?;
    Ok(Lifted::now())
}

pub(super) async fn disk(rng: &mut Rng) -> Result<Lifted> {
    rabbitmqctl(&["set_disk_free_limit", "1000000GB"]).await?;
    outlast(rng).await;
    rabbitmqctl(&["set_disk_free_limit", "1GB"]).await?;
    Ok(Lifted::now())
}

/// Waits until events have reached their deadline.
async fn outlast(rng: &mut Rng) {
    tokio::time::sleep(PUBLISH_DEADLINE).await;
    rng.pause(500, 1500).await;
}

pub(super) async fn full_queue(cluster: &mut Cluster, rng: &mut Rng) -> Result<Lifted> {
    cluster.stop_workers().await?;
    let policy =
        json!({"pattern": "^catchall\\.events$", "definition": {"max-length": 20}, "apply-to": "queues"});
    let path = format!("/api/policies/{}/full", cluster.servers.name);
    cluster.servers.management(Method::PUT, &path, &policy.to_string()).await;
    rng.pause(1500, 2500).await;
    cluster.servers.management(Method::DELETE, &path, "").await;
    let lifted = Lifted::now();
    cluster.fill().await;
    Ok(lifted)
}
