//! The feed of changes. The one writer numbers its transactions, so they become visible in order.

use sqlx::sqlite::SqliteConnection;

use super::row::{Row, rows};
use crate::classified::{Classified, DomainReport};
use crate::domain_name::DomainName;
use crate::position::{FeedId, Place, Position};
use crate::store::{Change, Portion};

/// Selects changes as one text, with the number of their rows, the highest place among them, the feed and its
/// head.
macro_rules! changes {
    ($name:literal, $selection:literal) => {
        concat!(
            "-- catchall: ",
            $name,
            "
select coalesce(group_concat(s.domain || ' ' || changed_in || ' ' || coalesce(delivered, 0) || ' '
    || coalesce(bounced, 0) || ' ' || status || ' ' || since), ''),
    count(*), max(printf('%019d ', changed_in) || s.domain), (select feed from data_file),
    (select changes + 1 from classification)
from (select domain, status, since, changed_in from domain_statuses ",
            $selection,
            ") as s
left join domain_counters as c on c.domain = s.domain"
        )
    };
}

const READ: &str =
    changes!("read changes", "where (changed_in, domain) > (?, ?) order by changed_in, domain limit ?");

const LATEST: &str = changes!("read the latest changes", "order by changed_in desc, domain desc limit ?");

/// Rows, how many there are, the place of the last change, the feed and its head.
type Found = (String, u32, Option<String>, i64, i64);

/// The next changes after a place.
pub(super) async fn read(
    connection: &mut SqliteConnection,
    after: &Place,
    limit: u32,
) -> Result<Portion, sqlx::Error> {
    let query = sqlx::query_as(READ).bind(after.transaction).bind(&after.domain).bind(limit);
    Ok(portion(query.fetch_one(connection).await?, after, limit))
}

/// The latest changes, the latest first.
pub(super) async fn latest(connection: &mut SqliteConnection, limit: u32) -> Result<Portion, sqlx::Error> {
    let found = sqlx::query_as(LATEST).bind(limit).fetch_one(connection).await?;
    Ok(portion(found, &Place::default(), limit))
}

fn portion((answer, seen, last, feed, head): Found, after: &Place, limit: u32) -> Portion {
    let change = |row: &str| {
        let mut words = row.split(' ');
        let domain = DomainName::parse(words.next()?).ok()?;
        let place = Place::after(words.next()?.parse().ok()?, &domain);
        let Row { counters, noted, since } = Row::read(&mut words)?;
        Some(Change { report: DomainReport::new(domain, Classified::noted(counters, noted, since)), place })
    };
    let end = last.as_deref().and_then(|last| {
        let (transaction, domain) = last.split_once(' ')?;
        Some(Place { transaction: transaction.parse().ok()?, domain: domain.to_owned() })
    });
    Portion {
        feed: feed_id(feed),
        head: Place { transaction: head, ..Place::default() },
        changes: rows(&answer).filter_map(change).collect(),
        end: end.unwrap_or_else(|| after.clone()),
        is_full: seen >= limit,
    }
}

/// The file has a number of 32 bits.
fn feed_id(number: i64) -> FeedId {
    FeedId(u32::try_from(number).unwrap_or_default())
}

/// Before all changes that are still to come.
pub(super) async fn head(connection: &mut SqliteConnection) -> Result<Position, sqlx::Error> {
    let head = "-- catchall: find the head of the feed
        select (select feed from data_file), changes + 1 from classification";
    let (feed, transaction): (i64, i64) = sqlx::query_as(head).fetch_one(connection).await?;
    Ok(Position { feed: Some(feed_id(feed)), place: Place { transaction, ..Place::default() } })
}
