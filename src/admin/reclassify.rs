//! `catchall-admin reclassify`: classifies all domains with another threshold.

use std::cell::Cell;
use std::time::Instant;

use anyhow::bail;
use catchall_progress::{Display, Progress};
use futures::FutureExt;

use super::command::Reclassify;
use crate::shutdown::Shutdown;
use crate::store::maintenance::{Maintenance, Walk};

/// The error when the walk ends early.
const STOPPED: &str = "stopped: run the same command again to continue where it stopped";

/// Sets the threshold, walks through all domains, and prints what that changed.
pub(super) async fn reclassify<S: Maintenance>(
    store: &mut S,
    command: &Reclassify,
    shutdown: Shutdown,
) -> anyhow::Result<()> {
    let Reclassify { threshold, reason, author, .. } = command;
    let signature = author.sign(reason.as_ref())?;
    let begun = Instant::now();
    let all = store.domains().await?;
    let walk = store.begin_walk(*threshold, &signature).await?;
    let Walk { threshold, before, is_resumed, .. } = walk;
    if is_resumed {
        eprintln!("continuing the reclassification with the threshold {threshold}");
    } else if threshold != before {
        eprintln!("the threshold is now {threshold}; it was {before}");
    }
    tokio::select! {
        settled = store.settle() => settled?,
        () = shutdown.clone() => bail!(STOPPED),
    }
    let (done, changed) = (Cell::new(0), Cell::new(0));
    let progress =
        || Progress { done: done.get(), note: format!(", {} changed", changed.get()), ..Progress::default() };
    let work = async {
        loop {
            let walked = store.walk(&walk).await?;
            done.set(done.get() + walked.domains);
            changed.set(changed.get() + walked.changed);
            if walked.is_last {
                return anyhow::Ok(());
            }
            if shutdown.clone().now_or_never().is_some() {
                bail!(STOPPED);
            }
        }
    };
    Display::detect().follow("reclassifying", "domains", all, progress, work).await?;
    println!(
        "reclassified by the threshold {threshold}: {} of {} domains changed status; it took {} s",
        changed.get(),
        done.get(),
        begun.elapsed().as_secs()
    );
    Ok(())
}
