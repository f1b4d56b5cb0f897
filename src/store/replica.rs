//! The Postgres replica: counters, read over connections that cannot write.

use std::mem;
use std::time::Duration;

use super::postgres::{Database, DatabaseError, PostgresUrl};
use super::{CounterSource, Unreadable};
use crate::counters::Counters;
use crate::domain_name::DomainName;
use crate::health::Dependency;

/// A session with these settings cannot write, whatever server the URL leads to. The server cancels a read
/// after 2 s, when it is of no more use to anyone.
const SESSION: [(&str, &str); 2] = [("default_transaction_read_only", "on"), ("statement_timeout", "2s")];

/// How long a read may take before its connection is given up. This is longer than the server lets it run.
const READ_TIMEOUT: Duration = Duration::from_secs(5);

/// How often to try a read that the replica cancels because it blocks replay. The next try begins after that
/// replay.
const TRIES: u32 = 3;

/// Responses older than this are reported in the log. A healthy replica is behind by milliseconds.
const STALE: Duration = Duration::from_secs(10);

/// The address of the replica.
#[derive(Clone, Debug, clap::Args)]
#[group(skip)]
pub struct ReplicaConfig {
    /// Postgres replica: postgres://USER:PASSWORD@HOST:PORT/DATABASE. On another machine add
    /// ?sslmode=verify-full&sslrootcert=FILE
    #[arg(long, env = "CATCHALL_REPLICA_URL", value_name = "URL", hide_env_values = true)]
    pub replica_url: PostgresUrl,
}

impl ReplicaConfig {
    /// The variable of the URL, and what strangers can do on the way to the replica.
    #[must_use]
    pub fn exposure(&self) -> (&'static str, Option<&'static str>) {
        ("CATCHALL_REPLICA_URL", self.replica_url.exposure())
    }
}

/// A replica.
#[derive(Clone, Debug)]
pub struct Replica(Database);

impl Replica {
    /// A replica that is connected to on first use, with at most `connections` connections.
    #[must_use]
    pub fn new(config: &ReplicaConfig, connections: u32) -> Self {
        Self(Database::new(&config.replica_url, "catchall-query", connections, &SESSION))
    }

    async fn read(&self, names: &[DomainName]) -> Result<Vec<Counters>, DatabaseError> {
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

    /// Keeps `replica` and the metrics of its lag up to date for as long as it is polled. A replica that
    /// falls behind stays up: an old response is better than none, and the metrics and the log report the
    /// lag.
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
                            "the replica replays {lag_seconds:.0} s late: responses are that old"
                        ),
                        (true, false) => tracing::warn!(
                            lag_seconds,
                            "the replica is not connected to its primary: responses may be {lag_seconds:.0} s \
                             old"
                        ),
                    }
                }
                // A connection pooler in between may not pass on the session's settings.
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

/// Returns the place of a name, counted from 1, instead of the name: a third of the bytes.
const READ: &str = "\
-- catchall: read counters
select place, delivered, bounced
from unnest($1::text[]) with ordinality as asked (domain, place) join domain_counters using (domain)";

/// `lag_seconds` is how old responses may be at most. It is zero on a primary, and on a replica that is
/// connected and has replayed all it received. Otherwise it is the time since the last replayed transaction,
/// which overstates the lag if the primary is idle. `receiving` says whether the replica is connected to its
/// primary, `read_only` whether the session can only read.
const LOOK: &str = "\
-- catchall: look at the replica
select
    case when not standby or (receiving and pg_last_wal_receive_lsn() = pg_last_wal_replay_lsn()) then 0
        else extract(epoch from now() - coalesce(pg_last_xact_replay_timestamp(), pg_postmaster_start_time()))
    end::float8 as lag_seconds,
    receiving or not standby as receiving,
    current_setting('transaction_read_only')::bool as read_only
from (select pg_is_in_recovery() as standby,
    -- Everybody may see the pid in this view, and no other column.
    exists (select from pg_stat_wal_receiver where pid is not null) as receiving) as state";
