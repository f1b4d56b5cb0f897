//! Processes that stand still, and sessions that the servers end.

use anyhow::Result;
use harness::instance::rabbitmqctl;
use harness::sql;

use super::Lifted;
use crate::chance::Chance;
use crate::stage::Stage;

/// The stalled worker holds what it was given, and perhaps rows, until the servers have had enough of it.
/// When it goes on it must not count what the other has counted.
pub(super) async fn stall(stage: &mut Stage, chance: &mut Chance) -> Result<Lifted> {
    let worker = &mut stage.workers[0];
    worker.look_away();
    worker.service.signal("STOP");
    chance.pause(6500, 8000).await;
    worker.service.signal("CONT");
    let lifted = Lifted::now();
    worker.look(&stage.watch);
    Ok(lifted)
}

pub(super) async fn close_connections(stage: &mut Stage) -> Result<Lifted> {
    rabbitmqctl(&["close_all_connections", "--vhost", &stage.servers.name, "chaos"]).await?;
    Ok(Lifted::now())
}

pub(super) async fn end_sessions(stage: &mut Stage) -> Result<Lifted> {
    // Chosen first, ended then: a plan may ask for the end before it looks at the name.
    let ended = "with chosen as materialized \
        (select pid from pg_stat_activity where application_name = 'catchall-worker' \
        and datname = current_database()) \
        select pg_terminate_backend(pid)::text from chosen";
    let sessions = sql::column(&stage.primary, ended).await?.len();
    let mut lifted = Lifted::now();
    if sessions < stage.workers.len() {
        lifted.failures.push(format!("there were only {sessions} sessions of the workers to end"));
    }
    Ok(lifted)
}
