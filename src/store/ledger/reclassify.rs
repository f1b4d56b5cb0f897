//! A reclassification: applies a new threshold to all statuses, step by step, while workers count.
//!
//! Once no transaction counts with an earlier threshold any more, every one that counts records what crosses
//! the new one. From then on, a status that fits its counters continues to fit, and one walk through all
//! domains corrects the others.
//!
//! Counters are not locked: workers write so many at a time that each step would wait for a worker, and
//! workers for the step. A step writes the statuses first, which locks their rows, then looks at the counters
//! again. A transaction that made a domain cross either was committed before this look, or has to write the
//! status after the step.

use std::collections::HashMap;
use std::time::Duration;

use serde_json::json;
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use super::audit;
use super::count::begin;
use super::statuses::{self, Rule};
use super::totals::{self, Delta};
use crate::counters::Counters;
use crate::store::maintenance::{Signature, Walk, Walked};
use crate::store::postgres::Steps;

/// The fewest and the most domains that one step looks at, which takes some tens of milliseconds.
const LOOK: (u64, u64) = (2_000, 10_000);

/// Most domains that one step writes. Workers that make one of them cross have to wait meanwhile.
const MOST_WRITTEN: usize = 2_000;

/// How many domains the next step looks at: if the same share of them differs as in the last step, it writes
/// as many as it may.
pub(super) fn look(last: Walked) -> u64 {
    let (least, most) = LOOK;
    (last.domains * MOST_WRITTEN as u64).checked_div(last.changed).unwrap_or(most).clamp(least, most)
}

/// How often to check whether earlier transactions have ended.
pub(super) const SETTLE_INTERVAL: Duration = Duration::from_millis(20);

const PRESENT: &str = "\
-- catchall: lock the rule
select threshold, walked_through from classification for update";

const BEGIN_WALK: &str = "\
-- catchall: set the rule
update classification set threshold = $1, walked_through = $2, walk = walk + 1 returning walk";

/// A position that lies in the future comes from another server, from which the tables were restored. What
/// the walk writes is after the present.
const RELAY_TO_THE_PRESENT: &str = "\
-- catchall: bring the relay into the present of the feed
update change_relay set changed_in = pg_current_xact_id()::text::bigint, domain = '', holder = null,
    held_until = now()
where changed_in > pg_current_xact_id()::text::bigint";

/// Sets the threshold and begins a walk, or takes over the one that has begun.
pub(super) async fn begin_walk(
    pool: &PgPool,
    threshold: Option<u64>,
    signature: &Signature,
) -> Result<Walk, sqlx::Error> {
    let mut transaction = pool.begin().await?;
    let (before, walked_through): (i64, Option<String>) =
        sqlx::query_as(PRESENT).fetch_one(&mut *transaction).await?;
    let before = before.unsigned_abs();
    let threshold = threshold.unwrap_or(before);
    let from = walked_through.filter(|_| threshold == before);
    let is_resumed = from.is_some();
    let number = sqlx::query_scalar(BEGIN_WALK)
        .bind(i64::try_from(threshold).unwrap_or(i64::MAX))
        .bind(from.unwrap_or_default())
        .fetch_one(&mut *transaction)
        .await?;
    sqlx::query(RELAY_TO_THE_PRESENT).execute(&mut *transaction).await?;
    if !is_resumed {
        let details = json!({ "before": before });
        audit::write(&mut transaction, "reclassify", &threshold.to_string(), signature, details).await?;
    }
    transaction.commit().await?;
    Ok(Walk { number, threshold, before, is_resumed })
}

/// Takes a transaction number that is higher than that of any transaction that may still count by the old
/// rule. Numbers are given in order, and a transaction that counts has its number [before it reads the
/// rule](begin). So one that has read the old rule had its number when the new rule was committed, and this
/// number is given later.
///
/// The end of a snapshot (`pg_snapshot_xmax`) would not do: it is one more than the highest number that has
/// ended by now. A transaction with a higher number may be running, and may have read the old rule.
pub(super) async fn next_transaction(pool: &PgPool) -> Result<i64, sqlx::Error> {
    let next = "-- catchall: take the number of a transaction
        select pg_current_xact_id()::text::bigint";
    sqlx::query_scalar(next).fetch_one(pool).await
}

/// Whether all transactions before this number have ended. The one that took the number has ended, and this
/// query takes none.
pub(super) async fn have_ended(pool: &PgPool, before: i64) -> Result<bool, sqlx::Error> {
    let ended = "-- catchall: look which transactions have ended
        select pg_snapshot_xmin(pg_current_snapshot())::text::bigint >= $1";
    sqlx::query_scalar(ended).bind(before).fetch_one(pool).await
}

/// Locks the row until the end of the step: only one step runs at a time, even across processes.
const WALKED: &str = "\
-- catchall: look how far a reclassification is
select walked_through, pg_current_xact_id()::text::bigint from classification where walk = $1 for update";

const END: &str = "\
-- catchall: find the end of a step
select max(domain)
from (select domain from domain_counters where domain > $1 order by domain limit $2) as step";

/// Domains whose status differs, and those whose place in the feed lies in the future: such a place comes
/// from another server, from which the tables were restored. A domain that was reset has a status and no
/// counters. The last step has no end.
const DIFFERENT: &str = "\
-- catchall: find statuses that differ
with counted as (
    select domain, delivered, bounced
    from domain_counters where domain > $1 and ($2::text is null or domain <= $2)
), noted as (
    select domain, status, changed_in
    from domain_statuses where domain > $1 and ($2::text is null or domain <= $2)
), different as (
    select domain, coalesce(delivered, 0) as delivered, coalesce(bounced, 0) as bounced,
        changed_in >= pg_snapshot_xmax(pg_current_snapshot())::text::bigint as is_to_come
    from counted full join noted using (domain)
    where coalesce(status, 0) <> case when bounced > 0 then 2 when delivered > $3 then 1 else 0 end
        or changed_in >= pg_snapshot_xmax(pg_current_snapshot())::text::bigint
    order by domain limit $4
)
select coalesce(bool_or(is_to_come), false), coalesce(array_agg(domain order by domain), '{}'),
    coalesce(array_agg(delivered order by domain), '{}'), coalesce(array_agg(bounced order by domain), '{}')
from different";

/// Domains that a step has looked at, after its end is known.
const LOOKED_AT: &str = "\
-- catchall: count the domains of a step
select count(*) from domain_counters where domain > $1 and ($2::text is null or domain <= $2)";

/// The counters after everything that the step has waited for.
const LOOK_AGAIN: &str = "\
-- catchall: look at counters again
select coalesce(array_agg(domain), '{}'), coalesce(array_agg(delivered), '{}'),
    coalesce(array_agg(bounced), '{}')
from domain_counters where domain = any($1::text[])";

/// No reader of the feed goes beyond a transaction that is still running, so every reader sees what is moved
/// there.
const TO_THE_PRESENT: &str = "\
-- catchall: bring changes into the present of the feed
update domain_statuses set changed_in = $2 where domain = any($1::text[]) and changed_in > $2";

const ADVANCE: &str = "\
-- catchall: note how far a reclassification is
update classification set walked_through = $2 where walk = $1";

/// Classifies the next domains. `None`: another run has taken over.
pub(super) async fn step(
    pool: &PgPool,
    steps: &Steps,
    writer: Uuid,
    walk: Walk,
    look: u64,
) -> Result<Option<Walked>, sqlx::Error> {
    let mut transaction = begin(pool).await?;
    let noted: Option<(Option<String>, i64)> =
        sqlx::query_as(WALKED).bind(walk.number).fetch_optional(&mut *transaction).await?;
    let Some((Some(from), number)) = noted else {
        // This run has already ended its walk, if the answer to its last commit was lost.
        let ended = noted.map(|_| Walked { is_last: true, ..Walked::default() });
        transaction.rollback().await?;
        return Ok(ended);
    };
    let look = i64::try_from(look).unwrap_or(i64::MAX);
    let end: Option<String> =
        sqlx::query_scalar(END).bind(&from).bind(look).fetch_one(&mut *transaction).await?;
    steps.done();
    let rule = Rule { threshold: walk.threshold, transaction: number };
    let different = find(&mut transaction, rule, &from, end.as_deref()).await?;
    steps.done();
    let changed = mend(&mut transaction, steps, writer, rule, &different).await?;
    let through = different.cut_at.or(end);
    let looked_at: i64 =
        sqlx::query_scalar(LOOKED_AT).bind(&from).bind(&through).fetch_one(&mut *transaction).await?;
    let walked = Walked { domains: looked_at.unsigned_abs(), changed, is_last: through.is_none() };
    sqlx::query(ADVANCE).bind(walk.number).bind(through).execute(&mut *transaction).await?;
    transaction.commit().await?;
    Ok(Some(walked))
}

/// What one step has to write.
struct Different {
    /// Those to write, in key order.
    domains: Vec<(String, Counters)>,
    /// Whether some have a place in the feed that is still to come.
    are_to_come: bool,
    /// Where the step ends early, because there are more domains to write.
    cut_at: Option<String>,
}

/// Names of domains, and their delivered and bounced events, as columns.
type Columns = (Vec<String>, Vec<i64>, Vec<i64>);

fn rows((domains, delivered, bounced): Columns) -> impl Iterator<Item = (String, Counters)> {
    let sums = delivered.into_iter().zip(bounced);
    let counters = sums.map(|(delivered, bounced)| Counters {
        delivered: delivered.unsigned_abs(),
        bounced: bounced.unsigned_abs(),
    });
    domains.into_iter().zip(counters)
}

async fn find(
    connection: &mut PgConnection,
    rule: Rule,
    from: &str,
    end: Option<&str>,
) -> Result<Different, sqlx::Error> {
    type Found = (bool, Vec<String>, Vec<i64>, Vec<i64>);
    let most = i64::try_from(MOST_WRITTEN).unwrap_or(i64::MAX);
    let (are_to_come, domains, delivered, bounced): Found = sqlx::query_as(DIFFERENT)
        .bind(from)
        .bind(end)
        .bind(i64::try_from(rule.threshold).unwrap_or(i64::MAX))
        .bind(most)
        .fetch_one(connection)
        .await?;
    let domains: Vec<_> = rows((domains, delivered, bounced)).collect();
    let is_cut = domains.len() == MOST_WRITTEN;
    let cut_at = domains.last().filter(|_| is_cut).map(|(domain, _)| domain.clone());
    Ok(Different { domains, are_to_come, cut_at })
}

/// Records the statuses of these domains, and returns how many of them differed.
async fn mend(
    connection: &mut PgConnection,
    steps: &Steps,
    writer: Uuid,
    rule: Rule,
    different: &Different,
) -> Result<u64, sqlx::Error> {
    let domains = &different.domains;
    if domains.is_empty() {
        return Ok(0);
    }
    let mut changes = statuses::note(connection, rule, domains).await?;
    let changed = changes.written;
    steps.done();
    let names: Vec<&str> = domains.iter().map(|(domain, _)| domain.as_str()).collect();
    let now: Columns = sqlx::query_as(LOOK_AGAIN).bind(&names).fetch_one(&mut *connection).await?;
    steps.done();
    let now: HashMap<String, Counters> = rows(now).collect();
    let status = |counters: Counters| counters.status(rule.threshold);
    let crossed: Vec<(String, Counters)> = domains
        .iter()
        .map(|(domain, found)| (domain, *found, now.get(domain).copied().unwrap_or_default()))
        .filter(|(_, found, now)| status(*found) != status(*now))
        .map(|(domain, _, now)| (domain.clone(), now))
        .collect();
    changes += statuses::note(connection, rule, &crossed).await?;
    if different.are_to_come {
        sqlx::query(TO_THE_PRESENT).bind(names).bind(rule.transaction).execute(&mut *connection).await?;
        steps.done();
    }
    totals::add_old(connection, writer, &Delta::of(changes)).await?;
    Ok(changed)
}
