//! Statuses: the status of each domain, and when it was reached.
//!
//! Triggers record which domains may have changed their status, because SQLite's upsert can report what it
//! did only row by row. The triggers and their records belong to the connection and are in memory.

use std::fmt::Write;

use sqlx::AssertSqlSafe;
use sqlx::sqlite::SqliteConnection;

use super::totals::Delta;
use crate::counters::{Counters, Status};

/// The domains that crossed a border in the present transaction, and the number of new domains. A trigger
/// knows the old row, so it need not be read again.
const TABLES: &str = "\
-- catchall: make room for what triggers note
create temp table watched (threshold integer not null);
create temp table crossed (domain text not null primary key) without rowid;
create temp table created (domains integer not null);
insert into created values (0);";

/// The triggers for a threshold.
macro_rules! triggers {
    () => {
        "\
-- catchall: watch the border at another threshold
drop trigger if exists temp.watch_new;
drop trigger if exists temp.watch_changed;
create temp trigger watch_new after insert on main.domain_counters begin
    update created set domains = domains + 1;
    insert into crossed select new.domain where new.bounced > 0 or new.delivered > {0} on conflict do nothing;
end;
create temp trigger watch_changed after update on main.domain_counters
when old.bounced = 0 and (new.bounced > 0 or (old.delivered <= {0} and new.delivered > {0})) begin
    insert into crossed values (new.domain) on conflict do nothing;
end;
delete from watched;
insert into watched values ({0});"
    };
}

const CLEAR: &str = "delete from crossed; update created set domains = 0";

/// Prepares a connection for transactions that count.
pub(super) async fn prepare(connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
    sqlx::raw_sql(TABLES).execute(connection).await.map(drop)
}

/// The rule as a transaction knows it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rule {
    /// Delivered events that a domain without a bounce must exceed to be a catch-all.
    pub(super) threshold: u64,
}

/// Makes a [prepared](prepare) connection record crossings from now on, in this transaction.
pub(super) async fn watch(connection: &mut SqliteConnection) -> Result<Rule, sqlx::Error> {
    let (threshold, watched): (i64, Option<i64>) = sqlx::query_as(
        "-- catchall: look at the rule
        select threshold, (select threshold from temp.watched) from main.classification",
    )
    .fetch_one(&mut *connection)
    .await?;
    if watched != Some(threshold) {
        sqlx::raw_sql(AssertSqlSafe(format!(triggers!(), threshold))).execute(connection).await?;
    }
    Ok(Rule { threshold: threshold.unsigned_abs() })
}

/// One row: a row for each domain would cost more than what is in it. SQLite reads the left table of a cross
/// join first. Of a plain join it read all counters, and looked each of them up in the temporary table.
const CROSSED: &str = "\
-- catchall: look at what crossed
select (select domains from temp.created),
    coalesce(group_concat(domain || ' ' || delivered || ' ' || bounced || ' ' || coalesce(status, 0)), '')
from temp.crossed cross join main.domain_counters using (domain)
left join main.domain_statuses using (domain)";

const NOTE: &str = "\
-- catchall: note statuses
insert into domain_statuses (domain, status, since, changed_in)
select key, value, cast(unixepoch('subsec') * 1000 as integer), (select changes from classification)
from json_each(?) where true
on conflict (domain) do update set
    status = excluded.status, since = excluded.since, changed_in = excluded.changed_in";

/// Records the statuses of the domains that crossed, if they differ from the recorded ones, and adds the
/// changes to the totals of the transaction.
pub(super) async fn note(
    connection: &mut SqliteConnection,
    rule: Rule,
    delta: &mut Delta,
) -> Result<(), sqlx::Error> {
    let (created, crossed): (i64, String) = sqlx::query_as(CROSSED).fetch_one(&mut *connection).await?;
    if created == 0 && crossed.is_empty() {
        return Ok(());
    }
    delta.domains += created;
    let classified = rows(&crossed).map(|(domain, counters, was)| {
        let is = counters.status(rule.threshold);
        (domain, was, is)
    });
    let changed: Vec<_> = classified.filter(|(_, was, is)| was != is).collect();
    if !changed.is_empty() {
        change(connection, &changed, delta).await?;
    }
    sqlx::raw_sql(CLEAR).execute(connection).await.map(drop)
}

/// Records the changes of status of domains, and adds them to the totals of the transaction.
pub(super) async fn change(
    connection: &mut SqliteConnection,
    changes: &[(&str, Status, Status)],
    delta: &mut Delta,
) -> Result<(), sqlx::Error> {
    let mut changed = String::new();
    for (domain, was, is) in changes {
        delta.change(*was, *is);
        let before = if changed.is_empty() { '{' } else { ',' };
        write!(changed, "{before}\"{domain}\":{}", is.number()).expect("a string grows as it must");
    }
    changed.push('}');
    sqlx::raw_sql("update classification set changes = changes + 1").execute(&mut *connection).await?;
    sqlx::query(NOTE).bind(changed).execute(connection).await.map(drop)
}

/// The rows of an answer: a domain, its counters, and the recorded status.
pub(super) fn rows(answer: &str) -> impl Iterator<Item = (&str, Counters, Status)> {
    answer.split(',').filter(|row| !row.is_empty()).filter_map(read)
}

fn read(row: &str) -> Option<(&str, Counters, Status)> {
    let mut words = row.split(' ');
    let domain = words.next()?;
    let mut number = || words.next()?.parse::<u64>().ok();
    let counters = Counters { delivered: number()?, bounced: number()? };
    Some((domain, counters, Status::from_number(i16::try_from(number()?).ok()?)))
}

#[cfg(test)]
mod tests {
    use sqlx::Connection;

    use super::*;
    use crate::store::sqlite::schema;

    /// A transaction takes as long as it has events, and not as there are domains.
    #[tokio::test]
    async fn what_crossed_is_found_without_a_look_at_every_domain() {
        let mut file = SqliteConnection::connect("sqlite::memory:").await.unwrap();
        schema::migrate(&mut file).await.unwrap();
        prepare(&mut file).await.unwrap();
        let plan = AssertSqlSafe(format!("explain query plan {CROSSED}"));
        let steps: Vec<(i64, i64, i64, String)> = sqlx::query_as(plan).fetch_all(&mut file).await.unwrap();
        let scans: Vec<&str> =
            steps.iter().map(|(.., step)| &**step).filter(|step| step.starts_with("SCAN")).collect();
        assert!(scans.iter().all(|step| step.contains("crossed") || step.contains("created")), "{scans:?}");
    }
}
