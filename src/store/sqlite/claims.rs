//! Claims: which keyed events have been counted.

use std::collections::HashSet;
use std::fmt::Write;

use sqlx::sqlite::SqliteConnection;
use uuid::Uuid;

use crate::event::Event;
use crate::idempotency_key::IdempotencyKey;

/// The places, in the list of ids, of those that have been claimed before.
const CLAIMED: &str = "\
-- catchall: find claims
select coalesce(group_concat(asked.key), '')
from json_each(?) as asked cross join event_claims on event_claims.id = unhex(asked.value)";

/// Makes claims, and renews those that were met again: a duplicate shows that copies are still in
/// circulation.
const CLAIM: &str = "\
-- catchall: claim events
insert into event_claims (id, used_at)
select unhex(value), ? from json_each(?) where true
on conflict (id) do update set used_at = excluded.used_at";

/// Claims all keyed events at `now`, in seconds since 1970, and returns those that have not been counted
/// before. If several events have one key, only the first counts.
pub(super) async fn claim<'a>(
    connection: &mut SqliteConnection,
    keyed: &[&'a (IdempotencyKey, Event)],
    now: i64,
) -> Result<Vec<&'a Event>, sqlx::Error> {
    if keyed.is_empty() {
        return Ok(Vec::new());
    }
    let mut ids: Vec<Uuid> = keyed.iter().map(|(key, _)| key.as_uuid()).collect();
    ids.sort_unstable();
    ids.dedup();
    let list = json(&ids);
    let claimed: String = sqlx::query_scalar(CLAIMED).bind(&list).fetch_one(&mut *connection).await?;
    sqlx::query(CLAIM).bind(now).bind(list).execute(connection).await?;
    let claimed = claimed.split(',').filter_map(|place| place.parse::<usize>().ok());
    let claimed: HashSet<Uuid> = claimed.filter_map(|place| ids.get(place).copied()).collect();
    let mut fresh: HashSet<Uuid> = ids.into_iter().filter(|id| !claimed.contains(id)).collect();
    Ok(keyed.iter().filter(|(key, _)| fresh.remove(&key.as_uuid())).map(|(_, event)| event).collect())
}

/// The ids as a JSON array of their 32 hexadecimal digits.
fn json(ids: &[Uuid]) -> String {
    let mut list = String::with_capacity(ids.len() * 35 + 2);
    list.push('[');
    for (place, id) in ids.iter().enumerate() {
        let comma = if place == 0 { "" } else { "," };
        write!(list, "{comma}\"{}\"", id.simple()).expect("a string grows as it must");
    }
    list.push(']');
    list
}
