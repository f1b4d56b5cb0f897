//! Checkpoints: copying the write-ahead log (WAL) into the file, beside the writer.
//!
//! Commits only append to the WAL. A checkpoint copies the latest version of each page from it into the file.
//! Most of that is done while commits go on. But the WAL is reset only when all of it has been copied and no
//! connection reads from it, so the writer has to wait for the small rest, which was committed meanwhile.

use std::time::Duration;

use sqlx::Connection;
use sqlx::sqlite::SqliteConnection;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep};

use super::data_error::DataError;
use super::data_file::{DataFile, Purpose};
use crate::trouble::Trouble;

/// A checkpoint begins when the WAL has this many pages more than were copied. A larger number is cheaper,
/// because a page that changed many times is copied once; but a start after a crash has to read as many
/// pages.
const BEGIN_PAGES: i64 = 64 * 1024;

/// The writer has to wait for at most about this many pages.
const REST_PAGES: i64 = 4 * 1024;

/// How often to copy beside the writer until the rest is small. If it does not become small, commits are
/// faster than the disk, and the writer has to wait.
const PASSES: u32 = 4;

/// How often the size of the WAL is checked.
const INTERVAL: Duration = Duration::from_millis(100);

/// A WAL of more pages than this is truncated after a checkpoint: some reader made it grow. Otherwise its
/// space is used again, which is cheaper than new space from the file system.
const CUT_PAGES: i64 = 4 * BEGIN_PAGES;

/// How long a reader may hold the WAL before a warning is logged, and the time between two warnings.
const HELD: Duration = Duration::from_secs(30);

/// The time until a checkpoint is tried again after an error. Commits go on meanwhile, and the WAL grows.
const RETRY: Duration = Duration::from_secs(1);

/// How long the last checkpoint is tried. A statement that was under way when its connection was dropped may
/// block it for a moment. With the grace period before, it is less than the 10 s after which a container
/// engine kills.
const FINISH: Duration = Duration::from_secs(1);

/// The frames of the WAL, and those that have been copied, as `pragma wal_checkpoint` reports them.
#[derive(Clone, Copy, Debug)]
struct Wal {
    /// Whether it could not be done completely.
    busy: bool,
    pages: i64,
    copied: i64,
}

impl Wal {
    fn rest(self) -> i64 {
        self.pages - self.copied
    }
}

/// Keeps the WAL short for as long as it is polled. The writer holds `turn` during a transaction.
pub(super) async fn keep_short(file: &DataFile, turn: &Mutex<()>) {
    let (mut told, mut trouble) = (None, Trouble::default());
    loop {
        if let Err(error) = connected(file, turn, &mut told).await
            && trouble.is_news()
        {
            tracing::warn!(reason = %error, "cannot copy the WAL into the data file, trying again: {error}");
        }
        sleep(RETRY).await;
    }
}

async fn connected(file: &DataFile, turn: &Mutex<()>, told: &mut Option<Instant>) -> Result<(), DataError> {
    let mut connection = file.connect(Purpose::Checkpoint).await?;
    let failed = |error: sqlx::Error| DataError::of_sqlite(&file.path, error);
    let mut held_since: Option<Instant> = None;
    loop {
        sleep(INTERVAL).await;
        let wal = checkpoint(&mut connection, "pragma wal_checkpoint(noop)").await.map_err(failed)?;
        metrics(wal);
        if wal.rest() < BEGIN_PAGES && held_since.is_none() {
            continue;
        }
        let wal = shorten(&mut connection, turn).await.map_err(failed)?;
        if !wal.busy {
            held_since = None;
            *told = None;
            continue;
        }
        let since = *held_since.get_or_insert_with(Instant::now);
        if since.elapsed() >= HELD && told.is_none_or(|told| told.elapsed() >= HELD) {
            *told = Some(Instant::now());
            let (mib, seconds) = (wal.pages / 1024, since.elapsed().as_secs());
            tracing::warn!(
                wal_mib = mib,
                held_seconds = seconds,
                "another reader of the data file has been open for {seconds} s, so the WAL cannot be reset \
                 and has grown to {mib} MiB"
            );
        }
        // While a reader stays open, the writer would wait again and again in vain.
        sleep(Duration::from_secs(1)).await;
    }
}

/// Copies the WAL into the file and resets it.
async fn shorten(connection: &mut SqliteConnection, turn: &Mutex<()>) -> Result<Wal, sqlx::Error> {
    for _ in 0..PASSES {
        let wal = checkpoint(connection, "pragma wal_checkpoint(passive)").await?;
        if wal.rest() < REST_PAGES {
            break;
        }
    }
    let _writer_waits = turn.lock().await;
    let wal = checkpoint(connection, "pragma wal_checkpoint(passive)").await?;
    if wal.rest() > 0 {
        // A reader still needs the WAL.
        return Ok(Wal { busy: true, ..wal });
    }
    let mode = if wal.pages > CUT_PAGES {
        "pragma wal_checkpoint(truncate)"
    } else {
        "pragma wal_checkpoint(restart)"
    };
    checkpoint(connection, mode).await
}

async fn checkpoint(connection: &mut SqliteConnection, mode: &'static str) -> Result<Wal, sqlx::Error> {
    let (busy, pages, copied): (bool, i64, i64) = sqlx::query_as(mode).fetch_one(connection).await?;
    Ok(Wal { busy, pages, copied })
}

/// Copies all of the WAL into the file and empties it, so that the file is complete by itself.
pub(super) async fn finish(file: &DataFile) {
    let give_up = Instant::now() + FINISH;
    loop {
        let reason = match empty(file).await {
            Ok(Wal { busy: false, .. }) => return,
            Ok(_) => "another program reads it".to_owned(),
            Err(error) => error.to_string(),
        };
        if Instant::now() >= give_up {
            // Nothing is lost: the next start reads the WAL.
            tracing::warn!(
                reason,
                "the WAL could not be emptied into the data file, and stays beside it: {reason}"
            );
            return;
        }
        sleep(INTERVAL).await;
    }
}

/// One attempt at that.
async fn empty(file: &DataFile) -> Result<Wal, DataError> {
    let mut connection = file.connect(Purpose::Checkpoint).await?;
    let emptied = async {
        let wal = checkpoint(&mut connection, "pragma wal_checkpoint(truncate)").await?;
        connection.close().await?;
        Ok(wal)
    };
    emptied.await.map_err(|error| DataError::of_sqlite(&file.path, error))
}

#[expect(clippy::cast_precision_loss, reason = "a figure of so many digits is exact enough")]
fn metrics(wal: Wal) {
    metrics::gauge!("catchall_data_wal_pages").set(wal.pages as f64);
}
