//! Totals, in parts that add up: each writer has a row for each ten seconds.

use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use super::statuses::StatusChanges;
use crate::counters::Counters;

/// What a transaction adds to the totals.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::store) struct Delta {
    delivered: i128,
    bounced: i128,
    /// Domains that had no events before, minus those that have none any more.
    pub(in crate::store) domains: i64,
    pub(in crate::store) changes: StatusChanges,
}

impl Delta {
    /// Only changes of statuses.
    pub(in crate::store) fn of(changes: StatusChanges) -> Self {
        Self { changes, ..Self::default() }
    }

    /// Adds events.
    pub(in crate::store) fn add(&mut self, counters: Counters) {
        self.delivered += i128::from(counters.delivered);
        self.bounced += i128::from(counters.bounced);
    }

    /// Takes events back.
    pub(in crate::store) fn subtract(&mut self, counters: Counters) {
        self.delivered -= i128::from(counters.delivered);
        self.bounced -= i128::from(counters.bounced);
    }
}

/// Adds to the row of a writer for the present ten seconds, or to its row for the past.
macro_rules! add {
    ($name:literal, $counted_at:literal) => {
        concat!(
            "-- catchall: ",
            $name,
            "
insert into totals as t (counted_at, writer, delivered, bounced, domains, catch_all, not_catch_all)
values (",
            $counted_at,
            ", $1, $2::text::numeric, $3::text::numeric, $4, $5, $6)
on conflict (counted_at, writer) do update set
    delivered = t.delivered + excluded.delivered,
    bounced = t.bounced + excluded.bounced,
    domains = t.domains + excluded.domains,
    catch_all = t.catch_all + excluded.catch_all,
    not_catch_all = t.not_catch_all + excluded.not_catch_all"
        )
    };
}

const ADD: &str = add!("add to the totals", "date_bin('10 seconds', now(), 'epoch')");
const ADD_OLD: &str = add!("add to the totals of the past", "'epoch'");

/// Adds what a transaction counted.
pub(in crate::store) async fn add(
    connection: &mut PgConnection,
    writer: Uuid,
    delta: &Delta,
) -> Result<(), sqlx::Error> {
    write(connection, ADD, writer, delta).await
}

/// Adds what is not part of the last hour: imported history, events that a reset removes, and new
/// classifications.
pub(in crate::store) async fn add_old(
    connection: &mut PgConnection,
    writer: Uuid,
    delta: &Delta,
) -> Result<(), sqlx::Error> {
    write(connection, ADD_OLD, writer, delta).await
}

async fn write(
    connection: &mut PgConnection,
    statement: &'static str,
    writer: Uuid,
    delta: &Delta,
) -> Result<(), sqlx::Error> {
    sqlx::query(statement)
        .bind(writer)
        .bind(delta.delivered.to_string())
        .bind(delta.bounced.to_string())
        .bind(delta.domains)
        .bind(delta.changes.catch_all)
        .bind(delta.changes.not_catch_all)
        .execute(connection)
        .await
        .map(drop)
}

/// Folds into one the rows that are more than an hour old, and those in the future, which a clock that was
/// ahead has left: they would be reported as recent when their time comes. No transaction that counts still
/// writes any of these rows.
const FOLD: &str = "\
-- catchall: fold old totals
with old as (
    delete from totals
    where (counted_at < now() - interval '65 minutes' or counted_at > now() + interval '1 minute')
        and (counted_at, writer) <> ('epoch', '00000000-0000-0000-0000-000000000000')
    returning delivered, bounced, domains, catch_all, not_catch_all
)
insert into totals as t (counted_at, writer, delivered, bounced, domains, catch_all, not_catch_all)
select 'epoch', '00000000-0000-0000-0000-000000000000',
    sum(delivered), sum(bounced), sum(domains), sum(catch_all), sum(not_catch_all)
from old
having count(*) > 0
on conflict (counted_at, writer) do update set
    delivered = t.delivered + excluded.delivered,
    bounced = t.bounced + excluded.bounced,
    domains = t.domains + excluded.domains,
    catch_all = t.catch_all + excluded.catch_all,
    not_catch_all = t.not_catch_all + excluded.not_catch_all";

/// Folds rows of the totals that are not of the last hour into one, so that reading them stays cheap.
pub(super) async fn fold(pool: &PgPool) -> Result<(), sqlx::Error> {
    sqlx::query(FOLD).execute(pool).await.map(drop)
}
