//! The feed of changes. The one writer numbers its transactions, so they become visible in order.

use sqlx::sqlite::SqliteConnection;

use super::row::{Row, rows};
use crate::classified::{Classified, DomainReport};
use crate::domain_name::DomainName;
use crate::position::Position;
use crate::store::Change;

/// The changes of a selection, in its order.
macro_rules! changes {
    ($name:literal, $selection:literal) => {
        concat!(
            "-- catchall: ",
            $name,
            "
select coalesce(group_concat(s.domain || ' ' || changed_in || ' ' || coalesce(delivered, 0) || ' '
    || coalesce(bounced, 0) || ' ' || status || ' ' || since), '')
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

/// The next changes after a position.
pub(super) async fn read(
    connection: &mut SqliteConnection,
    after: &Position,
    limit: u32,
) -> Result<Vec<Change>, sqlx::Error> {
    let query = sqlx::query_scalar(READ).bind(after.transaction).bind(after.domain_str()).bind(limit);
    let answer: String = query.fetch_one(connection).await?;
    Ok(changes(&answer))
}

/// The latest changes, the latest first.
pub(super) async fn latest(
    connection: &mut SqliteConnection,
    limit: u32,
) -> Result<Vec<Change>, sqlx::Error> {
    let answer: String = sqlx::query_scalar(LATEST).bind(limit).fetch_one(connection).await?;
    Ok(changes(&answer))
}

fn changes(answer: &str) -> Vec<Change> {
    let change = |row: &str| {
        let mut words = row.split(' ');
        let domain = DomainName::parse(words.next()?).ok()?;
        let transaction = words.next()?.parse().ok()?;
        let Row { counters, noted, since } = Row::read(&mut words)?;
        let position = Position { transaction, domain: Some(domain.clone()) };
        let report = DomainReport::new(domain, Classified::noted(counters, noted, since));
        Some(Change { report, position })
    };
    rows(answer).filter_map(change).collect()
}

/// Before all changes that are still to come.
pub(super) async fn head(connection: &mut SqliteConnection) -> Result<Position, sqlx::Error> {
    let head = "-- catchall: find the head of the feed
        select changes + 1 from classification";
    let transaction = sqlx::query_scalar(head).fetch_one(connection).await?;
    Ok(Position { transaction, domain: None })
}
