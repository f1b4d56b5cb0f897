//! Statuses: the status of each domain, and when it was reached.
//!
//! A status is written after its counters, in the same transaction. The statement that writes it locks its
//! row and returns the old status.

use std::ops::AddAssign;

use sqlx::PgConnection;

use crate::counters::{Counters, Status};

/// The rule as a transaction knows it.
#[derive(Clone, Copy, Debug)]
pub(in crate::store) struct Rule {
    /// Delivered events that a domain without a bounce must exceed to be a catch-all.
    pub(in crate::store) threshold: u64,
    /// The transaction, as it is recorded with each status that it changes.
    pub(in crate::store) transaction: i64,
}

/// By how much the number of domains with each status changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::store) struct StatusChanges {
    /// How many more catch-alls there are; negative if fewer.
    pub(in crate::store) catch_all: i64,
    /// How many more domains are not catch-alls; negative if fewer.
    pub(in crate::store) not_catch_all: i64,
    /// Statuses that were written.
    pub(in crate::store) written: u64,
}

impl StatusChanges {
    /// Records that a number of domains changed from one status to another.
    pub(in crate::store) fn record(&mut self, was: Status, is: Status, domains: i64) {
        for (status, change) in [(was, -domains), (is, domains)] {
            match status {
                Status::Unknown => {}
                Status::CatchAll => self.catch_all += change,
                Status::NotCatchAll => self.not_catch_all += change,
            }
        }
        self.written += domains.unsigned_abs();
    }
}

impl AddAssign for StatusChanges {
    fn add_assign(&mut self, more: Self) {
        self.catch_all += more.catch_all;
        self.not_catch_all += more.not_catch_all;
        self.written += more.written;
    }
}

/// Locks every row, even if it does not change. An insert finds no old status, so `was` is unknown.
const NOTE: &str = "\
-- catchall: note statuses
with noted as (
    insert into domain_statuses as s (domain, status, since, changed_in)
    select domain, status, now(), $3 from unnest($1::text[], $2::smallint[]) as found (domain, status)
    on conflict (domain) do update set
        was = s.status, status = excluded.status, since = excluded.since, changed_in = excluded.changed_in
    where s.status <> excluded.status
    returning was, status
)
select was, status, count(*) from noted group by was, status";

/// Records the statuses of these domains, in key order, if they differ from the recorded ones.
pub(in crate::store) async fn note(
    connection: &mut PgConnection,
    rule: Rule,
    domains: &[(String, Counters)],
) -> Result<StatusChanges, sqlx::Error> {
    let mut changes = StatusChanges::default();
    if domains.is_empty() {
        return Ok(changes);
    }
    let names: Vec<&str> = domains.iter().map(|(domain, _)| domain.as_str()).collect();
    let statuses: Vec<i16> =
        domains.iter().map(|(_, counters)| counters.status(rule.threshold).number()).collect();
    let noted: Vec<(i16, i16, i64)> =
        sqlx::query_as(NOTE).bind(names).bind(statuses).bind(rule.transaction).fetch_all(connection).await?;
    for (was, is, count) in noted {
        changes.record(Status::from_number(was), Status::from_number(is), count);
    }
    Ok(changes)
}
