//! The feed of changes in Postgres.
//!
//! Transactions do not commit in the order of their numbers. But below the oldest one that still runs no
//! change is missing, and that bound (`pg_snapshot_xmin`) only grows: on the primary, and on a replica, where
//! it shows what has been replayed.

use sqlx::PgPool;

use super::{Change, Portion};
use crate::classified::{Classified, DomainReport};
use crate::counters::{Counters, Status};
use crate::domain_name::DomainName;
use crate::position::{FeedId, Place, Position};
use crate::utc_time::UtcTime;

/// Identifies the feed. The value is the same on a primary and its replicas. It differs on another server, in
/// another database, and after the table was created again, as by a restore. Every role may read it. Do not
/// store it: a new version of Postgres may compute another hash.
macro_rules! feed {
    () => {
        "(select hashtext(concat_ws('/', system_identifier,
        (select oid from pg_database where datname = current_database()),
        'domain_statuses'::regclass::oid)) from pg_control_system())"
    };
}

/// Below it nothing is missing.
macro_rules! head {
    () => {
        "pg_snapshot_xmin(pg_current_snapshot())::text::bigint"
    };
}

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
    coalesce(array_agg(changed_in), '{}'), ",
            feed!(),
            ", ",
            head!(),
            "
from (
    select domain, coalesce(delivered, 0) as delivered, coalesce(bounced, 0) as bounced,
        status, since, changed_in
    from (select domain, status, since, changed_in from domain_statuses
        where ",
            $after,
            "changed_in < (select ",
            head!(),
            ")
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

type Columns = (Vec<String>, Vec<i64>, Vec<i64>, Vec<i16>, Vec<i64>, Vec<i64>, i32, i64);

/// The next changes after a place.
pub(super) async fn read(pool: &PgPool, after: &Place, limit: u32) -> Result<Portion, sqlx::Error> {
    let query = sqlx::query_as(READ).bind(after.transaction).bind(&after.domain).bind(i64::from(limit));
    let (mut places, portion) = portion(query.fetch_one(pool).await?);
    let is_full = places.len() >= limit as usize;
    Ok(Portion { end: places.pop().unwrap_or_else(|| after.clone()), is_full, ..portion })
}

/// The latest changes, the latest first.
pub(super) async fn latest(pool: &PgPool, limit: u32) -> Result<Portion, sqlx::Error> {
    let (places, portion) = portion(sqlx::query_as(LATEST).bind(i64::from(limit)).fetch_one(pool).await?);
    let is_full = places.len() >= limit as usize;
    Ok(Portion { end: places.into_iter().next().unwrap_or_default(), is_full, ..portion })
}

/// The places of all rows, and a portion that has no end yet.
fn portion(found: Columns) -> (Vec<Place>, Portion) {
    let (domains, delivered, bounced, statuses, since, transactions, feed, head) = found;
    let count = |bigint: i64| u64::try_from(bigint).unwrap_or(0);
    let counters = delivered
        .into_iter()
        .zip(bounced)
        .map(|(delivered, bounced)| Counters { delivered: count(delivered), bounced: count(bounced) });
    let noted = statuses.into_iter().map(Status::from_number).zip(since.into_iter().map(UtcTime));
    let known =
        counters.zip(noted).map(|(counters, (status, since))| Classified::noted(counters, status, since));
    let places = domains.into_iter().zip(transactions);
    let places: Vec<Place> = places.map(|(domain, transaction)| Place { transaction, domain }).collect();
    let changes = places.iter().zip(known).filter_map(|(place, known)| {
        let domain = DomainName::parse(&place.domain).ok()?;
        Some(Change { report: DomainReport::new(domain, known), place: place.clone() })
    });
    let changes = changes.collect();
    let (feed, head) = before(feed, head);
    (places, Portion { feed, head, changes, end: Place::default(), is_full: false })
}

/// The feed, and a place before all changes of a transaction.
fn before(feed: i32, transaction: i64) -> (FeedId, Place) {
    (FeedId(feed.cast_unsigned()), Place { transaction, ..Place::default() })
}

fn position((feed, transaction): (i32, i64)) -> Position {
    let (feed, place) = before(feed, transaction);
    Position { feed: Some(feed), place }
}

const LAST_CHANGE: &str = concat!(
    "-- catchall: find the last change of the feed
select ",
    feed!(),
    ", coalesce((
    select changed_in from domain_statuses
    where changed_in < (select ",
    head!(),
    ")
    order by changed_in desc limit 1), 0)"
);

/// The present end of the feed. A change that is visible but not yet in the feed moves it later.
pub(super) async fn last_change(pool: &PgPool) -> Result<Position, sqlx::Error> {
    sqlx::query_as(LAST_CHANGE).fetch_one(pool).await.map(position)
}

const HEAD: &str = concat!(
    "-- catchall: find the head of the feed
select ",
    feed!(),
    ", ",
    head!()
);

/// Before all changes that are still to come.
pub(super) async fn head(pool: &PgPool) -> Result<Position, sqlx::Error> {
    sqlx::query_as(HEAD).fetch_one(pool).await.map(position)
}
