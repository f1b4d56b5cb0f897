//! Reclassifications in the process that serves the file, beside its writer.

use std::time::Duration;

use sqlx::sqlite::SqliteConnection;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep};

use super::data_error::DataError;
use super::data_file::{DataFile, Purpose};
use super::reclassify::{self, Present};
use crate::store::maintenance::{Signature, Walk};
use crate::trouble::Trouble;

/// How often to look for an unfinished walk. A live process makes a step within this time.
const INTERVAL: Duration = Duration::from_secs(5);

/// The shortest pause after a step.
const REST: Duration = Duration::from_millis(10);

/// Sets the threshold, if the file has another one. [`walk`] continues the walk that this begins.
pub(super) async fn set_threshold(file: &DataFile, threshold: u64) -> Result<(), DataError> {
    let mut connection = file.connect(Purpose::Write).await?;
    let set = async {
        sqlx::raw_sql("begin immediate").execute(&mut connection).await?;
        if reclassify::present(&mut connection).await?.threshold != threshold {
            let signature = Signature { by: "catchall".into(), reason: "--threshold".into() };
            reclassify::begin_walk(&mut connection, Some(threshold), &signature).await?;
        }
        sqlx::raw_sql("commit").execute(&mut connection).await.map(drop)
    };
    set.await.map_err(|error: sqlx::Error| DataError::of_sqlite(&file.path, error))
}

/// Continues any abandoned walk, for as long as it is polled. It holds `turn` during a transaction.
pub(super) async fn walk(file: &DataFile, turn: &Mutex<()>) {
    let (mut seen, mut failing) = (None, Trouble::default());
    loop {
        if let Err(error) = look(file, turn, &mut seen).await
            && failing.is_news()
        {
            tracing::warn!(reason = %error, "cannot reclassify, trying again: {error}");
        }
        sleep(INTERVAL).await;
    }
}

/// Walks if the walk has not moved since it was last `seen`, or if this is the first look.
async fn look(file: &DataFile, turn: &Mutex<()>, seen: &mut Option<Present>) -> Result<(), DataError> {
    let failed = |error: sqlx::Error| DataError::of_sqlite(&file.path, error);
    let present = reclassify::present(&mut file.connect(Purpose::Read).await?).await.map_err(failed)?;
    let is_first = seen.is_none();
    let is_stuck = seen.as_ref() == Some(&present);
    let is_under_way = present.walked_through.is_some();
    *seen = Some(present);
    if !is_under_way || !(is_first || is_stuck) {
        return Ok(());
    }
    let mut connection = file.connect(Purpose::Walk).await?;
    take_over(&mut connection, turn).await.map_err(failed)
}

async fn take_over(connection: &mut SqliteConnection, turn: &Mutex<()>) -> Result<(), sqlx::Error> {
    // A walk that is under way has its entry in the audit log.
    let signature = Signature { by: "catchall".into(), reason: String::new() };
    let begin =
        async |connection: &mut SqliteConnection| reclassify::begin_walk(connection, None, &signature).await;
    let walk = in_turn(connection, turn, begin).await?;
    let Walk { threshold, is_resumed, .. } = walk;
    tracing::info!(threshold, is_resumed, "reclassifying by the threshold {threshold}");
    let begun = Instant::now();
    let (mut domains, mut changed) = (0, 0);
    loop {
        let stepped = Instant::now();
        let step = async |connection: &mut SqliteConnection| reclassify::step(connection, &walk).await;
        let Some(walked) = in_turn(connection, turn, step).await? else {
            tracing::info!("another process continues the reclassification");
            return Ok(());
        };
        domains += walked.domains;
        changed += walked.changed;
        if walked.is_last {
            let seconds = begun.elapsed().as_secs();
            tracing::info!(
                threshold,
                domains,
                changed,
                seconds,
                "reclassified by the threshold {threshold}: {changed} of {domains} domains changed status"
            );
            return Ok(());
        }
        sleep(stepped.elapsed().max(REST)).await;
    }
}

/// One transaction.
async fn in_turn<T>(
    connection: &mut SqliteConnection,
    turn: &Mutex<()>,
    work: impl AsyncFnOnce(&mut SqliteConnection) -> Result<T, sqlx::Error>,
) -> Result<T, sqlx::Error> {
    let _turn = turn.lock().await;
    sqlx::raw_sql("begin immediate").execute(&mut *connection).await?;
    let done = work(connection).await?;
    sqlx::raw_sql("commit").execute(connection).await?;
    Ok(done)
}
