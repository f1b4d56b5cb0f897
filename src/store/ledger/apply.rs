//! Counting: claims and counters in one transaction.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use super::apply_request::{ApplyError, ApplyRequest};
use super::claims;
use super::clock::{Clock, Moment};
use super::count::{begin, count};
use super::durability::Settings;
use super::statuses::Rule;
use super::totals;
use crate::counters::Counters;
use crate::event::Event;
use crate::health::Dependency;
use crate::idempotency_key::IdempotencyKey;
use crate::store::Applied;
use crate::store::postgres::{Database, DatabaseError, PostgresUrl, Steps, WATCH_INTERVAL, misconfigured};
use crate::tally::Tally;

/// One transaction, one step of upkeep and one of the relay at a time, and a spare connection for when one of
/// them has just died.
const CONNECTIONS: u32 = 4;

/// How long a worker that is suspended inside a transaction (a paused machine) may lock rows that others
/// need, and how long a worker waits for such rows before it gives up and tries again. The server enforces
/// this, like the limit for statements, so that nothing here ever has to be cancelled.
const STANDSTILL: &str = "10s";

/// The address of the ledger.
#[derive(Clone, Debug, clap::Args)]
#[group(skip)]
pub struct Primary {
    /// Postgres primary: postgres://USER:PASSWORD@HOST:PORT/DATABASE. On another machine add
    /// ?sslmode=verify-full&sslrootcert=FILE
    #[arg(long, env = "CATCHALL_DATABASE_URL", value_name = "URL", hide_env_values = true)]
    pub database_url: PostgresUrl,
}

impl Primary {
    /// The variable of the URL, and what strangers on the network path to the primary can do.
    #[must_use]
    pub fn exposure(&self) -> (&'static str, Option<&'static str>) {
        ("CATCHALL_DATABASE_URL", self.database_url.exposure())
    }
}

/// The address of the ledger, and how long it may take.
#[derive(Clone, Debug, clap::Args)]
#[group(skip)]
pub struct LedgerConfig {
    /// The address.
    #[command(flatten)]
    pub primary: Primary,

    /// How long the primary may work on one statement, in seconds, before it cancels it. The delivery batch
    /// is then counted in halves, and the next transactions are smaller. A connection on which the primary is
    /// silent is given up after one and a half times this; until then this worker counts nothing
    #[arg(
        long,
        env = "CATCHALL_STATEMENT_TIMEOUT_SECS",
        value_name = "SECONDS",
        default_value_t = 60,
        value_parser = clap::value_parser!(u32).range(1..=3600)
    )]
    pub statement_timeout_secs: u32,
}

impl LedgerConfig {
    /// How long the primary works on one statement.
    #[must_use]
    pub fn statement_timeout(&self) -> Duration {
        Duration::from_secs(self.statement_timeout_secs.into())
    }
}

/// The ledger on the primary. Clones share its connections.
#[derive(Clone, Debug)]
pub struct Ledger {
    pub(super) database: Database,
    /// How long a statement may take before its connection is given up. This is longer than the server lets
    /// it run, so only a connection whose peer vanished silently is given up.
    pub(super) timeout: Duration,
    clock: Arc<Clock>,
    /// Its part of the totals.
    pub(super) writer: Uuid,
}

impl Ledger {
    /// A ledger that connects on first use. The primary shows its operators the name `application`.
    #[must_use]
    pub fn new(config: &LedgerConfig, application: &str) -> Self {
        let statement = config.statement_timeout();
        let session = [
            ("statement_timeout", &*format!("{}s", statement.as_secs())),
            ("lock_timeout", STANDSTILL),
            ("idle_in_transaction_session_timeout", STANDSTILL),
        ];
        let database = Database::new(&config.primary.database_url, application, CONNECTIONS, &session);
        Self { database, timeout: statement * 3 / 2, clock: Arc::default(), writer: Uuid::now_v7() }
    }

    /// Waits until the primary is available, has the schema this build needs, and keeps what it commits.
    pub async fn ready(&self) {
        loop {
            self.database.ready().await;
            let clock = Arc::clone(&self.clock);
            let look = async move |pool: PgPool| look(&mut *pool.acquire().await?, &clock).await.map(drop);
            // The traces of a clock that was ahead must go before anything is claimed by the present clock.
            if self.database.run(self.timeout, look).await.is_ok() && self.discard_future().await.is_ok() {
                return;
            }
            // The watch reports the reason.
            tokio::time::sleep(WATCH_INTERVAL).await;
        }
    }

    /// Keeps `database` and the [clock](Self::clock) up to date for as long as it is polled.
    pub async fn watch(&self, database: Dependency) {
        let mut warned = None;
        let look = async |connection: &mut PgConnection| {
            let settings = look(connection, &self.clock).await?.settings;
            let warning = settings.warning();
            if warning != warned
                && let Some(warning) = warning
            {
                tracing::warn!("{warning}");
            }
            warned = warning;
            Ok(())
        };
        self.database.watch(database, look).await;
    }

    /// The primary's clock about a second ago, or when the primary was last available. The epoch before it
    /// was first [ready](Self::ready).
    #[must_use]
    pub fn clock(&self) -> Moment {
        self.clock.last()
    }

    /// Waits until the primary's clock is set back. Returns at once if it was set back since the last wait.
    pub async fn clock_set_back(&self) {
        self.clock.set_back().await;
    }

    /// Counts a range of the request's entries. The last range also notes the watermarks. Once this returns,
    /// all of it is durable, and none of it will be counted again under the same ids and keys.
    ///
    /// Claims come first and in the same transaction as what they guard, so a crash at any point leaves both
    /// or neither. Everything is written in key order, so two workers with the same ids or domains may wait
    /// for each other, but never in a circle.
    ///
    /// # Errors
    ///
    /// Nothing was counted, or (`Transient` and `Late`) the response to the commit was lost.
    pub async fn apply(
        &self,
        request: Arc<ApplyRequest>,
        range: Range<usize>,
    ) -> Result<Applied, ApplyError> {
        let clock = Arc::clone(&self.clock);
        let writer = self.writer;
        let work = async move |pool, steps| transaction(&pool, &steps, &clock, writer, &request, range).await;
        match self.database.run_steps(self.timeout, work).await {
            Ok(Some(applied)) => Ok(applied),
            Ok(None) => Err(ApplyError::TooLate),
            Err(error) if error.is_refusal() => Err(ApplyError::Refused(error)),
            Err(error) if error.is_timeout() => Err(ApplyError::Late(error)),
            Err(error) => Err(ApplyError::Transient(error)),
        }
    }

    /// Folds rows of the totals that are not of the last hour into one, so that reading them stays cheap.
    ///
    /// # Errors
    ///
    /// When the database is unavailable.
    pub async fn fold_totals(&self) -> Result<(), DatabaseError> {
        self.database.run(self.timeout, async |pool: PgPool| totals::fold(&pool).await).await
    }
}

/// `None`: it is too late to count the range.
async fn transaction(
    pool: &PgPool,
    steps: &Steps,
    clock: &Clock,
    writer: Uuid,
    request: &ApplyRequest,
    range: Range<usize>,
) -> Result<Option<Applied>, sqlx::Error> {
    let begun = Instant::now();
    let mut transaction = begin(pool).await?;
    let Observed { now, rule, .. } = look_since(begun, &mut transaction, clock).await?;
    steps.done();
    let is_late = |now| request.before.is_some_and(|before| now > before);
    if is_late(now) {
        transaction.rollback().await?;
        return Ok(None);
    }
    if range.end == request.entries.len() && !request.watermark_ids.is_empty() {
        sqlx::query(WATERMARKS_ARRIVED).bind(&request.watermark_ids).execute(&mut *transaction).await?;
        steps.done();
    }
    let entries = &request.entries[range];
    let fresh = claims::claim_messages(&mut transaction, steps, entries).await?;
    let keyed: Vec<&(IdempotencyKey, Event)> = fresh.iter().flat_map(|batch| &batch.keyed).collect();
    let fresh_events = claims::claim_events(&mut transaction, steps, &keyed).await?;
    // Claims may have waited for others. A key whose claim has been pruned meanwhile would count again.
    if is_late(now.after(begun.elapsed())) {
        transaction.rollback().await?;
        return Ok(None);
    }
    let duplicates = entries.len() - fresh.len() + keyed.len() - fresh_events.len();
    let plain = fresh.iter().flat_map(|batch| batch.plain.iter()).map(|(domain, sum)| (domain, *sum));
    let fresh_events = fresh_events.into_iter();
    let keyed = fresh_events.map(|event| (&event.domain, Counters::of(event.outcome, event.count)));
    let tally: Tally<_> = plain.chain(keyed).collect();
    count(&mut transaction, steps, writer, rule, &tally).await?;
    transaction.commit().await?;
    let mut added = Counters::default();
    tally.iter().for_each(|(_, counters)| added += *counters);
    Ok(Some(Applied { duplicates, rows: tally.len(), added }))
}

/// The clock shows the beginning of the transaction, which `claimed_at` gets too. The settings are those of
/// this session. They may be older or newer than a change to its role or its database.
const LOOK: &str = "\
-- catchall: look at the clock, at what a commit means and at the rule
select extract(epoch from now())::float8,
    current_setting('synchronous_commit'), current_setting('fsync'), current_setting('full_page_writes'),
    threshold, coalesce(pg_current_xact_id_if_assigned()::text::bigint, 0)
from classification";

/// What a session sees at one moment.
struct Observed {
    now: Moment,
    settings: Settings,
    rule: Rule,
}

/// Fails if commits of this pool's sessions are not durable.
pub(in crate::store) async fn check_durability(pool: PgPool) -> Result<(), sqlx::Error> {
    look(&mut *pool.acquire().await?, &Clock::default()).await.map(drop)
}

/// Fails if commits of this session are not durable.
async fn look(connection: &mut PgConnection, clock: &Clock) -> Result<Observed, sqlx::Error> {
    look_since(Instant::now(), connection, clock).await
}

/// The same in a transaction that began after `asked`.
async fn look_since(
    asked: Instant,
    connection: &mut PgConnection,
    clock: &Clock,
) -> Result<Observed, sqlx::Error> {
    let (epoch_seconds, synchronous_commit, fsync, full_page_writes, threshold, transaction): (
        _,
        _,
        _,
        _,
        i64,
        _,
    ) = sqlx::query_as(LOOK).fetch_one(connection).await?;
    let settings = Settings { synchronous_commit, fsync, full_page_writes };
    settings.check().map_err(misconfigured)?;
    let rule = Rule { threshold: threshold.unsigned_abs(), transaction };
    Ok(Observed { now: clock.observe(epoch_seconds, asked), settings, rule })
}

const WATERMARKS_ARRIVED: &str = "\
-- catchall: note watermarks that arrived
update watermarks set arrived_at = now() where id = any($1::uuid[]) and arrived_at is null";
