//! The Postgres replica: counters, read over connections that cannot write.

use std::collections::HashMap;
use std::time::Duration;

use crate::counters::Counters;
use crate::domain_name::DomainName;
use crate::health::Dependency;
use crate::postgres::{Database, Error, Url};

/// A connection of this session cannot write, whatever server the URL leads to, and a read that takes a
/// second is of no more use to anyone.
const SESSION: [(&str, &str); 2] = [("default_transaction_read_only", "on"), ("statement_timeout", "2s")];

/// How long a read may take before its connection is given up: longer than the server lets it run.
const PATIENCE: Duration = Duration::from_secs(5);

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

    /// The counters of those `names` that have had events, by name.
    ///
    /// # Errors
    ///
    /// When the replica is not there, or did not answer in time.
    pub async fn counters(&self, names: &[DomainName]) -> Result<HashMap<String, Counters>, Error> {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let read = async move |pool| sqlx::query_as(READ).bind(names).fetch_all(&pool).await;
        let rows: Vec<(String, i64, i64)> = self.0.run(PATIENCE, read).await?;
        let count = |bigint: i64| u64::try_from(bigint).unwrap_or(0);
        let counters = |delivered, bounced| Counters { delivered: count(delivered), bounced: count(bounced) };
        Ok(rows.into_iter().map(|(name, delivered, bounced)| (name, counters(delivered, bounced))).collect())
    }

    /// Keeps `replica` and the figure of its lag up to date for as long as it is polled.
    pub async fn watch(&self, replica: Dependency) {
        let lag = metrics::gauge!("catchall_replica_lag_seconds");
        self.0
            .watch(replica, async |connection| {
                let (seconds, read_only) =
                    sqlx::query_as::<_, (f64, bool)>(LOOK).fetch_one(connection).await?;
                lag.set(seconds);
                // A pooler on the way may not pass the session's settings on.
                if read_only { Ok(()) } else { Err(sqlx::Error::Protocol("the session can write".into())) }
            })
            .await;
    }
}

const READ: &str = "\
-- catchall: read counters
select domain, delivered, bounced from domain_counters where domain = any($1::text[])";

/// Seconds since the last transaction that was replayed, and zero when there is nothing left to replay (on
/// an idle primary the former grows for ever) or on a primary; and whether the session can only read.
const LOOK: &str = "\
-- catchall: look at the replica
select case when pg_last_wal_receive_lsn() is distinct from pg_last_wal_replay_lsn()
        then coalesce(extract(epoch from now() - pg_last_xact_replay_timestamp()), 0) else 0 end::float8,
    current_setting('transaction_read_only')::bool";
