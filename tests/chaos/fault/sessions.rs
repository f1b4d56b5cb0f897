//! A process that is paused, and sessions that the servers end.

use anyhow::Result;
use harness::instance::rabbitmqctl;
use harness::sql;

use super::lifted::Lifted;
use crate::cluster::Cluster;
use crate::rng::Rng;

/// The paused worker holds messages, and perhaps row locks, until the servers end its sessions. When it
/// continues it must not count what the other worker has counted.
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
    // Selected first and ended then: a query plan may call the function before it checks the name.
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
