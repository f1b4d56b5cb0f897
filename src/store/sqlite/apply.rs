//! Counting: claims and counters in one transaction.

use std::time::{SystemTime, UNIX_EPOCH};

use sqlx::sqlite::SqliteConnection;

use super::claims;
use super::count::count;
use super::data_error::{SqliteError, is_certain};
use crate::batch::Batch;
use crate::cause::Cause;
use crate::counters::Counters;
use crate::domain_name::DomainName;
use crate::event::Event;
use crate::idempotency_key::IdempotencyKey;
use crate::store::{Applied, NotAccepted};
use crate::tally::Tally;

/// Counts the batches in one transaction. Once this returns `Ok`, it is on the disk, and no keyed event of it
/// will be counted again. After an error the connection is of no use any more: drop it.
pub(super) async fn apply(
    connection: &mut SqliteConnection,
    batches: &[Batch],
) -> Result<Applied, NotAccepted> {
    let applied = match write(connection, batches).await {
        Ok(applied) => applied,
        Err(error) => return Err(NotAccepted::NotCounted(Cause::new(SqliteError(error)))),
    };
    match sqlx::raw_sql("commit").execute(connection).await {
        Ok(_) => Ok(applied),
        Err(error) if is_certain(&error) => Err(NotAccepted::NotCounted(Cause::new(SqliteError(error)))),
        // Its WAL may be on the disk, and count after a crash.
        Err(error) => Err(NotAccepted::MaybeCounted(Cause::new(SqliteError(error)))),
    }
}

/// Everything but the commit. The claims come first and in the same transaction as what they guard, so a
/// crash at any point leaves both or neither.
async fn write(connection: &mut SqliteConnection, batches: &[Batch]) -> Result<Applied, sqlx::Error> {
    // A transaction that began with a read could not write if another program had written meanwhile.
    sqlx::raw_sql("begin immediate").execute(&mut *connection).await?;
    let keyed: Vec<&(IdempotencyKey, Event)> = batches.iter().flat_map(|batch| &batch.keyed).collect();
    let fresh = claims::claim(connection, &keyed, now()).await?;
    let duplicates = keyed.len() - fresh.len();
    let plain = batches.iter().flat_map(|batch| batch.plain.iter()).map(|(domain, sum)| (domain, *sum));
    let fresh = fresh.into_iter().map(|event| (&event.domain, Counters::of(event.outcome, event.count)));
    let tally: Tally<&DomainName> = plain.chain(fresh).collect();
    count(connection, &tally, now()).await?;
    let mut added = Counters::default();
    tally.iter().for_each(|(_, counters)| added += *counters);
    Ok(Applied { duplicates, rows: tally.len(), added })
}

/// Seconds since 1970.
fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}
