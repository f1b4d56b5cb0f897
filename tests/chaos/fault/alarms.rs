//! A broker that is there and takes nothing.

use anyhow::Result;
use harness::instance::rabbitmqctl;
use hyper::Method;
use serde_json::json;

use super::Lifted;
use crate::chance::Chance;
use crate::cluster::{Cluster, PUBLISH_DEADLINE};

pub(super) async fn memory(chance: &mut Chance) -> Result<Lifted> {
    rabbitmqctl(&["set_vm_memory_high_watermark", "0.00001"]).await?;
    outlast(chance).await;
    rabbitmqctl(&["set_vm_memory_high_watermark", "0.4"]).await?;
    Ok(Lifted::now())
}

pub(super) async fn disk(chance: &mut Chance) -> Result<Lifted> {
    rabbitmqctl(&["set_disk_free_limit", "1000000GB"]).await?;
    outlast(chance).await;
    rabbitmqctl(&["set_disk_free_limit", "1GB"]).await?;
    Ok(Lifted::now())
}

/// Waits until events have come to their deadline.
async fn outlast(chance: &mut Chance) {
    tokio::time::sleep(PUBLISH_DEADLINE).await;
    chance.pause(500, 1500).await;
}

pub(super) async fn full_queue(cluster: &mut Cluster, chance: &mut Chance) -> Result<Lifted> {
    cluster.stop_workers().await?;
    let policy =
        json!({"pattern": "^catchall\\.events$", "definition": {"max-length": 20}, "apply-to": "queues"});
    let path = format!("/api/policies/{}/full", cluster.servers.name);
    cluster.servers.management(Method::PUT, &path, &policy.to_string()).await;
    chance.pause(1500, 2500).await;
    cluster.servers.management(Method::DELETE, &path, "").await;
    let lifted = Lifted::now();
    cluster.fill().await;
    Ok(lifted)
}
