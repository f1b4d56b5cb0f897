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

/// One row per domain, in key order. A sum stops at the largest bigint: an overflow would fail the
/// transaction, and everybody's events with it. The first update of a row frees bytes on its page for the
/// next ones: see `migrations/0003_room.sql`.
///
/// The answer has the rows that may be new or may have crossed a border, judged by the most that was added to
/// any domain. They are few if most domains have had many events. Comparing each row with what was added to
/// it, by a join in this statement, took an eighth of the time of the statement.
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
)
select coalesce(array_agg(domain), '{}'), coalesce(array_agg(delivered), '{}'),
    coalesce(array_agg(bounced), '{}')
from added
where bounced <= $5 and (bounced > 0 or delivered <= $4)
    or bounced = 0 and delivered > $6 and delivered <= $7";

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
#[derive(Debug, Default)]
struct Added {
    /// Domains that had no events before.
    new: i64,
    /// Domains whose status has changed, in key order, with their present counters.
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
    let most = |counts: &[i64]| counts.iter().copied().max().unwrap_or(0);
    let threshold = bigint(rule.threshold);
    let (names, sums, sums_bounced): (Vec<String>, Vec<i64>, Vec<i64>) = sqlx::query_as(ADD)
        .bind(&domains[..])
        .bind(&delivered[..])
        .bind(&bounced[..])
        .bind(most(&delivered))
        .bind(most(&bounced))
        .bind(threshold)
        .bind(threshold.saturating_add(most(&delivered)))
        .fetch_one(connection)
        .await?;
    let counters = |delivered: i64, bounced: i64| Counters {
        delivered: delivered.unsigned_abs(),
        bounced: bounced.unsigned_abs(),
    };
    let mut added = Added::default();
    for ((name, sum), sum_bounced) in names.into_iter().zip(sums).zip(sums_bounced) {
        let Ok(index) = domains.binary_search(&name.as_str()) else { continue };
        let (now, more) = (counters(sum, sum_bounced), counters(delivered[index], bounced[index]));
        added.new += i64::from(now == more);
        if has_crossed(now, more, rule.threshold) {
            added.crossed.push((name, now));
        }
    }
    added.crossed.sort_unstable_by(|(left, _), (right, _)| left.cmp(right));
    Ok(added)
}

/// Whether adding `more` has changed the status of a domain. Its former status follows from its present
/// counters: either the bounces are its first, or its sum has crossed the threshold.
fn has_crossed(now: Counters, more: Counters, threshold: u64) -> bool {
    if now.bounced > 0 {
        now.bounced == more.bounced
    } else {
        now.delivered > threshold && now.delivered.saturating_sub(more.delivered) <= threshold
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_domain_has_crossed_if_and_only_if_its_status_has_changed(
            before in (0u64..9, 0u64..3),
            more in (0u64..9, 0u64..3),
            threshold in 0u64..9,
        ) {
            let counters = |(delivered, bounced)| Counters { delivered, bounced };
            let (before, more) = (counters(before), counters(more));
            let mut now = before;
            now += more;
            let changes = before.status(threshold) != now.status(threshold);
            let crosses = has_crossed(now, more, threshold);
            prop_assert_eq!(crosses, changes, "{:?} and {:?}", before, more);
        }
    }
}
