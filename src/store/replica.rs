//! The Postgres replica: reads what is known about domains, over connections that cannot write.

mod row;
mod look_up;
mod pages;
mod totals;
mod feed;
mod standing;

use std::mem;
use std::time::Duration;

use super::postgres::{Database, DatabaseError, PostgresUrl};
use super::{DomainSource, Page, PageRequest, Portion, Standing, Unreadable};
use crate::classified::Classified;
use crate::domain_name::DomainName;
use crate::health::Dependency;
use crate::position::{Place, Position};
use crate::totals::Totals;

/// A session with these settings cannot write, whatever server the URL leads to. The server cancels a read
/// after 2 s, when no client waits for it any more.
const SESSION: [(&str, &str); 2] = [("default_transaction_read_only", "on"), ("statement_timeout", "2s")];

/// Pages are read by plans that know their limits: a plan for any limit would sort all domains first.
const PAGES: [(&str, &str); 1] = [("plan_cache_mode", "force_custom_plan")];

/// How often to try a read. The replica cancels a read that blocks replay; the next try begins after that
/// replay. A read fails if its connection had ended; the next try has a new one.
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
    /// The variable of the URL, and what strangers on the network path to the replica can do.
    #[must_use]
    pub fn exposure(&self) -> (&'static str, Option<&'static str>) {
        ("CATCHALL_REPLICA_URL", self.replica_url.exposure())
    }
}

/// A replica.
#[derive(Clone, Debug)]
pub struct Replica {
    /// For look-ups by name.
    names: Database,
    /// For all other reads, so that they never delay a look-up.
    pages: Database,
}

impl Replica {
    /// A replica that is connected to on first use. It looks up names over at most this many connections, and
    /// uses as many for everything else.
    #[must_use]
    pub fn new(config: &ReplicaConfig, connections: u32) -> Self {
        let url = &config.replica_url;
        let pages: Vec<_> = SESSION.into_iter().chain(PAGES).collect();
        Self {
            names: Database::new(url, "catchall-query", connections, &SESSION),
            pages: Database::new(url, "catchall-query pages", connections, &pages),
        }
    }

    /// Fails unless the replica is available with its schema.
    ///
    /// # Errors
    ///
    /// What is wrong.
    pub async fn check(&self) -> Result<(), Unreadable> {
        self.pages.check().await.map_err(Unreadable::new)
    }

    /// Keeps `replica` and the metrics of its lag up to date for as long as it is polled. A replica that
    /// falls behind stays up: an old response is better than none, and the metrics and the log report the
    /// lag. They also report if look-ups use a `threshold` that is not the one of the database.
    pub async fn watch(&self, replica: Dependency, threshold: Option<u64>) {
        let lag = metrics::gauge!("catchall_replica_lag_seconds");
        let receiving = metrics::gauge!("catchall_replica_receiving");
        let (mut behind, mut other) = (false, None);
        self.names
            .watch(replica, async |connection| {
                let (lag_seconds, receives, read_only, noted) =
                    sqlx::query_as::<_, standing::Look>(standing::LOOK).fetch_one(connection).await?;
                tell_difference(threshold, noted.unsigned_abs(), &mut other);
                lag.set(lag_seconds);
                receiving.set(f64::from(u8::from(receives)));
                let is_behind = lag_seconds > STALE.as_secs_f64();
                if is_behind != mem::replace(&mut behind, is_behind) {
                    match (is_behind, receives) {
                        (false, _) => tracing::info!("the replica has caught up"),
                        (true, true) => tracing::warn!(
                            lag_seconds,
                            "the replica is {lag_seconds:.0} s behind: answers are that old"
                        ),
                        (true, false) => tracing::warn!(
                            lag_seconds,
                            "the replica is not connected to its primary: answers may be {lag_seconds:.0} s \
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

impl DomainSource for Replica {
    const IS_COPY: bool = true;
    const FINISHES_READS: bool = true;

    async fn look_up(&self, names: &[DomainName]) -> Result<Vec<Classified>, Unreadable> {
        again(|| look_up::read(&self.names, names)).await
    }

    async fn list(&self, page: PageRequest) -> Result<Page, Unreadable> {
        let page = &page;
        again(|| pages::read(&self.pages, page)).await
    }

    async fn totals(&self, minutes: u32) -> Result<Totals, Unreadable> {
        again(|| totals::read(&self.pages, minutes)).await
    }

    async fn changes(&self, after: Place, limit: u32) -> Result<Portion, Unreadable> {
        let after = &after;
        again(|| feed::read(&self.pages, after, limit)).await
    }

    async fn latest(&self, limit: u32) -> Result<Portion, Unreadable> {
        again(|| feed::latest(&self.pages, limit)).await
    }

    async fn standing(&self) -> Result<Standing, Unreadable> {
        again(|| standing::read(&self.pages)).await
    }

    async fn head(&self) -> Result<Position, Unreadable> {
        again(|| feed::head(&self.pages)).await
    }

    async fn last_change(&self) -> Result<Position, Unreadable> {
        again(|| feed::last_change(&self.pages)).await
    }
}

/// Logs each threshold of the database that look-ups do not use, once.
fn tell_difference(threshold: Option<u64>, noted: u64, told: &mut Option<u64>) {
    let Some(threshold) = threshold.filter(|threshold| *threshold != noted) else {
        *told = None;
        return;
    };
    if told.replace(noted) != Some(noted) {
        tracing::warn!(
            threshold,
            noted,
            "look-ups use CATCHALL_THRESHOLD, {threshold}, and everything else uses the threshold of the \
             database, {noted}"
        );
    }
}

/// Reads again at once if the next attempt can succeed.
async fn again<T, F>(read: impl Fn() -> F) -> Result<T, Unreadable>
where
    F: Future<Output = Result<T, DatabaseError>>,
{
    let mut tries = 1;
    loop {
        match read().await {
            Err(error) if (error.is_conflict() || error.is_lost()) && tries < TRIES => tries += 1,
            done => return done.map_err(Unreadable::new),
        }
    }
}
