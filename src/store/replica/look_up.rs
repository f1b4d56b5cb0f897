//! Look-ups by name.

use super::row::{Known, READ_TIMEOUT, classified};
use crate::classified::Classified;
use crate::domain_name::DomainName;
use crate::store::postgres::{Database, DatabaseError};

/// Returns the place of a name, counted from 1, instead of the name: a third of the bytes.
const READ: &str = "\
-- catchall: look up names
select place, c.delivered, c.bounced, s.status, date_part('epoch', s.since), threshold
from unnest($1::text[]) with ordinality as asked (domain, place)
join domain_counters as c using (domain) left join domain_statuses as s using (domain), classification";

/// A place, and what is [known](Known) of the name there.
type Row = (i64, i64, i64, Option<i16>, Option<f64>, i64);

/// What is known of each name, in their order.
pub(super) async fn read(
    database: &Database,
    names: &[DomainName],
) -> Result<Vec<Classified>, DatabaseError> {
    let mut found = vec![Classified::default(); names.len()];
    let names: Vec<String> = names.iter().map(ToString::to_string).collect();
    let read = async move |pool| sqlx::query_as(READ).bind(names).fetch_all(&pool).await;
    let rows: Vec<Row> = database.run(READ_TIMEOUT, read).await?;
    for (place, delivered, bounced, status, since, threshold) in rows {
        let known: Known = (delivered, bounced, status, since, threshold);
        if let Some(found) = usize::try_from(place - 1).ok().and_then(|place| found.get_mut(place)) {
            *found = classified(known);
        }
    }
    Ok(found)
}
