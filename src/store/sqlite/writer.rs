//! The writer: everything that waits becomes one transaction.

use std::sync::Arc;
use std::time::Duration;

use sqlx::sqlite::SqliteConnection;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::apply::apply;
use super::data_error::{DataError, SqliteError};
use super::data_file::{DataFile, Purpose};
use super::prune::FilePruning;
use super::statuses;
use crate::batch::Batch;
use crate::batcher::{Batcher, Flush};
use crate::cause::Cause;
use crate::health::Dependency;
use crate::store::{Applied, BatchSink, NotAccepted};

/// How long after a failure the writer tries again, if no event comes before.
const TRY_INTERVAL: Duration = Duration::from_secs(1);

/// Batches wait here for the next transaction.
pub(super) type Queue = Batcher<Vec<Batch>, Result<(), NotAccepted>>;

/// Hands batches to the one writer of a data file. Clones share it.
#[derive(Clone, Debug)]
pub struct Writer {
    pub(super) queue: Arc<Queue>,
}

impl BatchSink for Writer {
    async fn accept(&self, batch: Batch, deadline: Instant) -> Result<(), NotAccepted> {
        // If the disk hangs, batches stay here after their deadline: they may still be counted.
        let ticket = self.queue.submit(batch.rows(), |batches| batches.push(batch));
        let ticket = ticket.map_err(|_| NotAccepted::NotCounted(Cause::new(NotWritten::Full)))?;
        match timeout_at(deadline, ticket).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(NotAccepted::MaybeCounted(Cause::new(NotWritten::Stopped))),
            Err(_) => Err(NotAccepted::MaybeCounted(Cause::new(NotWritten::Late))),
        }
    }
}

/// Why the writer has no answer for a batch.
#[derive(Debug, thiserror::Error)]
enum NotWritten {
    #[error("too many events wait for the disk")]
    Full,
    #[error("the writer has stopped")]
    Stopped,
    #[error("the data file did not commit in time")]
    Late,
}

/// Writes what waits in `queue`, and prunes in between, for as long as it is polled. It holds `turn` during a
/// transaction.
pub(super) async fn write(
    file: &DataFile,
    queue: &Queue,
    turn: &Mutex<()>,
    mut pruning: FilePruning,
    dependency: Dependency,
) {
    let mut connection = None;
    let mut works = false;
    let mut next_try = Instant::now();
    loop {
        let flush = tokio::select! {
            biased;
            flush = queue.take() => Some(flush),
            () = sleep_until(pruning.due), if works => None,
            () = sleep_until(next_try), if !works => None,
        };
        let _turn = turn.lock().await;
        let done = match open(file, &mut connection).await {
            Ok(connection) => match flush {
                Some(flush) => count_and_prune(connection, flush, &mut pruning).await,
                None if works => prune(connection, &mut pruning).await,
                None => try_to_write(connection).await,
            },
            Err(error) => {
                let cause = Cause::new(error);
                if let Some(Flush { answer, .. }) = flush {
                    answer.send(Err(NotAccepted::NotCounted(cause.clone())));
                }
                Err(cause)
            }
        };
        works = done.is_ok();
        match done {
            Ok(()) => dependency.up(),
            Err(cause) => {
                // Its transaction may be open still.
                connection = None;
                next_try = Instant::now() + TRY_INTERVAL;
                dependency.down(cause);
            }
        }
    }
}

async fn open<'a>(
    file: &DataFile,
    connection: &'a mut Option<SqliteConnection>,
) -> Result<&'a mut SqliteConnection, DataError> {
    if let Some(connection) = connection {
        return Ok(connection);
    }
    let mut new = file.connect(Purpose::Write).await?;
    let prepared = statuses::prepare(&mut new).await;
    prepared.map_err(|error| DataError::of_sqlite(&file.path, error))?;
    Ok(connection.insert(new))
}

/// Counts, and prunes if that is due: if events never stop, there is no other time for it.
async fn count_and_prune(
    connection: &mut SqliteConnection,
    flush: Flush<'_, Vec<Batch>, Result<(), NotAccepted>>,
    pruning: &mut FilePruning,
) -> Result<(), Cause> {
    count(connection, flush).await?;
    if pruning.due > Instant::now() { Ok(()) } else { prune(connection, pruning).await }
}

async fn count(
    connection: &mut SqliteConnection,
    flush: Flush<'_, Vec<Batch>, Result<(), NotAccepted>>,
) -> Result<(), Cause> {
    let Flush { items, answer, .. } = flush;
    let begun = Instant::now();
    let done = apply(connection, &items).await;
    answer.send(done.as_ref().map(drop).map_err(Clone::clone));
    let applied: Applied = done.map_err(Cause::new)?;
    applied.record(begun.elapsed());
    Ok(())
}

async fn prune(connection: &mut SqliteConnection, pruning: &mut FilePruning) -> Result<(), Cause> {
    let pruned = pruning.step(connection).await.map_err(cause)?;
    metrics::counter!("catchall_worker_pruned_claims_total").increment(pruned);
    Ok(())
}

/// Writes something that changes nothing.
async fn try_to_write(connection: &mut SqliteConnection) -> Result<(), Cause> {
    let tried = sqlx::raw_sql("begin immediate; update data_file set move_state = move_state; commit")
        .execute(connection)
        .await;
    tried.map(drop).map_err(cause)
}

fn cause(error: sqlx::Error) -> Cause {
    Cause::new(SqliteError(error))
}
