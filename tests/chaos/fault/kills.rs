//! Kills services and servers with SIGKILL.

use std::time::Duration;

use anyhow::Result;
use harness::instance::dev;
use harness::proxy::Wire;

use super::lifted::Lifted;
use crate::cluster::Cluster;
use crate::process::WatchedProcess;
use crate::rng::Rng;

/// A slow connection makes the worst moment likely: the process is killed in the middle of a publish or a
/// transaction.
const SLOW: Wire = Wire::Slow(Duration::from_millis(150));

/// Kills processes and starts new ones after a while. The fault ends when they are started.
async fn kill(processes: Vec<WatchedProcess>, cluster: &mut Cluster, rng: &mut Rng) -> Result<Lifted> {
    cluster.broker_wire.be(SLOW);
    cluster.database_wire.be(SLOW);
    rng.pause(300, 1000).await;
    for process in processes {
        process.kill().await;
    }
    cluster.broker_wire.mend();
    cluster.database_wire.mend();
    rng.pause(500, 2000).await;
    let lifted = Lifted::now();
    cluster.fill().await;
    Ok(lifted)
}

pub(super) async fn ingest(cluster: &mut Cluster, rng: &mut Rng) -> Result<Lifted> {
    let doomed = cluster.ingest.drain(..).collect();
    kill(doomed, cluster, rng).await
}

pub(super) async fn one_worker(cluster: &mut Cluster, rng: &mut Rng) -> Result<Lifted> {
    let doomed = cluster.workers.drain(..1).collect();
    kill(doomed, cluster, rng).await
}

pub(super) async fn every_worker(cluster: &mut Cluster, rng: &mut Rng) -> Result<Lifted> {
    // One stops normally first, so that the other is the only worker.
    cluster.workers.remove(0).stop().await?;
    let doomed = cluster.workers.drain(..).collect();
    kill(doomed, cluster, rng).await
}

pub(super) async fn query(cluster: &mut Cluster, rng: &mut Rng) -> Result<Lifted> {
    let doomed = cluster.query.drain(..).collect();
    kill(doomed, cluster, rng).await
}

/// Kills a server. The fault ends when it accepts connections again.
pub(super) async fn server(name: &str, rng: &mut Rng) -> Result<Lifted> {
    dev(&["kill", name]).await?;
    rng.pause(500, 2000).await;
    dev(&["start", name]).await?;
    Ok(Lifted::now())
}
