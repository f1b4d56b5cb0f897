//! `catchall move`: adds the content of the data file to a Postgres database.

use std::cell::Cell;

use anyhow::bail;
use catchall_progress::{Display, Progress};
use futures::FutureExt;

use super::command::MoveConfig;
use crate::process::ExitError;
use crate::shutdown::Shutdown;
use crate::store::moving::{Move, MoveError};

/// Moves the rest of the file, verifies everything, and prints the sums. Errors of the file have their own
/// exit statuses.
pub(super) async fn move_to(config: &MoveConfig, shutdown: Shutdown) -> anyhow::Result<()> {
    config.network.check(&[("CATCHALL_DATABASE_URL", config.to.exposure())])?;
    carry(config, shutdown).await.map_err(|error| match error.downcast() {
        Ok(MoveError::File(error)) => ExitError::from(error).into(),
        Ok(error) => error.into(),
        Err(error) => error,
    })
}

async fn carry(config: &MoveConfig, shutdown: Shutdown) -> anyhow::Result<()> {
    let mut moving = Move::begin(&config.data, &config.to).await?;
    let to = moving.to().to_owned();
    let (claims, domains) = moving.totals().await?;
    let show = Display::detect();
    if !moving.is_done() {
        moving.move_records().await?;
        let done = Cell::new(0);
        let progress = || Progress { done: done.get(), ..Progress::default() };
        let work = async {
            while step(moving.move_claims().await?, &done, &shutdown)? {}
            anyhow::Ok(())
        };
        show.follow("moving", "claims", claims, progress, work).await?;
        done.set(0);
        let work = async {
            while step(moving.move_counters().await?, &done, &shutdown)? {}
            anyhow::Ok(())
        };
        show.follow("moving", "domains", domains, progress, work).await?;
    }
    let done = Cell::new(0);
    let progress = || Progress { done: done.get(), ..Progress::default() };
    let work = async {
        let mut from = String::new();
        while let Some((last, count)) = moving.verify(&from).await? {
            step(count, &done, &shutdown)?;
            from = last;
        }
        anyhow::Ok(())
    };
    show.follow("verifying", "domains", domains, progress, work).await?;
    let moved = moving.finish().await?;
    println!("moved to {to} and verified: {moved}; the file is no longer served");
    Ok(())
}

/// Records one step. Returns whether it found anything. A stop takes effect between two steps.
fn step(count: u64, done: &Cell<u64>, shutdown: &Shutdown) -> anyhow::Result<bool> {
    done.set(done.get() + count);
    if shutdown.clone().now_or_never().is_some() {
        bail!("stopped: run the same command again to continue where it stopped");
    }
    Ok(count > 0)
}
