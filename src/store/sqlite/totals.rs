//! Totals, kept up to date by each transaction.

use sqlx::sqlite::SqliteConnection;

use crate::counters::{Counters, Status};

/// Seconds that a row covers.
const ROW: i64 = 10;

/// Seconds for which a row is kept separate: the hour that totals report, and a little more.
const KEPT: i64 = 3900;

/// A row more than this many seconds in the future comes from a clock that was ahead.
const AHEAD: i64 = 60;

/// What a transaction adds to the totals.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Delta {
    delivered: i64,
    bounced: i64,
    /// Domains that had no events before, minus those that have none any more.
    pub(super) domains: i64,
    catch_all: i64,
    not_catch_all: i64,
}

impl Delta {
    /// Adds events.
    pub(super) fn add(&mut self, counters: Counters) {
        let integer = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        self.delivered = self.delivered.saturating_add(integer(counters.delivered));
        self.bounced = self.bounced.saturating_add(integer(counters.bounced));
    }

    /// Takes events back.
    pub(super) fn subtract(&mut self, counters: Counters) {
        let integer = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        self.delivered = self.delivered.saturating_sub(integer(counters.delivered));
        self.bounced = self.bounced.saturating_sub(integer(counters.bounced));
    }

    /// Adds that a domain changed its status.
    pub(super) fn change(&mut self, was: Status, is: Status) {
        for (status, change) in [(was, -1), (is, 1)] {
            match status {
                Status::Unknown => {}
                Status::CatchAll => self.catch_all += change,
                Status::NotCatchAll => self.not_catch_all += change,
            }
        }
    }
}

/// A sum stops at the largest integer.
const ADD: &str = "\
-- catchall: add to the totals
insert into totals as t (counted_at, delivered, bounced, domains, catch_all, not_catch_all)
values (?, ?, ?, ?, ?, ?)
on conflict (counted_at) do update set
    delivered = t.delivered + min(excluded.delivered, 9223372036854775807 - t.delivered),
    bounced = t.bounced + min(excluded.bounced, 9223372036854775807 - t.bounced),
    domains = t.domains + excluded.domains,
    catch_all = t.catch_all + excluded.catch_all,
    not_catch_all = t.not_catch_all + excluded.not_catch_all";

/// Adds what a transaction counted at `now`, in seconds since 1970.
pub(super) async fn add(
    connection: &mut SqliteConnection,
    now: i64,
    delta: &Delta,
) -> Result<(), sqlx::Error> {
    sqlx::query(ADD)
        .bind(now - now.rem_euclid(ROW))
        .bind(delta.delivered)
        .bind(delta.bounced)
        .bind(delta.domains)
        .bind(delta.catch_all)
        .bind(delta.not_catch_all)
        .execute(connection)
        .await
        .map(drop)
}

/// Adds what is not part of the last hour: imported history, events that a reset removes, and new
/// classifications.
pub(super) async fn add_old(connection: &mut SqliteConnection, delta: &Delta) -> Result<(), sqlx::Error> {
    add(connection, 0, delta).await
}

/// Folds into one the rows that are more than an hour old, so that reading them stays cheap, and those in the
/// future, which would be reported as recent when their time comes.
const FOLD: &str = "\
-- catchall: fold old totals
insert into totals as t (counted_at, delivered, bounced, domains, catch_all, not_catch_all)
select 0, cast(min(total(delivered), 9e18) as integer), cast(min(total(bounced), 9e18) as integer),
    sum(domains), sum(catch_all), sum(not_catch_all)
from totals where counted_at > 0 and (counted_at < ? or counted_at > ?)
having count(*) > 0
on conflict (counted_at) do update set
    delivered = t.delivered + min(excluded.delivered, 9223372036854775807 - t.delivered),
    bounced = t.bounced + min(excluded.bounced, 9223372036854775807 - t.bounced),
    domains = t.domains + excluded.domains,
    catch_all = t.catch_all + excluded.catch_all,
    not_catch_all = t.not_catch_all + excluded.not_catch_all";

const FOLDED: &str = "\
-- catchall: remove totals that are folded
delete from totals where counted_at > 0 and (counted_at < ? or counted_at > ?)";

/// Folds rows that are not of the last hour, in a separate transaction. `now` is in seconds since 1970.
pub(super) async fn fold(connection: &mut SqliteConnection, now: i64) -> Result<(), sqlx::Error> {
    let (before, after) = (now.saturating_sub(KEPT), now.saturating_add(AHEAD));
    sqlx::raw_sql("begin immediate").execute(&mut *connection).await?;
    for statement in [FOLD, FOLDED] {
        sqlx::query(statement).bind(before).bind(after).execute(&mut *connection).await?;
    }
    sqlx::raw_sql("commit").execute(connection).await.map(drop)
}
