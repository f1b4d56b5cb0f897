//! A new process is started beside the old one, which then stops normally. No client notices.

use anyhow::Result;

use super::lifted::Lifted;
use crate::cluster::Cluster;
use crate::rng::Rng;

pub(super) async fn ingest(cluster: &mut Cluster, rng: &mut Rng) -> Result<Lifted> {
    for _ in 0..2 {
        cluster.start_ingest().await;
        rng.pause(100, 500).await;
        cluster.ingest.remove(0).stop().await?;
        rng.pause(100, 500).await;
    }
    Ok(Lifted::now())
}

pub(super) async fn workers(cluster: &mut Cluster, rng: &mut Rng) -> Result<Lifted> {
    for _ in 0..cluster.workers.len() {
        cluster.start_worker().await;
        rng.pause(100, 500).await;
        cluster.workers.remove(0).stop().await?;
    }
    Ok(Lifted::now())
}

pub(super) async fn query(cluster: &mut Cluster, rng: &mut Rng) -> Result<Lifted> {
    for _ in 0..2 {
        cluster.start_query().await;
        rng.pause(100, 500).await;
        cluster.query.remove(0).stop().await?;
        rng.pause(100, 500).await;
    }
    Ok(Lifted::now())
}
