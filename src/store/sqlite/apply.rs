//! Counting: claims and counters in one transaction.

use std::fmt::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use sqlx::sqlite::SqliteConnection;

use super::claims;
use super::data_error::{describe, is_certain};
use crate::batch::Batch;
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
        Err(error) => return Err(NotAccepted::NotCounted(describe(&error).into())),
    };
    match sqlx::raw_sql("commit").execute(connection).await {
        Ok(_) => Ok(applied),
        Err(error) if is_certain(&error) => Err(NotAccepted::NotCounted(describe(&error).into())),
        // Its WAL may be on the disk, and count after a crash.
        Err(error) => Err(NotAccepted::MaybeCounted(describe(&error).into())),
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
    add(connection, &tally).await?;
    let mut added = Counters::default();
    tally.iter().for_each(|(_, counters)| added += *counters);
    Ok(Applied { duplicates, rows: tally.len(), added })
}

fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// Adds to the counters of each outcome on its own: most domains of a transaction have events of one only. A
/// sum stops at the end of the integers.
const ADD_DELIVERED: &str = "\
-- catchall: add to delivered
insert into domain_counters as c (domain, delivered, bounced)
select key, value, 0 from json_each(?) where true
on conflict (domain) do update set
    delivered = c.delivered + min(excluded.delivered, 9223372036854775807 - c.delivered)";
const ADD_BOUNCED: &str = "\
-- catchall: add to bounced
insert into domain_counters as c (domain, delivered, bounced)
select key, 0, value from json_each(?) where true
on conflict (domain) do update set
    bounced = c.bounced + min(excluded.bounced, 9223372036854775807 - c.bounced)";

/// One row per domain, in key order.
async fn add(connection: &mut SqliteConnection, tally: &Tally<&DomainName>) -> Result<(), sqlx::Error> {
    let delivered = tally.iter().map(|(domain, counters)| (*domain, counters.delivered));
    let bounced = tally.iter().map(|(domain, counters)| (*domain, counters.bounced));
    for (statement, sums) in [(ADD_DELIVERED, json(delivered)), (ADD_BOUNCED, json(bounced))] {
        if let Some(sums) = sums {
            sqlx::query(statement).bind(sums).execute(&mut *connection).await?;
        }
    }
    Ok(())
}

/// The sums as a JSON object; `None` if all are zero. A domain name needs no escapes.
fn json<'a>(sums: impl Iterator<Item = (&'a DomainName, u64)>) -> Option<String> {
    let mut object = String::new();
    for (domain, sum) in sums.filter(|(_, sum)| *sum > 0) {
        let before = if object.is_empty() { '{' } else { ',' };
        let sum = i64::try_from(sum).unwrap_or(i64::MAX);
        write!(object, "{before}\"{}\":{sum}", domain.as_str()).expect("a string grows as it must");
    }
    (!object.is_empty()).then(|| object + "}")
}
