//! The feed of changes.
//!
//! Transactions commit in another order than they got their numbers in. But below the oldest one that still
//! runs nothing is missing, and that bound (`pg_snapshot_xmin`) only grows: on the primary, and on a replica,
//! where it says what has been replayed.

use sqlx::PgPool;

use super::READ_TIMEOUT;
use super::row::{count, timestamp};
use crate::classified::{Classified, DomainReport};
use crate::counters::{Counters, Status};
use crate::domain_name::DomainName;
use crate::position::Position;
use crate::store::Change;
use crate::store::postgres::{Database, DatabaseError};

/// The changes of a selection, in its order.
macro_rules! changes {
    ($name:literal, $selection:literal, $order:literal) => {
        concat!(
            "-- catchall: ",
            $name,
            "
select coalesce(array_agg(domain), '{}'), coalesce(array_agg(delivered), '{}'), coalesce(array_agg(bounced), '{}'),
    coalesce(array_agg(status), '{}'), coalesce(array_agg(date_part('epoch', since)), '{}'),
    coalesce(array_agg(changed_in), '{}')
from (
    select domain, coalesce(delivered, 0) as delivered, coalesce(bounced, 0) as bounced, status, since, changed_in
    from (select domain, status, since, changed_in from domain_statuses
        where changed_in < (select pg_snapshot_xmin(pg_current_snapshot())::text::bigint)
            ",
            $selection,
            ") as s
    left join domain_counters as c using (domain)
    ",
            $order,
            ") as changes"
        )
    };
}

const READ: &str = changes!(
    "read changes",
    "and (changed_in, domain) > ($1, $2) order by changed_in, domain limit $3",
    "order by changed_in, domain"
);

const LATEST: &str = changes!(
    "read the latest changes",
    "order by changed_in desc, domain desc limit $1",
    "order by changed_in desc, domain desc"
);

type Rows = (Vec<String>, Vec<i64>, Vec<i64>, Vec<i16>, Vec<f64>, Vec<i64>);

/// The next changes after a position.
pub(super) async fn read(
    database: &Database,
    after: &Position,
    limit: u32,
) -> Result<Vec<Change>, DatabaseError> {
    let after = after.clone();
    let read = async move |pool: PgPool| {
        sqlx::query_as::<_, Rows>(READ)
            .bind(after.transaction)
            .bind(after.domain_str())
            .bind(i64::from(limit))
            .fetch_one(&pool)
            .await
    };
    Ok(changes(database.run(READ_TIMEOUT, read).await?))
}

/// The last changes, the last one first.
pub(super) async fn latest(database: &Database, limit: u32) -> Result<Vec<Change>, DatabaseError> {
    let read = async move |pool: PgPool| {
        sqlx::query_as::<_, Rows>(LATEST).bind(i64::from(limit)).fetch_one(&pool).await
    };
    Ok(changes(database.run(READ_TIMEOUT, read).await?))
}

fn changes((domains, delivered, bounced, statuses, since, transactions): Rows) -> Vec<Change> {
    let columns = domains.iter().zip(delivered).zip(bounced).zip(statuses).zip(since).zip(transactions);
    let change = |(((((domain, delivered), bounced), status), since), transaction): (
        ((((&String, i64), i64), i16), f64),
        i64,
    )| {
        let domain = DomainName::parse(domain).ok()?;
        let counters = Counters { delivered: count(delivered), bounced: count(bounced) };
        let noted = Classified::noted(counters, Status::from_number(status), timestamp(since));
        let report = DomainReport::new(domain, noted);
        let position = Position { transaction, domain: Some(report.domain.clone()) };
        Some(Change { report, position })
    };
    columns.filter_map(change).collect()
}

const HEAD: &str = "\
-- catchall: find the head of the feed
select pg_snapshot_xmin(pg_current_snapshot())::text::bigint";

/// Before all changes that are still to come.
pub(super) async fn head(database: &Database) -> Result<Position, DatabaseError> {
    let read = async |pool: PgPool| sqlx::query_scalar(HEAD).fetch_one(&pool).await;
    Ok(Position { transaction: database.run(READ_TIMEOUT, read).await?, domain: None })
}
