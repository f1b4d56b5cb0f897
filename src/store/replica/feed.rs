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

const READ: &str = "\
-- catchall: read changes
select coalesce(array_agg(domain), '{}'), coalesce(array_agg(delivered), '{}'), coalesce(array_agg(bounced), '{}'),
    coalesce(array_agg(status), '{}'), coalesce(array_agg(date_part('epoch', since)), '{}'),
    coalesce(array_agg(changed_in), '{}')
from (
    select domain, coalesce(delivered, 0) as delivered, coalesce(bounced, 0) as bounced, status, since, changed_in
    from (select domain, status, since, changed_in from domain_statuses
        where (changed_in, domain) > ($1, $2)
            and changed_in < (select pg_snapshot_xmin(pg_current_snapshot())::text::bigint)
        order by changed_in, domain limit $3) as s
    left join domain_counters as c using (domain)
    order by changed_in, domain) as changes";

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
    let (domains, delivered, bounced, statuses, since, transactions) =
        database.run(READ_TIMEOUT, read).await?;
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
    Ok(columns.filter_map(change).collect())
}

const LAST_CHANGE: &str = "\
-- catchall: find the last change of the feed
select coalesce((
    select changed_in from domain_statuses
    where changed_in < (select pg_snapshot_xmin(pg_current_snapshot())::text::bigint)
    order by changed_in desc limit 1), 0)";

/// Where the feed ends by now. A change that is visible already and not in the feed yet moves it later.
pub(super) async fn last_change(database: &Database) -> Result<Position, DatabaseError> {
    let read = async |pool: PgPool| sqlx::query_scalar(LAST_CHANGE).fetch_one(&pool).await;
    Ok(Position { transaction: database.run(READ_TIMEOUT, read).await?, domain: None })
}

const HEAD: &str = "\
-- catchall: find the head of the feed
select pg_snapshot_xmin(pg_current_snapshot())::text::bigint";

/// Before all changes that are still to come.
pub(super) async fn head(database: &Database) -> Result<Position, DatabaseError> {
    let read = async |pool: PgPool| sqlx::query_scalar(HEAD).fetch_one(&pool).await;
    Ok(Position { transaction: database.run(READ_TIMEOUT, read).await?, domain: None })
}
