//! Postgres: what the ledger on the primary and the replica have in common.

use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{ConnectOptions, Connection, PgConnection, PgPool, SqlSafeStr};
use tokio::sync::watch;

use crate::health::Dependency;

/// How long a query waits for a connection of the pool. The pool would wait 30 s; what cannot be had in two
/// is better refused while the client still listens.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(2);

/// How often a database is looked at: often enough that readiness is news, seldom enough to cost nothing.
pub(crate) const WATCH_INTERVAL: Duration = Duration::from_secs(1);

/// SQLSTATE's classes of a value that is not valid and of a broken constraint. All others are about the server,
/// the session or the statement, and may be over the next time.
const REFUSALS: [&str; 2] = ["22", "23"];

/// SQLSTATE's class of a transaction that was rolled back in favour of others.
const CONFLICT: &str = "40";

/// SQLSTATE of a statement that took too long for the server (or was cancelled by an operator).
const CANCELLED: &str = "57014";

/// SQLSTATE of a query for a table that is not there.
const UNDEFINED_TABLE: &str = "42P01";

/// The schema this build needs: the files in `migrations/`, in order. They are listed here because the macro
/// that would find them compiles the driver, TLS included, a second time.
static MIGRATIONS: LazyLock<Migrator> = LazyLock::new(|| {
    let migration = |version, description: &'static str, sql: &'static str| {
        Migration::new(version, description.into(), MigrationType::Simple, sql.into_sql_str(), false)
    };
    Migrator::with_migrations(vec![
        migration(1, "ledger", include_str!("../migrations/0001_ledger.sql")),
        migration(2, "retention", include_str!("../migrations/0002_retention.sql")),
        migration(3, "room", include_str!("../migrations/0003_room.sql")),
        migration(4, "watermarks", include_str!("../migrations/0004_watermarks.sql")),
    ])
});

/// A Postgres URL. It prints without user and password.
#[derive(Clone)]
pub struct Url(PgConnectOptions);

impl FromStr for Url {
    type Err = String;

    fn from_str(url: &str) -> Result<Self, Self::Err> {
        const EXAMPLE: &str = "not a Postgres URL, as in postgres://user:password@host:5432/database";
        if !url.starts_with("postgres://") && !url.starts_with("postgresql://") {
            return Err(EXAMPLE.into());
        }
        // The parser's own error is not repeated: it can hold parts of the URL, and so of the password.
        let options = url.parse::<PgConnectOptions>().map_err(|_| EXAMPLE)?;
        // One line per failed statement is the caller's to write; slow ones show in the server's log.
        Ok(Self(options.disable_statement_logging()))
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let database = self.0.get_database().unwrap_or_default();
        write!(f, "postgres://{}:{}/{database}", self.0.get_host(), self.0.get_port())
    }
}

impl fmt::Debug for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A database that could not do what was asked. Nothing of it has happened, or (a commit whose answer was
/// lost) it is not known to have; trying again is right either way.
#[derive(Debug, thiserror::Error)]
#[error("{url}: {reason}")]
pub struct Error {
    url: String,
    reason: String,
    /// SQLSTATE, if the database said what is wrong.
    code: Option<String>,
    /// Whether it said nothing for so long that it was given up.
    given_up: bool,
}

impl Error {
    /// Whether the database refuses the data itself: the same again would be refused again.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        REFUSALS.iter().any(|class| self.is_of(class))
    }

    /// Whether the transaction was cancelled for what others do at the same time, as a replica cancels a read that is
    /// in the way of what it has to replay. The same again has nothing to do with those.
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        self.is_of(CONFLICT)
    }

    /// Whether a statement took too long. A smaller one may not.
    #[must_use]
    pub fn is_timeout(&self) -> bool {
        self.given_up || self.is_of(CANCELLED)
    }

    fn is_of(&self, class: &str) -> bool {
        self.code.as_ref().is_some_and(|code| code.starts_with(class))
    }
}

fn pool(url: &Url, connections: u32) -> PgPool {
    PgPoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        // A round trip per use would cost more than the query; a dead connection fails the query, and what
        // failed is tried again.
        .test_before_acquire(false)
        .connect_lazy_with(url.0.clone())
}

/// Why a database is not the one this build was made for.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum SchemaError {
    #[error("the schema is missing: run catchall-migrate")]
    Missing,
    #[error("the schema is at version {found} and this build needs {needed}: run catchall-migrate")]
    Behind { found: i64, needed: i64 },
    #[error("migration {0} is not the one this build has: the database belongs to another build")]
    Foreign(i64),
}

/// Where work tells that one of its statements is done.
#[derive(Debug)]
pub(crate) struct Steps(watch::Sender<()>);

impl Steps {
    /// One more is.
    pub(crate) fn done(&self) {
        self.0.send_replace(());
    }
}

/// A pool of connections to one database, opened when first needed. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Database {
    url: Url,
    connections: u32,
    pool: Arc<Mutex<PgPool>>,
}

impl Database {
    /// `session` are settings of each connection: what bounds a statement is the server.
    pub(crate) fn new(url: &Url, name: &str, connections: u32, session: &[(&str, &str)]) -> Self {
        let url = Url(url.0.clone().application_name(name).options(session.iter().copied()));
        let pool = Arc::new(Mutex::new(pool(&url, connections)));
        Self { url, connections, pool }
    }

    /// Runs `work` on the pool, in a task of its own that ends whatever becomes of the caller: work of sqlx
    /// that is cancelled in `begin` can leave a connection inside a transaction, where what is written later
    /// reports success and vanishes (sqlx #4393).
    ///
    /// Work that takes longer than `patience` has lost its peer without a word. It is given up together with
    /// the whole pool, so that no connection of doubtful state is used again.
    pub(crate) async fn run<W, F, T>(&self, patience: Duration, work: W) -> Result<T, Error>
    where
        W: FnOnce(PgPool) -> F,
        F: Future<Output = Result<T, sqlx::Error>> + Send + 'static,
        T: Send + 'static,
    {
        self.run_steps(patience, |pool, _| work(pool)).await
    }

    /// The same for work of several statements: each of its steps may take as long as `patience`.
    pub(crate) async fn run_steps<W, F, T>(&self, patience: Duration, work: W) -> Result<T, Error>
    where
        W: FnOnce(PgPool, Steps) -> F,
        F: Future<Output = Result<T, sqlx::Error>> + Send + 'static,
        T: Send + 'static,
    {
        let used = self.current().clone();
        let (steps, mut stepped) = watch::channel(());
        let mut task = tokio::spawn(work(used.clone(), Steps(steps)));
        let ended = loop {
            tokio::select! {
                ended = &mut task => break Some(ended),
                // When the work has dropped its end, what is left of it has to end within one patience.
                Ok(()) = stepped.changed() => {}
                () = tokio::time::sleep(patience) => break None,
            }
        };
        let (reason, code, given_up) = match ended {
            Some(Ok(Ok(done))) => return Ok(done),
            Some(Ok(Err(error))) => {
                if is_misconfigured(&error) {
                    // Sessions stay as they were opened, and this one is of no use.
                    self.replace(&used);
                }
                (describe(&error), code(&error), false)
            }
            Some(Err(panicked)) => (panicked.to_string(), None, false),
            None => {
                self.replace(&used);
                task.abort();
                (format!("no answer within {patience:?}"), None, true)
            }
        };
        Err(Error { url: self.url.to_string(), reason, code, given_up })
    }

    /// Puts a new pool in the place of the one that was used, unless another has done so.
    fn replace(&self, used: &PgPool) {
        // Marks it closed at once: what is given back to it later is closed too.
        drop(used.close());
        let mut current = self.current();
        if current.is_closed() {
            *current = pool(&self.url, self.connections);
        }
    }

    fn current(&self) -> MutexGuard<'_, PgPool> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps `dependency` up to date for as long as the process runs, over a connection of its own, which
    /// can name the real reason where the pool would only say that it timed out. Each new connection checks
    /// the schema, for the database may be another one after it was away; `look` is called once a second.
    pub(crate) async fn watch<L>(&self, dependency: Dependency, mut look: L)
    where
        L: AsyncFnMut(&mut PgConnection) -> Result<(), sqlx::Error>,
    {
        loop {
            let reason = match self.connect().await {
                Ok(mut connection) => loop {
                    match within(look(&mut connection)).await {
                        Ok(()) => dependency.up(),
                        Err(reason) => break reason,
                    }
                    tokio::time::sleep(WATCH_INTERVAL).await;
                },
                Err(reason) => reason,
            };
            dependency.down(format_args!("{}: {reason}", self.url));
            tokio::time::sleep(WATCH_INTERVAL).await;
        }
    }

    /// Waits until the database is there with its schema.
    pub(crate) async fn ready(&self) {
        while self.connect().await.is_err() {
            tokio::time::sleep(WATCH_INTERVAL).await;
        }
    }

    async fn connect(&self) -> Result<PgConnection, String> {
        let mut connection = within(PgConnection::connect_with(&self.url.0)).await?;
        let applied = within(applied_migrations(&mut connection)).await?;
        check_schema(&applied).map_err(|error| error.to_string())?;
        Ok(connection)
    }
}

/// A look at the database, bounded: cancelling it is safe because its connection is nobody else's and is
/// dropped with it.
async fn within<T>(work: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, String> {
    match tokio::time::timeout(ACQUIRE_TIMEOUT, work).await {
        Ok(done) => done.map_err(|error| describe(&error)),
        Err(_) => Err(format!("no answer within {ACQUIRE_TIMEOUT:?}")),
    }
}

/// Brings the schema up to date. Safe to run twice, and at once: a lock in the database makes one wait for
/// the other, which then finds nothing left to do.
///
/// # Errors
///
/// When the database is not there, or a migration that was applied is not the one this build has.
pub async fn migrate(url: &Url) -> Result<(), Error> {
    let failed = |reason: String| Error { url: url.to_string(), reason, code: None, given_up: false };
    let mut connection = PgConnection::connect_with(&url.0.clone().application_name("catchall-migrate"))
        .await
        .map_err(|error| failed(describe(&error)))?;
    MIGRATIONS.run(&mut connection).await.map_err(|error| failed(error.to_string()))?;
    connection.close().await.map_err(|error| failed(describe(&error)))
}

/// The version and the checksum of each migration the database has; none where nothing was ever migrated.
async fn applied_migrations(connection: &mut PgConnection) -> Result<Vec<(i64, Vec<u8>)>, sqlx::Error> {
    let applied =
        sqlx::query_as("select version, checksum from _sqlx_migrations where success order by version")
            .fetch_all(connection)
            .await;
    match applied {
        Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some(UNDEFINED_TABLE) => {
            Ok(Vec::new())
        }
        applied => applied,
    }
}

/// Every migration this build has must be there and be the same. Later ones may be there too: that is how a
/// fleet is upgraded, schema first.
fn check_schema(applied: &[(i64, Vec<u8>)]) -> Result<(), SchemaError> {
    let found = applied.last().ok_or(SchemaError::Missing)?.0;
    let needed = MIGRATIONS.iter().last().map_or(0, |migration| migration.version);
    for migration in MIGRATIONS.iter() {
        match applied.iter().find(|(version, _)| *version == migration.version) {
            None => return Err(SchemaError::Behind { found, needed }),
            Some((version, checksum)) if **checksum != *migration.checksum => {
                return Err(SchemaError::Foreign(*version));
            }
            Some(_) => {}
        }
    }
    Ok(())
}

/// The error of work that finds a session not to be as it has to be: later ones may be.
pub(crate) fn misconfigured(reason: &'static str) -> sqlx::Error {
    sqlx::Error::Configuration(reason.into())
}

fn is_misconfigured(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::Configuration(_))
}

fn code(error: &sqlx::Error) -> Option<String> {
    Some(error.as_database_error()?.code()?.into_owned())
}

/// What went wrong in words an operator can act on; the driver's own where there are no better ones.
fn describe(error: &sqlx::Error) -> String {
    match error {
        sqlx::Error::Database(error) => error.message().into(),
        sqlx::Error::Io(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
            "connection refused".into()
        }
        sqlx::Error::PoolTimedOut => "no connection to be had in time".into(),
        sqlx::Error::Configuration(reason) => reason.to_string(),
        error => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_prints_without_user_and_password() {
        let url: Url = "postgres://alice:s3cret@db:5433/catchall?sslmode=require".parse().unwrap();
        assert_eq!(url.to_string(), "postgres://db:5433/catchall");
        assert_eq!(format!("{url:?}"), "postgres://db:5433/catchall");
        for bad in ["mysql://alice:s3cret@db", "postgres://alice:s3cret@db:x/y", "s3cret"] {
            let error = bad.parse::<Url>().unwrap_err();
            assert!(!error.contains("s3cret"), "{error}");
        }
    }

    #[test]
    fn a_schema_is_good_when_it_has_all_of_this_build_and_perhaps_more() {
        let mut applied: Vec<(i64, Vec<u8>)> =
            MIGRATIONS.iter().map(|migration| (migration.version, migration.checksum.to_vec())).collect();
        let needed = applied.last().unwrap().0;
        assert_eq!(check_schema(&applied), Ok(()));
        applied.push((needed + 1, vec![1]));
        assert_eq!(check_schema(&applied), Ok(()));
        applied[0].1[0] ^= 1;
        assert_eq!(check_schema(&applied), Err(SchemaError::Foreign(1)));
        assert_eq!(check_schema(&applied[1..]), Err(SchemaError::Behind { found: needed + 1, needed }));
        assert_eq!(check_schema(&[]), Err(SchemaError::Missing));
    }
}
