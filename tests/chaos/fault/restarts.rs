//! A new process beside the old one, which then leaves in order: no client notices.

use anyhow::Result;

use super::Lifted;
use crate::chance::Chance;
use crate::stage::Stage;

pub(super) async fn ingest(stage: &mut Stage, chance: &mut Chance) -> Result<Lifted> {
    for _ in 0..2 {
        stage.start_ingest().await;
        chance.pause(100, 500).await;
        stage.ingest.remove(0).stop().await?;
        chance.pause(100, 500).await;
    }
    Ok(Lifted::now())
}

pub(super) async fn workers(stage: &mut Stage, chance: &mut Chance) -> Result<Lifted> {
    for _ in 0..stage.workers.len() {
        stage.start_worker().await;
        chance.pause(100, 500).await;
        stage.workers.remove(0).stop().await?;
    }
    Ok(Lifted::now())
}

pub(super) async fn query(stage: &mut Stage, chance: &mut Chance) -> Result<Lifted> {
    for _ in 0..2 {
        stage.start_query().await;
        chance.pause(100, 500).await;
        stage.query.remove(0).stop().await?;
        chance.pause(100, 500).await;
    }
    Ok(Lifted::now())
}
