//! The feed of changes in Postgres.
//!
//! Transactions do not commit in the order of their numbers. But below the oldest one that still runs no
//! change is missing, and that bound (`pg_snapshot_xmin`) only grows: on the primary, and on a replica, where
//! it shows what has been replayed.

use sqlx::PgPool;

use super::Change;
use crate::classified::{Classified, DomainReport};
use crate::counters::{Counters, Status};
use crate::domain_name::DomainName;
use crate::position::Position;
use crate::utc_time::UtcTime;

/// The changes of a selection, in its order.
macro_rules! changes {
    ($name:literal, $after:literal, $order:literal, $limit:literal) => {
        concat!(
            "-- catchall: ",
            $name,
            "
select coalesce(array_agg(domain), '{}'), coalesce(array_agg(delivered), '{}'),
    coalesce(array_agg(bounced), '{}'), coalesce(array_agg(status), '{}'),
    coalesce(array_agg(round(date_part('epoch', since) * 1000)::bigint), '{}'),
    coalesce(array_agg(changed_in), '{}')
from (
    select domain, coalesce(delivered, 0) as delivered, coalesce(bounced, 0) as bounced,
        status, since, changed_in
    from (select domain, status, since, changed_in from domain_statuses
        where ",
            $after,
            "changed_in < (select pg_snapshot_xmin(pg_current_snapshot())::text::bigint)
        order by ",
            $order,
            " limit ",
            $limit,
            ") as s
    left join domain_counters as c using (domain)
    order by ",
            $order,
            ") as changes"
        )
    };
}

const READ: &str =
    changes!("read changes", "(changed_in, domain) > ($1, $2) and ", "changed_in, domain", "$3");

const LATEST: &str = changes!("read the latest changes", "", "changed_in desc, domain desc", "$1");

type Columns = (Vec<String>, Vec<i64>, Vec<i64>, Vec<i16>, Vec<i64>, Vec<i64>);

/// The next changes after a position.
pub(super) async fn read(pool: &PgPool, after: &Position, limit: u32) -> Result<Vec<Change>, sqlx::Error> {
    let query = sqlx::query_as(READ).bind(after.transaction).bind(after.domain_str()).bind(i64::from(limit));
    Ok(changes(query.fetch_one(pool).await?))
}

/// The latest changes, the latest first.
pub(super) async fn latest(pool: &PgPool, limit: u32) -> Result<Vec<Change>, sqlx::Error> {
    Ok(changes(sqlx::query_as(LATEST).bind(i64::from(limit)).fetch_one(pool).await?))
}

fn changes((domains, delivered, bounced, statuses, since, transactions): Columns) -> Vec<Change> {
    let count = |bigint: i64| u64::try_from(bigint).unwrap_or(0);
    let counters = delivered
        .into_iter()
        .zip(bounced)
        .map(|(delivered, bounced)| Counters { delivered: count(delivered), bounced: count(bounced) });
    let noted = statuses.into_iter().map(Status::from_number).zip(since.into_iter().map(UtcTime));
    let known =
        counters.zip(noted).map(|(counters, (status, since))| Classified::noted(counters, status, since));
    let changes = domains.iter().zip(known).zip(transactions).filter_map(|((domain, known), transaction)| {
        let domain = DomainName::parse(domain).ok()?;
        let position = Position { transaction, domain: Some(domain.clone()) };
        Some(Change { report: DomainReport::new(domain, known), position })
    });
    changes.collect()
}

const LAST_CHANGE: &str = "\
-- catchall: find the last change of the feed
select coalesce((
    select changed_in from domain_statuses
    where changed_in < (select pg_snapshot_xmin(pg_current_snapshot())::text::bigint)
    order by changed_in desc limit 1), 0)";

/// The present end of the feed. A change that is visible but not yet in the feed moves it later.
pub(super) async fn last_change(pool: &PgPool) -> Result<Position, sqlx::Error> {
    Ok(Position { transaction: sqlx::query_scalar(LAST_CHANGE).fetch_one(pool).await?, domain: None })
}

const HEAD: &str = "\
-- catchall: find the head of the feed
select pg_snapshot_xmin(pg_current_snapshot())::text::bigint";

/// Before all changes that are still to come.
pub(super) async fn head(pool: &PgPool) -> Result<Position, sqlx::Error> {
    Ok(Position { transaction: sqlx::query_scalar(HEAD).fetch_one(pool).await?, domain: None })
}
