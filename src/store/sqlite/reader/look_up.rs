//! Look-ups by name.

use std::fmt::Write;

use sqlx::sqlite::SqliteConnection;

use super::row::{Row, rows};
use crate::classified::Classified;
use crate::domain_name::DomainName;

const READ: &str = "\
-- catchall: look up names
select (select threshold from classification), coalesce(group_concat(asked.key
    || ' ' || delivered || ' ' || bounced || ' ' || coalesce(status, 0) || ' ' || coalesce(since, 0)), '')
from json_each(?) as asked cross join domain_counters as c on c.domain = asked.value
left join domain_statuses as s on s.domain = asked.value";

/// What is known about each name, in their order.
pub(super) async fn read(
    connection: &mut SqliteConnection,
    names: &[DomainName],
) -> Result<Vec<Classified>, sqlx::Error> {
    let (threshold, answer): (i64, String) =
        sqlx::query_as(READ).bind(json(names)).fetch_one(connection).await?;
    let mut found = vec![Classified::default(); names.len()];
    for row in rows(&answer) {
        let mut words = row.split(' ');
        let place = words.next().and_then(|place| place.parse::<usize>().ok());
        if let (Some(found), Some(row)) =
            (place.and_then(|place| found.get_mut(place)), Row::read(&mut words))
        {
            *found = row.classified(threshold);
        }
    }
    Ok(found)
}

/// The names as a JSON array. A domain name needs no escapes.
fn json(names: &[DomainName]) -> String {
    let mut list = String::from("[");
    for (place, name) in names.iter().enumerate() {
        let comma = if place == 0 { "" } else { "," };
        write!(list, "{comma}\"{}\"", name.as_str()).expect("a string grows as it must");
    }
    list + "]"
}
