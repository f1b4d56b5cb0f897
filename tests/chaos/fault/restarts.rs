//! A new process beside the old one, which then leaves in order: no client notices.

use anyhow::Result;

use super::Lifted;
use crate::chance::Chance;
use crate::cluster::Cluster;

pub(super) async fn ingest(cluster: &mut Cluster, chance: &mut Chance) -> Result<Lifted> {
    for _ in 0..2 {
        cluster.start_ingest().await;
        chance.pause(100, 500).await;
        cluster.ingest.remove(0).stop().await?;
        chance.pause(100, 500).await;
    }
    Ok(Lifted::now())
}

pub(super) async fn workers(cluster: &mut Cluster, chance: &mut Chance) -> Result<Lifted> {
    for _ in 0..cluster.workers.len() {
        cluster.start_worker().await;
        chance.pause(100, 500).await;
        cluster.workers.remove(0).stop().await?;
    }
    Ok(Lifted::now())
}

pub(super) async fn query(cluster: &mut Cluster, chance: &mut Chance) -> Result<Lifted> {
    for _ in 0..2 {
        cluster.start_query().await;
        chance.pause(100, 500).await;
        cluster.query.remove(0).stop().await?;
        chance.pause(100, 500).await;
    }
    Ok(Lifted::now())
}
