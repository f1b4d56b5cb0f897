//! A reclassification: applies a new threshold to all statuses, step by step, while the writer counts.
//!
//! Only one transaction runs at a time, and each one that counts reads the threshold. So from the moment it
//! is set, every domain that crosses it is recorded, and one walk through all domains corrects the others.

use serde_json::json;
use sqlx::sqlite::SqliteConnection;

use super::totals::{self, Delta};
use super::{audit, statuses};
use crate::store::maintenance::{Signature, Walk, Walked};

/// Domains of one step. It takes some tens of milliseconds, for which the writer waits.
const STEP: u32 = 4_000;

const PRESENT: &str = "\
-- catchall: look at the rule
select threshold, walked_through, walk from classification";

/// How far a reclassification has got.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Present {
    pub(super) threshold: u64,
    /// `None` if none is under way.
    pub(super) walked_through: Option<String>,
    pub(super) walk: i64,
}

pub(super) async fn present(connection: &mut SqliteConnection) -> Result<Present, sqlx::Error> {
    let (threshold, walked_through, walk): (i64, _, _) =
        sqlx::query_as(PRESENT).fetch_one(connection).await?;
    Ok(Present { threshold: threshold.unsigned_abs(), walked_through, walk })
}

const BEGIN_WALK: &str = "\
-- catchall: set the rule
update classification set threshold = ?, walked_through = ?, walk = walk + 1 returning walk";

/// Sets the threshold and begins a walk, or takes over the one that has begun. The caller has begun a
/// transaction.
pub(super) async fn begin_walk(
    connection: &mut SqliteConnection,
    threshold: Option<u64>,
    signature: &Signature,
) -> Result<Walk, sqlx::Error> {
    let Present { threshold: before, walked_through, .. } = present(connection).await?;
    let threshold = threshold.unwrap_or(before);
    let from = walked_through.filter(|_| threshold == before);
    let is_resumed = from.is_some();
    let number = sqlx::query_scalar(BEGIN_WALK)
        .bind(i64::try_from(threshold).unwrap_or(i64::MAX))
        .bind(from.unwrap_or_default())
        .fetch_one(&mut *connection)
        .await?;
    if !is_resumed {
        let details = json!({ "before": before });
        audit::write(connection, "reclassify", &threshold.to_string(), signature, details).await?;
    }
    Ok(Walk { number, threshold, before, is_resumed })
}

/// The result is a single row: a row for each domain would cost more than its content.
const DIFFERENT: &str = "\
-- catchall: find statuses that differ
select count(*), max(domain), coalesce(group_concat(domain || ' ' || delivered || ' ' || bounced || ' '
    || coalesce(status, 0)) filter (where coalesce(status, 0) <> case when bounced > 0 then 2
        when delivered > ? then 1 else 0 end), '')
from (select domain, delivered, bounced from domain_counters where domain > ? order by domain limit ?)
left join domain_statuses using (domain)";

const ADVANCE: &str = "\
-- catchall: note how far a reclassification is
update classification set walked_through = ?";

/// Classifies the next domains, in the caller's transaction. `None`: another run has taken over.
pub(super) async fn step(
    connection: &mut SqliteConnection,
    walk: &Walk,
) -> Result<Option<Walked>, sqlx::Error> {
    let present = present(connection).await?;
    let Some(from) = present.walked_through.filter(|_| present.walk == walk.number) else {
        return Ok(None);
    };
    let (domains, end, different): (i64, Option<String>, String) = sqlx::query_as(DIFFERENT)
        .bind(i64::try_from(walk.threshold).unwrap_or(i64::MAX))
        .bind(from)
        .bind(STEP)
        .fetch_one(&mut *connection)
        .await?;
    let changes: Vec<_> = statuses::rows(&different)
        .map(|(domain, counters, was)| (domain, was, counters.status(walk.threshold)))
        .collect();
    let walked = Walked {
        domains: domains.unsigned_abs(),
        changed: changes.len() as u64,
        is_last: domains < i64::from(STEP),
    };
    if !changes.is_empty() {
        let mut delta = Delta::default();
        statuses::change(connection, &changes, &mut delta).await?;
        totals::add_old(connection, &delta).await?;
    }
    let through = end.filter(|_| !walked.is_last);
    sqlx::query(ADVANCE).bind(through).execute(connection).await?;
    Ok(Some(walked))
}
