//! Claims: which messages and which keyed events have been counted.

use std::collections::HashSet;

use sqlx::PgConnection;
use uuid::Uuid;

use super::super::postgres::Steps;
use super::apply_request::Entry;
use crate::batch::Batch;
use crate::event::Event;
use crate::idempotency_key::IdempotencyKey;

/// The statement that claims in this table.
macro_rules! claim {
    ($table:literal) => {
        concat!(
            "-- catchall: claim in ",
            $table,
            "
insert into ",
            $table,
            " (id)
select id from unnest($1::uuid[]) as claimed (id)
on conflict do nothing
returning id"
        )
    };
}

/// The statement that renews claims in this table. A duplicate shows that copies are still in circulation, so
/// its claim becomes as good as new.
macro_rules! renew {
    ($table:literal) => {
        concat!(
            "-- catchall: renew claims in ",
            $table,
            "
insert into ",
            $table,
            " (id)
select id from unnest($1::uuid[]) as met (id)
on conflict (id) do update set claimed_at = excluded.claimed_at"
        )
    };
}

/// Returns the batches of the messages that have not been counted before. If a message was delivered twice,
/// only the first delivery counts.
pub(super) async fn claim_messages<'a>(
    connection: &mut PgConnection,
    steps: &Steps,
    entries: &'a [Entry],
) -> Result<Vec<&'a Batch>, sqlx::Error> {
    let ids = entries.iter().filter_map(|entry| entry.id.map(IdempotencyKey::as_uuid)).collect();
    let mut fresh = claim(connection, steps, ids, claim!("message_claims"), renew!("message_claims")).await?;
    let counts = |entry: &&Entry| entry.id.is_none_or(|id| fresh.remove(&id.as_uuid()));
    Ok(entries.iter().filter(counts).map(|entry| &entry.batch).collect())
}

/// Returns the events that have not been counted before. If several events have one key, only the first
/// counts.
pub(super) async fn claim_events<'a>(
    connection: &mut PgConnection,
    steps: &Steps,
    keyed: &[&'a (IdempotencyKey, Event)],
) -> Result<Vec<&'a Event>, sqlx::Error> {
    let ids = keyed.iter().map(|(key, _)| key.as_uuid()).collect();
    let mut fresh = claim(connection, steps, ids, claim!("event_claims"), renew!("event_claims")).await?;
    Ok(keyed.iter().filter(|(key, _)| fresh.remove(&key.as_uuid())).map(|(_, event)| event).collect())
}

/// Claims the ids in key order, so that two workers that claim the same ids cannot deadlock: the second waits
/// for the first to commit, and then gets only the remaining ids. Returns the ids that were fresh. They come
/// from `returning`, because the number of inserted rows is not reliable everywhere.
async fn claim(
    connection: &mut PgConnection,
    steps: &Steps,
    mut ids: Vec<Uuid>,
    claim: &'static str,
    renew: &'static str,
) -> Result<HashSet<Uuid>, sqlx::Error> {
    if ids.is_empty() {
        return Ok(HashSet::new());
    }
    ids.sort_unstable();
    ids.dedup();
    let fresh = sqlx::query_scalar(claim).bind(&ids).fetch_all(&mut *connection).await?;
    steps.done();
    let fresh: HashSet<Uuid> = fresh.into_iter().collect();
    ids.retain(|id| !fresh.contains(id));
    if !ids.is_empty() {
        sqlx::query(renew).bind(ids).execute(connection).await?;
        steps.done();
    }
    Ok(fresh)
}
