//! `catchall move`: the content of the data file goes to a Postgres.

use std::cell::Cell;

use anyhow::bail;
use catchall_progress::{Display, Progress};
use futures::FutureExt;

use super::command::MoveConfig;
use crate::process::ExitError;
use crate::shutdown::Shutdown;
use crate::store::transfer::{Moved, Transfer, TransferError};

/// Moves what has not been moved yet, verifies all of it, and prints what it was.
pub(super) async fn move_to(config: &MoveConfig, shutdown: Shutdown) -> anyhow::Result<()> {
    let mut transfer = Transfer::begin(&config.data, &config.to).await.map_err(told)?;
    let to = transfer.to().to_owned();
    let (claims, domains) = transfer.totals().await?;
    let show = Display::detect();
    if !transfer.is_done() {
        let done = Cell::new(0);
        let progress = || Progress { done: done.get(), ..Progress::default() };
        let work = async {
            while step(transfer.move_claims().await?, &done, &shutdown)? {}
            anyhow::Ok(())
        };
        show.follow("moving", "claims", claims, progress, work).await?;
        done.set(0);
        let work = async {
            while step(transfer.move_counters().await?, &done, &shutdown)? {}
            anyhow::Ok(())
        };
        show.follow("moving", "domains", domains, progress, work).await?;
    }
    let done = Cell::new(0);
    let progress = || Progress { done: done.get(), ..Progress::default() };
    let work = async {
        let mut from = String::new();
        while let Some((last, count)) = transfer.verify(&from).await? {
            step(count, &done, &shutdown)?;
            from = last;
        }
        anyhow::Ok(())
    };
    show.follow("verifying", "domains", domains, progress, work).await?;
    let Moved { claims, domains, delivered, bounced } = transfer.finish().await?;
    println!(
        "moved to {to} and verified: {domains} domains with {delivered} delivered and {bounced} bounced \
         events, {claims} claims; the file is not served any more"
    );
    Ok(())
}

/// Notes one step, and whether it found anything. A stop takes effect between two steps.
fn step(count: u64, done: &Cell<u64>, shutdown: &Shutdown) -> anyhow::Result<bool> {
    done.set(done.get() + count);
    if shutdown.clone().now_or_never().is_some() {
        bail!("stopped: run the same command again, it goes on where it stopped");
    }
    Ok(count > 0)
}

/// What is wrong with the file has an exit status of its own.
fn told(error: TransferError) -> anyhow::Error {
    match error {
        TransferError::File(error) => ExitError::from(error).into(),
        error => error.into(),
    }
}
