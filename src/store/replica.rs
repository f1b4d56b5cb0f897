//! The Postgres replica: counters, read over connections that cannot write.

use std::mem;
use std::time::Duration;

use super::postgres::{Database, Error, Url};
use super::{CounterSource, Unreadable};
use crate::counters::Counters;
use crate::domain_name::DomainName;
use crate::health::Dependency;

/// A connection of this session cannot write, whatever server the URL leads to, and a read that takes a
/// second is of no more use to anyone.
const SESSION: [(&str, &str); 2] = [("default_transaction_read_only", "on"), ("statement_timeout", "2s")];

/// How long a read may take before its connection is given up: longer than the server lets it run.
const READ_TIMEOUT: Duration = Duration::from_secs(5);

/// How often a read is tried that the replica cancels because it is in the way of replay. What is read next begins
/// after what was then replayed.
const TRIES: u32 = 3;

/// Answers older than this are told in the log. A healthy replica is behind by milliseconds.
const STALE: Duration = Duration::from_secs(10);

/// Where the replica is.
#[derive(Clone, Debug, clap::Args)]
#[group(skip)]
pub struct Config {
    /// Where a Postgres replica is: postgres://USER:PASSWORD@HOST:PORT/DATABASE, with ?sslmode=require for TLS
    #[arg(long, env = "CATCHALL_REPLICA_URL", value_name = "URL", hide_env_values = true)]
    pub replica_url: Url,
}

/// A replica.
#[derive(Clone, Debug)]
pub struct Replica(Database);

impl Replica {
    /// A replica that is connected to when it is first used, by at most `connections` at a time.
    #[must_use]
    pub fn new(config: &Config, connections: u32) -> Self {
        Self(Database::new(&config.replica_url, "catchall-query", connections, &SESSION))
    }

    async fn read(&self, names: &[DomainName]) -> Result<Vec<Counters>, Error> {
        let mut counters = vec![Counters::default(); names.len()];
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let read = async move |pool| sqlx::query_as(READ).bind(names).fetch_all(&pool).await;
        let rows: Vec<(i64, i64, i64)> = self.0.run(READ_TIMEOUT, read).await?;
        let count = |bigint: i64| u64::try_from(bigint).unwrap_or(0);
        for (place, delivered, bounced) in rows {
            let place = usize::try_from(place - 1).ok().and_then(|place| counters.get_mut(place));
            if let Some(counters) = place {
                *counters = Counters { delivered: count(delivered), bounced: count(bounced) };
            }
        }
        Ok(counters)
    }

    /// Keeps `replica` and the metrics of its lag up to date for as long as it is polled. A replica that falls
    /// behind stays up: an old answer is better than none, and is told by the metrics and in the log.
    pub async fn watch(&self, replica: Dependency) {
        let lag = metrics::gauge!("catchall_replica_lag_seconds");
        let receiving = metrics::gauge!("catchall_replica_receiving");
        let mut behind = false;
        self.0
            .watch(replica, async |connection| {
                let (lag_seconds, receives, read_only) =
                    sqlx::query_as::<_, (f64, bool, bool)>(LOOK).fetch_one(connection).await?;
                lag.set(lag_seconds);
                receiving.set(f64::from(u8::from(receives)));
                let is_behind = lag_seconds > STALE.as_secs_f64();
                if is_behind != mem::replace(&mut behind, is_behind) {
                    match (is_behind, receives) {
                        (false, _) => tracing::info!("the replica has caught up"),
                        (true, true) => tracing::warn!(
                            lag_seconds,
                            "the replica is {lag_seconds:.0} s behind with what it receives: answers are that old"
                        ),
                        (true, false) => tracing::warn!(
                            lag_seconds,
                            "the replica receives nothing from its primary: answers may be {lag_seconds:.0} s old"
                        ),
                    }
                }
                // A pooler on the way may not pass the session's settings on.
                if read_only { Ok(()) } else { Err(sqlx::Error::Protocol("the session can write".into())) }
            })
            .await;
    }
}

impl CounterSource for Replica {
    async fn counters(&self, names: &[DomainName]) -> Result<Vec<Counters>, Unreadable> {
        let mut tries = 1;
        loop {
            match self.read(names).await {
                Err(error) if error.is_conflict() && tries < TRIES => tries += 1,
                done => return done.map_err(Unreadable::new),
            }
        }
    }
}

/// The place of a name, from 1, says whose counters they are in a third of the bytes.
const READ: &str = "\
-- catchall: read counters
select place, delivered, bounced
from unnest($1::text[]) with ordinality as asked (domain, place) join domain_counters using (domain)";

/// How old answers may be at most, in seconds: zero on a primary, and on a replica that receives and has nothing
/// left to replay; else the time since the last transaction that was replayed, which on an idle primary is longer
/// than anything is missing. Whether the replica is connected to its primary. Whether the session can only read.
const LOOK: &str = "\
-- catchall: look at the replica
select
    case when not standby or (receiving and pg_last_wal_receive_lsn() = pg_last_wal_replay_lsn()) then 0
        else extract(epoch from now() - coalesce(pg_last_xact_replay_timestamp(), pg_postmaster_start_time()))
    end::float8 as lag_seconds,
    receiving or not standby as receiving,
    current_setting('transaction_read_only')::bool as read_only
from (select pg_is_in_recovery() as standby,
    -- Of this view everybody may see the pid, and nothing else.
    exists (select from pg_stat_wal_receiver where pid is not null) as receiving) as state";
