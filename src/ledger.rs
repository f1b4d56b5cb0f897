//! The ledger on the Postgres primary: every message and every keyed event counted once.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use crate::batch::Batch;
use crate::counters::Counters;
use crate::domain_name::DomainName;
use crate::event::{Event, IdempotencyKey};
use crate::health::Dependency;
use crate::postgres::{Database, Error, Url};
use crate::tally::Tally;

/// One transaction at a time, and one connection to spare for when the last has just died.
const CONNECTIONS: u32 = 2;

/// Bounds on the server's side, so that nothing here ever has to be cancelled. A worker that is stopped
/// inside a transaction (a paused machine) must not hold the rows of others for long, and one that waits
/// for such rows gives up and tries again.
const SESSION: [(&str, &str); 3] =
    [("statement_timeout", "60s"), ("lock_timeout", "10s"), ("idle_in_transaction_session_timeout", "10s")];

/// How long a transaction may take before its connection is given up: longer than the server lets any of
/// its statements run, so that only a peer that is gone without a word is.
const PATIENCE: Duration = Duration::from_secs(90);

/// Where the ledger is.
#[derive(Clone, Debug, clap::Args)]
#[group(skip)]
pub struct Config {
    /// Where the Postgres primary is: postgres://USER:PASSWORD@HOST:PORT/DATABASE, with ?sslmode=require for TLS
    #[arg(long, env = "CATCHALL_DATABASE_URL", value_name = "URL", hide_env_values = true)]
    pub database_url: Url,
}

/// What one transaction did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Messages and keyed events that had been counted before and were not counted again.
    pub duplicates: usize,
    /// Domains whose counters grew.
    pub rows: usize,
    /// The sum of all that was added.
    pub added: Counters,
}

/// The ledger on the primary.
#[derive(Clone, Debug)]
pub struct Ledger(Database);

impl Ledger {
    /// A ledger that connects when it is first used.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        Self(Database::new(&config.database_url, "catchall-worker", CONNECTIONS, &SESSION))
    }

    /// Waits until the primary is there with the schema this build needs.
    pub async fn ready(&self) {
        self.0.ready().await;
    }

    /// Keeps `database` up to date for as long as it is polled.
    pub async fn watch(&self, database: Dependency) {
        self.0
            .watch(database, async |connection| sqlx::query("select 1").execute(connection).await.map(drop))
            .await;
    }

    /// Counts the batches, each under the id of its message if it has one. Once this returns, all of it is
    /// durable, and none of it will be counted again under the same ids and keys.
    ///
    /// Claims come first and in the same transaction as what they guard, so a crash anywhere leaves both or
    /// neither. Everything is written in key order, so two workers with the same ids or domains wait for
    /// each other and never in a circle.
    ///
    /// # Errors
    ///
    /// Nothing was counted, or the answer to the commit was lost; the same call again is safe for all
    /// batches that have an id.
    pub async fn apply(&self, batches: Arc<Vec<(Option<IdempotencyKey>, Batch)>>) -> Result<Applied, Error> {
        self.0.run(PATIENCE, async move |pool| transaction(&pool, &batches).await).await
    }
}

async fn transaction(
    pool: &PgPool,
    batches: &[(Option<IdempotencyKey>, Batch)],
) -> Result<Applied, sqlx::Error> {
    let mut transaction = pool.begin().await?;
    let fresh = claim_messages(&mut transaction, batches).await?;
    let keyed: Vec<&(IdempotencyKey, Event)> = fresh.iter().flat_map(|batch| &batch.keyed).collect();
    let fresh_events = claim_events(&mut transaction, &keyed).await?;
    let duplicates = batches.len() - fresh.len() + keyed.len() - fresh_events.len();
    let mut tally = Tally::default();
    for (domain, counters) in fresh.iter().flat_map(|batch| batch.plain.iter()) {
        tally.record(domain, *counters);
    }
    for event in fresh_events {
        tally.record(&event.domain, Counters::of(event.outcome, event.count));
    }
    add(&mut transaction, &tally).await?;
    transaction.commit().await?;
    let mut added = Counters::default();
    tally.iter().for_each(|(_, counters)| added += *counters);
    Ok(Applied { duplicates, rows: tally.len(), added })
}

/// The batches that have not been counted before. Of two deliveries of one message the first is.
async fn claim_messages<'a>(
    connection: &mut PgConnection,
    batches: &'a [(Option<IdempotencyKey>, Batch)],
) -> Result<Vec<&'a Batch>, sqlx::Error> {
    let ids = batches.iter().filter_map(|(id, _)| id.map(IdempotencyKey::as_uuid)).collect();
    let mut fresh = claim(connection, CLAIM_MESSAGES, ids).await?;
    let counts = |id: &Option<IdempotencyKey>, fresh: &mut HashSet<Uuid>| {
        id.is_none_or(|id| fresh.remove(&id.as_uuid()))
    };
    Ok(batches.iter().filter(|(id, _)| counts(id, &mut fresh)).map(|(_, batch)| batch).collect())
}

/// The events that have not been counted before. Of several with one key the first is.
async fn claim_events<'a>(
    connection: &mut PgConnection,
    keyed: &[&'a (IdempotencyKey, Event)],
) -> Result<Vec<&'a Event>, sqlx::Error> {
    let ids = keyed.iter().map(|(key, _)| key.as_uuid()).collect();
    let mut fresh = claim(connection, CLAIM_EVENTS, ids).await?;
    Ok(keyed.iter().filter(|(key, _)| fresh.remove(&key.as_uuid())).map(|(_, event)| event).collect())
}

const CLAIM_MESSAGES: &str = "\
-- catchall: claim messages
insert into message_claims (id)
select id from unnest($1::uuid[]) as claimed (id)
on conflict do nothing
returning id";

const CLAIM_EVENTS: &str = "\
-- catchall: claim events
insert into event_claims (id)
select id from unnest($1::uuid[]) as claimed (id)
on conflict do nothing
returning id";

/// Claims the ids in key order, so that two workers that claim the same ones cannot deadlock: the second
/// waits for the first to commit, and then gets only what is left. Returns the ids that were fresh; the
/// number of inserted rows is not to be trusted everywhere, what is returned is.
async fn claim(
    connection: &mut PgConnection,
    statement: &'static str,
    mut ids: Vec<Uuid>,
) -> Result<HashSet<Uuid>, sqlx::Error> {
    if ids.is_empty() {
        return Ok(HashSet::new());
    }
    ids.sort_unstable();
    ids.dedup();
    let fresh = sqlx::query_scalar(statement).bind(ids).fetch_all(connection).await?;
    Ok(fresh.into_iter().collect())
}

/// One row per domain, in key order. A sum stops at the end of bigint instead of failing the transaction,
/// and with it everybody's events.
const ADD: &str = "\
-- catchall: add to the counters
insert into domain_counters as c (domain, delivered, bounced)
select * from unnest($1::text[], $2::bigint[], $3::bigint[])
on conflict (domain) do update set
    delivered = c.delivered + least(excluded.delivered, 9223372036854775807 - c.delivered),
    bounced = c.bounced + least(excluded.bounced, 9223372036854775807 - c.bounced)";

async fn add(connection: &mut PgConnection, tally: &Tally<&DomainName>) -> Result<(), sqlx::Error> {
    if tally.is_empty() {
        return Ok(());
    }
    let bigint = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
    let domains: Vec<&str> = tally.iter().map(|(domain, _)| domain.as_str()).collect();
    let delivered: Vec<i64> = tally.iter().map(|(_, counters)| bigint(counters.delivered)).collect();
    let bounced: Vec<i64> = tally.iter().map(|(_, counters)| bigint(counters.bounced)).collect();
    sqlx::query(ADD).bind(domains).bind(delivered).bind(bounced).execute(connection).await?;
    Ok(())
}
