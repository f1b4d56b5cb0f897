//! Look-ups by name.

use super::row::{READ_TIMEOUT, classified};
use crate::classified::Classified;
use crate::domain_name::DomainName;
use crate::store::postgres::{Database, DatabaseError};

/// One row of arrays, because each row of an answer costs more than what is in it, with the place of each name
/// in the question, counted from 1. The status of a domain that is unknown is not read, because it has no time.
const READ: &str = "\
-- catchall: look up names
select coalesce(array_agg(place), '{}'), coalesce(array_agg(c.delivered), '{}'),
    coalesce(array_agg(c.bounced), '{}'), coalesce(array_agg(s.status), '{}'),
    coalesce(array_agg(date_part('epoch', s.since)), '{}'), (select threshold from classification)
from unnest($1::text[]) with ordinality as asked (domain, place)
join domain_counters as c using (domain)
left join domain_statuses as s on s.domain = case
    when c.bounced > 0 or c.delivered > (select threshold from classification) then c.domain end";

type Rows = (Vec<i64>, Vec<i64>, Vec<i64>, Vec<Option<i16>>, Vec<Option<f64>>, i64);

/// What is known about each name, in their order.
pub(super) async fn read(
    database: &Database,
    names: &[DomainName],
) -> Result<Vec<Classified>, DatabaseError> {
    // Neighbours share pages of the index: in key order a name costs the server a twentieth less.
    let mut order: Vec<usize> = (0..names.len()).collect();
    order.sort_unstable_by(|left, right| names[*left].cmp(&names[*right]));
    let sorted: Vec<String> = order.iter().map(|place| names[*place].to_string()).collect();
    let read = async move |pool| sqlx::query_as::<_, Rows>(READ).bind(sorted).fetch_one(&pool).await;
    let (places, delivered, bounced, statuses, since, threshold) = database.run(READ_TIMEOUT, read).await?;
    let mut found = vec![Classified::default(); names.len()];
    let columns = places.into_iter().zip(delivered).zip(bounced).zip(statuses).zip(since);
    for ((((place, delivered), bounced), status), since) in columns {
        let place = usize::try_from(place - 1).ok().and_then(|place| order.get(place));
        if let Some(found) = place.and_then(|place| found.get_mut(*place)) {
            *found = classified((delivered, bounced, status, since, threshold));
        }
    }
    Ok(found)
}
