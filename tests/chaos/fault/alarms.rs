//! A broker that is there and takes nothing.

use futures::future::try_join_all;
use hyper::Method;
use serde_json::json;

use super::Lifted;
use crate::chance::Chance;
use crate::instance::rabbitmqctl;
use crate::round::Result;
use crate::stage::{Actor, PUBLISH_DEADLINE, Stage};

/// What ingest may need at most while nothing is taken from it, in megabytes.
const MEMORY: u64 = 400;

pub(super) async fn memory(stage: &mut Stage, chance: &mut Chance) -> Result<Lifted> {
    rabbitmqctl(&["set_vm_memory_high_watermark", "0.00001"]).await?;
    outlast(chance).await;
    rabbitmqctl(&["set_vm_memory_high_watermark", "0.4"]).await?;
    Ok(bounded(stage))
}

pub(super) async fn disk(stage: &mut Stage, chance: &mut Chance) -> Result<Lifted> {
    rabbitmqctl(&["set_disk_free_limit", "1000000GB"]).await?;
    outlast(chance).await;
    rabbitmqctl(&["set_disk_free_limit", "1GB"]).await?;
    Ok(bounded(stage))
}

/// Waits until events have come to their deadline.
async fn outlast(chance: &mut Chance) {
    tokio::time::sleep(PUBLISH_DEADLINE).await;
    chance.pause(500, 1500).await;
}

fn bounded(stage: &Stage) -> Lifted {
    let mut lifted = Lifted::now();
    let peak = stage.ingest[0].peak_megabytes();
    lifted.note = Some(format!("ingest had {peak} MB at most"));
    if peak > MEMORY {
        lifted.failures.push(format!("ingest had {peak} MB, and may have {MEMORY}"));
    }
    lifted
}

pub(super) async fn full_queue(stage: &mut Stage, chance: &mut Chance) -> Result<Lifted> {
    try_join_all(stage.workers.drain(..).map(Actor::stop)).await?;
    let policy =
        json!({"pattern": "^catchall\\.events$", "definition": {"max-length": 20}, "apply-to": "queues"});
    let path = format!("/api/policies/{}/full", stage.servers.name);
    stage.servers.management(Method::PUT, &path, &policy.to_string()).await;
    chance.pause(1500, 2500).await;
    stage.servers.management(Method::DELETE, &path, "").await;
    let lifted = Lifted::now();
    stage.fill().await;
    Ok(lifted)
}
