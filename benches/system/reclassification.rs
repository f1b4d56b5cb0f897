//! Reclassifies all domains while others are counted.

use std::cell::Cell;
use std::time::Instant;

use anyhow::{Context, ensure};
use harness::processes::run;

use crate::measure::SideResult;
use crate::prober;
use crate::system::RunningSystem;

/// A threshold that no domain exceeds: every catch-all becomes unknown.
const THRESHOLD: &str = "1000000";

/// Measures how fresh the answers are for as long as the reclassification of so many domains takes.
pub(crate) async fn probe(system: &RunningSystem, domains: u32) -> anyhow::Result<SideResult> {
    let walks = Cell::new(true);
    let query = system.query_address()?.to_string();
    let url = system.servers.database_url.clone();
    let walking = async {
        let begun = Instant::now();
        let arguments = ["reclassify", "--threshold", THRESHOLD, "--reason", "to measure it"];
        let reclassify = move || run("admin", &arguments, &[("CATCHALL_DATABASE_URL", &url)]);
        let ended = tokio::task::spawn_blocking(reclassify).await;
        walks.set(false);
        let (status, out, said) = ended.context("the reclassification")?;
        ensure!(status.success(), "{status}: {out}{said}");
        Ok((begun.elapsed().as_secs_f64(), out.trim().to_owned()))
    };
    let ingest = system.ingest_url();
    let probing = prober::probe(&ingest, &query, || walks.get());
    let ((seconds, said), mut result) = tokio::try_join!(walking, probing)?;
    result.walk_seconds = Some(seconds);
    result.notes.push(format!("{:.0} domains/s: {said}", f64::from(domains) / seconds));
    Ok(result)
}
