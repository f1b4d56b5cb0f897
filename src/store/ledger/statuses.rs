//! Statuses: what each domain is, and since when.
//!
//! Whoever writes a domain's status has locked its counters in the same transaction. So nobody else writes it
//! meanwhile, and what is read here is what it was.

use std::collections::HashMap;

use sqlx::PgConnection;

use crate::counters::{Counters, Status};

/// The rule as a transaction knows it.
#[derive(Clone, Copy, Debug)]
pub(in crate::store) struct Rule {
    /// Delivered events that a domain without a bounce must exceed to be a catch-all.
    pub(in crate::store) threshold: u64,
    /// The transaction, as it is noted with each status it changes.
    pub(in crate::store) transaction: i64,
}

/// How many domains became something, and how many ceased to be it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::store) struct StatusChanges {
    /// More catch-alls, or fewer.
    pub(in crate::store) catch_all: i64,
    /// More that are not, or fewer.
    pub(in crate::store) not_catch_all: i64,
}

impl StatusChanges {
    pub(in crate::store) fn record(&mut self, was: Status, is: Status) {
        for (status, change) in [(was, -1), (is, 1)] {
            match status {
                Status::Unknown => {}
                Status::CatchAll => self.catch_all += change,
                Status::NotCatchAll => self.not_catch_all += change,
            }
        }
    }
}

const WERE: &str = "\
-- catchall: look at statuses
select domain, status from domain_statuses where domain = any($1::text[])";

const NOTE: &str = "\
-- catchall: note statuses
insert into domain_statuses (domain, status, since, changed_in)
select domain, status, now(), $3 from unnest($1::text[], $2::smallint[]) as changed (domain, status)
on conflict (domain) do update set
    status = excluded.status, since = excluded.since, changed_in = excluded.changed_in";

/// Notes the statuses of these domains, where they differ from what was noted before.
pub(in crate::store) async fn note(
    connection: &mut PgConnection,
    rule: Rule,
    domains: &[(String, Counters)],
) -> Result<StatusChanges, sqlx::Error> {
    note_changes(connection, rule, domains).await.map(|(changes, _)| changes)
}

/// The same, with the number of domains whose status was another one.
pub(in crate::store) async fn note_changes(
    connection: &mut PgConnection,
    rule: Rule,
    domains: &[(String, Counters)],
) -> Result<(StatusChanges, u64), sqlx::Error> {
    let names: Vec<&str> = domains.iter().map(|(domain, _)| domain.as_str()).collect();
    let were: Vec<(String, i16)> = sqlx::query_as(WERE).bind(names).fetch_all(&mut *connection).await?;
    let were: HashMap<String, i16> = were.into_iter().collect();
    let mut changes = StatusChanges::default();
    let (mut names, mut statuses) = (Vec::new(), Vec::new());
    for (domain, counters) in domains {
        let was = were.get(domain).copied().map(Status::from_number).unwrap_or_default();
        let is = counters.status(rule.threshold);
        if was != is {
            changes.record(was, is);
            names.push(domain.as_str());
            statuses.push(is.number());
        }
    }
    let changed = names.len() as u64;
    if changed > 0 {
        sqlx::query(NOTE).bind(names).bind(statuses).bind(rule.transaction).execute(connection).await?;
    }
    Ok((changes, changed))
}
