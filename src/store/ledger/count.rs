//! What one transaction counts: counters, the statuses that follow from them, and totals.

use sqlx::{PgConnection, PgPool, Postgres, Transaction};
use uuid::Uuid;

use super::super::postgres::Steps;
use super::statuses::{self, Rule};
use super::totals::{self, Delta};
use crate::counters::Counters;
use crate::domain_name::DomainName;
use crate::tally::Tally;

/// Begins a transaction that counts. It gets its number before it reads the rule. A reclassification takes a
/// number after it has changed the rule; once all transactions with lower numbers have ended, none uses the
/// old rule.
///
/// Each statement must see everything that was committed before it, whatever the server's default is: a step
/// of a reclassification waits for workers, and then reads what they have counted.
///
/// The planner assumes that an unknown array is short, and would compare each row with every other one.
const BEGIN: &str = "\
begin isolation level read committed; select pg_current_xact_id(); set local enable_nestloop = off";

/// Begins a transaction that counts.
pub(in crate::store) async fn begin(pool: &PgPool) -> Result<Transaction<'static, Postgres>, sqlx::Error> {
    pool.begin_with(BEGIN).await
}

/// The rule of a transaction that was [begun](begin).
pub(in crate::store) async fn rule(connection: &mut PgConnection) -> Result<Rule, sqlx::Error> {
    let (threshold, transaction): (i64, i64) = sqlx::query_as(
        "-- catchall: look at the rule
        select threshold, pg_current_xact_id()::text::bigint from classification",
    )
    .fetch_one(connection)
    .await?;
    Ok(Rule { threshold: threshold.unsigned_abs(), transaction })
}

/// One row per domain, in key order. A sum stops at the end of bigint: otherwise it would fail the
/// transaction, and everybody's events with it. The first update of a row frees bytes on its page for the
/// next ones: see `migrations/0003_room.sql`.
///
/// The old row follows from the new one and from what was added. So the answer has the number of domains that
/// had no events, and the domains whose status may have changed: by a first bounce, or by a sum that crossed
/// the threshold.
const ADD: &str = "\
-- catchall: add to the counters
with added as (
    insert into domain_counters as c (domain, delivered, bounced)
    select * from unnest($1::text[], $2::bigint[], $3::bigint[])
    on conflict (domain) do update set
        delivered = c.delivered + least(excluded.delivered, 9223372036854775807 - c.delivered),
        bounced = c.bounced + least(excluded.bounced, 9223372036854775807 - c.bounced),
        padding = null
    returning domain, delivered, bounced
), compared as (
    select domain, delivered, bounced,
        delivered = more_delivered and bounced = more_bounced as is_new,
        case when bounced > 0 then bounced = more_bounced
            else delivered > $4 and delivered - more_delivered <= $4 end as has_crossed
    from added
    join unnest($1::text[], $2::bigint[], $3::bigint[]) as asked (domain, more_delivered, more_bounced)
        using (domain)
)
select count(*) filter (where is_new),
    coalesce(array_agg(domain) filter (where has_crossed), '{}'),
    coalesce(array_agg(delivered) filter (where has_crossed), '{}'),
    coalesce(array_agg(bounced) filter (where has_crossed), '{}')
from compared";

/// Adds to the counters, in key order, and to the totals as `writer`, and records changes of status.
pub(in crate::store) async fn count(
    connection: &mut PgConnection,
    steps: &Steps,
    writer: Uuid,
    rule: Rule,
    tally: &Tally<&DomainName>,
) -> Result<(), sqlx::Error> {
    if tally.is_empty() {
        return Ok(());
    }
    let delta = add_and_note(connection, steps, rule, tally).await?;
    totals::add(connection, writer, &delta).await?;
    steps.done();
    Ok(())
}

/// The same for events that were counted elsewhere: they do not belong to the last hour.
pub(in crate::store) async fn count_old(
    connection: &mut PgConnection,
    steps: &Steps,
    writer: Uuid,
    rule: Rule,
    tally: &Tally<&DomainName>,
) -> Result<(), sqlx::Error> {
    let delta = add_and_note(connection, steps, rule, tally).await?;
    totals::add_old(connection, writer, &delta).await?;
    steps.done();
    Ok(())
}

async fn add_and_note(
    connection: &mut PgConnection,
    steps: &Steps,
    rule: Rule,
    tally: &Tally<&DomainName>,
) -> Result<Delta, sqlx::Error> {
    let mut delta = Delta::default();
    tally.iter().for_each(|(_, counters)| delta.add(*counters));
    let added = add(connection, rule, tally).await?;
    steps.done();
    delta.domains = added.new;
    if !added.crossed.is_empty() {
        delta.changes = statuses::note(connection, rule, &added.crossed).await?;
        steps.done();
    }
    Ok(delta)
}

/// The result of an addition.
struct Added {
    /// Domains that had no events.
    new: i64,
    /// Domains whose status may have changed, with their present counters.
    crossed: Vec<(String, Counters)>,
}

async fn add(
    connection: &mut PgConnection,
    rule: Rule,
    tally: &Tally<&DomainName>,
) -> Result<Added, sqlx::Error> {
    let bigint = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
    let domains: Vec<&str> = tally.iter().map(|(domain, _)| domain.as_str()).collect();
    let delivered: Vec<i64> = tally.iter().map(|(_, counters)| bigint(counters.delivered)).collect();
    let bounced: Vec<i64> = tally.iter().map(|(_, counters)| bigint(counters.bounced)).collect();
    let (new, domains, delivered, bounced): (i64, Vec<String>, Vec<i64>, Vec<i64>) = sqlx::query_as(ADD)
        .bind(domains)
        .bind(delivered)
        .bind(bounced)
        .bind(bigint(rule.threshold))
        .fetch_one(connection)
        .await?;
    let sums = delivered.into_iter().zip(bounced);
    let counters = sums.map(|(delivered, bounced)| Counters {
        delivered: delivered.unsigned_abs(),
        bounced: bounced.unsigned_abs(),
    });
    let mut crossed: Vec<(String, Counters)> = domains.into_iter().zip(counters).collect();
    crossed.sort_unstable_by(|(left, _), (right, _)| left.cmp(right));
    Ok(Added { new, crossed })
}
