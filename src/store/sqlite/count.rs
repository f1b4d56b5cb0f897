//! What one transaction counts: counters, the statuses that follow from them, and totals.

use std::fmt::Write;

use sqlx::sqlite::SqliteConnection;

use super::statuses;
use super::totals::{self, Delta};
use crate::domain_name::DomainName;
use crate::tally::Tally;

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

/// Adds to the counters, in key order, and to the totals, and notes what changed its status. `now` is in
/// seconds since 1970.
pub(super) async fn count(
    connection: &mut SqliteConnection,
    tally: &Tally<&DomainName>,
    now: i64,
) -> Result<(), sqlx::Error> {
    if tally.is_empty() {
        return Ok(());
    }
    let delta = add_and_note(connection, tally).await?;
    totals::add(connection, now, &delta).await
}

/// The same for events that were counted elsewhere before: they are none of the last hour.
pub(super) async fn count_old(
    connection: &mut SqliteConnection,
    tally: &Tally<&DomainName>,
) -> Result<(), sqlx::Error> {
    if tally.is_empty() {
        return Ok(());
    }
    let delta = add_and_note(connection, tally).await?;
    totals::add_old(connection, &delta).await
}

async fn add_and_note(
    connection: &mut SqliteConnection,
    tally: &Tally<&DomainName>,
) -> Result<Delta, sqlx::Error> {
    let rule = statuses::watch(connection).await?;
    add(connection, tally).await?;
    let mut delta = Delta::default();
    tally.iter().for_each(|(_, counters)| delta.add(*counters));
    statuses::note(connection, rule, &mut delta).await?;
    Ok(delta)
}

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
