//! Processes that stand still, and sessions that the servers end.

use anyhow::Result;
use harness::instance::rabbitmqctl;
use harness::sql;

use super::Lifted;
use crate::cluster::Cluster;
use crate::rng::Rng;

/// The stalled worker holds what it was given, and perhaps rows, until the servers have had enough of it.
/// When it goes on it must not count what the other has counted.
pub(super) async fn stall(cluster: &mut Cluster, rng: &mut Rng) -> Result<Lifted> {
    let worker = &mut cluster.workers[0];
    worker.look_away();
    worker.service.signal("STOP");
    rng.pause(6500, 8000).await;
    worker.service.signal("CONT");
    let lifted = Lifted::now();
    worker.look(&cluster.watch);
    Ok(lifted)
}

pub(super) async fn close_connections(cluster: &mut Cluster) -> Result<Lifted> {
    rabbitmqctl(&["close_all_connections", "--vhost", &cluster.servers.name, "chaos"]).await?;
    Ok(Lifted::now())
}

pub(super) async fn end_sessions(cluster: &mut Cluster) -> Result<Lifted> {
    // Chosen first, ended then: a plan may ask for the end before it looks at the name.
    let ended = "with chosen as materialized \
        (select pid from pg_stat_activity where application_name = 'catchall-worker' \
        and datname = current_database()) \
        select pg_terminate_backend(pid)::text from chosen";
    let sessions = sql::column(&cluster.primary, ended).await?.len();
    let mut lifted = Lifted::now();
    if sessions < cluster.workers.len() {
        lifted.failures.push(format!("there were only {sessions} sessions of the workers to end"));
    }
    Ok(lifted)
}
