//! The replica pauses, or takes the primary's place.

use std::time::Duration;

use anyhow::{Context, Result};
use harness::instance::dev;
use harness::proxy::host;
use harness::sql;

use super::lifted::Lifted;
use crate::cluster::Cluster;
use crate::rng::Rng;

/// The metric of query that shows how old its answers are.
const LAG: &str = "catchall_replica_lag_seconds";

/// How long the replica may take to resume.
const REPLAY: Duration = Duration::from_mins(1);

/// How long the replica may take to become synchronous.
const SYNCHRONOUS: Duration = Duration::from_mins(1);

/// Reads continue, and a metric shows how old the answers are.
pub(super) async fn pause_replay(cluster: &mut Cluster, rng: &mut Rng) -> Result<Lifted> {
    let replica = &cluster.servers.replica_url;
    sql::column(replica, "select pg_wal_replay_pause()::text").await?;
    // Query updates the metric once a second.
    rng.pause(2500, 3500).await;
    let (_, metrics) = cluster.query[0].service.ops("/metrics").await;
    // The statement may conflict with the replay and be cancelled.
    let resumed = sql::column(replica, "select pg_wal_replay_resume()::text").await;
    let replays = "select 'yes' where pg_get_wal_replay_pause_state() = 'not paused'";
    sql::until_row(replica, replays, REPLAY).await.with_context(|| format!("{resumed:?}"))?;
    let lag = metrics.lines().find_map(|line| line.strip_prefix(LAG)?.trim().parse::<f64>().ok());
    let mut lifted = Lifted::now();
    lifted.note = lag.map(|lag| format!("the metric showed a lag of {lag:.1} s"));
    if lag.unwrap_or_default() < 1.0 {
        lifted.failures.push(format!("{LAG} was {lag:?} while the replica was paused"));
    }
    Ok(lifted)
}

/// The replica is synchronous, so it has everything that was acknowledged when it takes over.
pub(super) async fn fail_over(cluster: &mut Cluster, rng: &mut Rng) -> Result<Lifted> {
    let (primary, replica) = (&cluster.servers.database_url, cluster.servers.replica_url.clone());
    sql::column(primary, "alter system set synchronous_standby_names = 'replica'").await?;
    sql::column(primary, "select pg_reload_conf()::text").await?;
    let waits = "select sync_state from pg_stat_replication where sync_state = 'sync'";
    sql::until_row(primary, waits, SYNCHRONOUS).await?;
    // The running primary keeps the setting. If it is started again without a replica, it must not wait for
    // one.
    sql::column(primary, "alter system reset synchronous_standby_names").await?;
    rng.pause(500, 1500).await;
    dev(&["kill", "primary"]).await?;
    rng.pause(500, 2000).await;
    sql::text(&replica, "select pg_promote()::text").await?;
    cluster.database_wire.lead_to(host(&replica));
    cluster.primary = replica;
    Ok(Lifted::now())
}
