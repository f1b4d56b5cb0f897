//! Postgres: what the ledger on the primary and the replica have in common.

use std::error::Error;
use std::fmt;
use std::io::ErrorKind;
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions, PgSslMode};
use sqlx::{ConnectOptions, Connection, PgConnection, PgPool};
use tokio::sync::{Semaphore, watch};

use super::schema;
use crate::cause::Cause;
use crate::health::Dependency;
use crate::network::{is_local, tls_fault};

/// How long a query waits for a connection of the pool. The pool's default is 30 s. After two seconds it is
/// better to refuse the query, while the client still listens.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(2);

/// Work on one pool that may be under way or wait for a connection. Work goes on when its caller has gone, so
/// clients that come and go would pile it up.
const MAX_WORK: usize = 1000;

/// How often a database is checked: often enough to report readiness promptly, rarely enough to cost nothing.
pub(crate) const WATCH_INTERVAL: Duration = Duration::from_secs(1);

/// SQLSTATE classes of an invalid value and of a violated constraint. All other errors concern the server,
/// the session or the statement, and may not occur again.
const REFUSALS: [&str; 2] = ["22", "23"];

/// SQLSTATE class of a transaction that was rolled back in favour of others.
const CONFLICT: &str = "40";

/// SQLSTATE of a statement that the server cancelled because it took too long (or that an operator
/// cancelled).
const CANCELLED: &str = "57014";

/// How the operating system reports that a connection has ended.
const BROKEN: [ErrorKind; 4] = [
    ErrorKind::BrokenPipe,
    ErrorKind::ConnectionAborted,
    ErrorKind::ConnectionReset,
    ErrorKind::UnexpectedEof,
];

/// SQLSTATEs of a session that the server ended: by an administrator, after a crash, or idle for too long.
const ENDED: [&str; 3] = ["57P01", "57P02", "57P05"];

/// A Postgres URL. It prints without user and password.
#[derive(Clone)]
pub struct PostgresUrl(PgConnectOptions);

impl FromStr for PostgresUrl {
    type Err = String;

    fn from_str(url: &str) -> Result<Self, Self::Err> {
        const EXAMPLE: &str = "not a Postgres URL, as in postgres://user:password@host:5432/database";
        if !url.starts_with("postgres://") && !url.starts_with("postgresql://") {
            return Err(EXAMPLE.into());
        }
        // The parser's own error is not repeated: it can contain parts of the URL, and so of the password.
        let mut options = url.parse::<PgConnectOptions>().map_err(|_| EXAMPLE)?;
        // TLS protects nothing on a connection to this machine itself, and costs time: sqlx 0.9.0 sends it in
        // pieces without TCP_NODELAY, so a statement of more than 16 KiB waits 40 ms for an acknowledgement.
        let names_a_mode = url.contains("sslmode=") || url.contains("ssl-mode=");
        let may_be_plain = matches!(options.get_ssl_mode(), PgSslMode::Prefer) && !names_a_mode;
        if may_be_plain && is_local(options.get_host()) {
            options = options.ssl_mode(PgSslMode::Disable);
        }
        // Callers log failed statements, and slow ones show in the server's log.
        Ok(Self(options.disable_statement_logging()))
    }
}

impl PostgresUrl {
    /// What strangers on the network path can do, and how to prevent it.
    #[must_use]
    pub fn exposure(&self) -> Option<&'static str> {
        let local = self.0.get_socket().is_some() || is_local(self.0.get_host());
        let verified = matches!(self.0.get_ssl_mode(), PgSslMode::VerifyFull);
        (!local && !verified).then_some(
            "anyone on the network path can pose as the database: add ?sslmode=verify-full&sslrootcert=FILE",
        )
    }

    /// Opens one connection, under this name.
    pub(super) async fn connect(&self, application: &str) -> Result<PgConnection, DatabaseError> {
        let options = self.0.clone().application_name(application);
        PgConnection::connect_with(&options).await.map_err(|error| DatabaseError::of(self, error))
    }
}

impl fmt::Display for PostgresUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let database = self.0.get_database().unwrap_or_default();
        write!(f, "postgres://{}:{}/{database}", self.0.get_host(), self.0.get_port())
    }
}

impl fmt::Debug for PostgresUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A database that could not do what was asked. Nothing was done, or (if the response to a commit was lost)
/// it is unknown whether it was. Trying again is right either way.
#[derive(Debug, thiserror::Error)]
#[error("{url}: {reason}")]
pub struct DatabaseError {
    url: String,
    reason: String,
    kind: Kind,
    source: Option<Cause>,
}

/// The kinds of errors that callers distinguish.
#[derive(Debug)]
enum Kind {
    /// The database reported this SQLSTATE.
    Reported(String),
    /// The connection had ended, or ended meanwhile.
    Lost,
    /// The database did not answer in time.
    GivenUp,
    Other,
}

impl Kind {
    fn of(error: &sqlx::Error) -> Self {
        match error {
            sqlx::Error::Io(error) if BROKEN.contains(&error.kind()) => Self::Lost,
            // Another caller has replaced the pool.
            sqlx::Error::PoolClosed => Self::Lost,
            error => match error.as_database_error().and_then(sqlx::error::DatabaseError::code) {
                Some(code) if ENDED.contains(&code.as_ref()) => Self::Lost,
                Some(code) => Self::Reported(code.into_owned()),
                None => Self::Other,
            },
        }
    }
}

impl DatabaseError {
    /// An error of the driver about the database at `url`.
    fn of(url: &PostgresUrl, error: sqlx::Error) -> Self {
        let (reason, kind) = (describe(&error), Kind::of(&error));
        Self { url: url.to_string(), reason, kind, source: Some(Cause::new(error)) }
    }

    /// Any other error of work at `url`.
    fn other(url: &PostgresUrl, error: impl Error + Send + Sync + 'static) -> Self {
        let reason = error.to_string();
        Self { url: url.to_string(), reason, kind: Kind::Other, source: Some(Cause::new(error)) }
    }

    fn given_up(url: &PostgresUrl, timeout: Duration) -> Self {
        let reason = format!("no answer within {timeout:?}");
        Self { url: url.to_string(), reason, kind: Kind::GivenUp, source: None }
    }

    /// Whether the database refuses the data itself, and would refuse the same data again.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        REFUSALS.iter().any(|class| self.is_of(class))
    }

    /// Whether the transaction was cancelled because of concurrent work, as a replica cancels a read that
    /// blocks its replay. A new try does not meet the same work.
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        self.is_of(CONFLICT)
    }

    /// Whether a statement took too long. A smaller one may succeed.
    #[must_use]
    pub fn is_timeout(&self) -> bool {
        matches!(self.kind, Kind::GivenUp) || self.is_of(CANCELLED)
    }

    /// Whether the connection had ended, as all have after a restart of the server. The next try is made over
    /// a new one.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        matches!(self.kind, Kind::Lost)
    }

    fn is_of(&self, class: &str) -> bool {
        matches!(&self.kind, Kind::Reported(code) if code.starts_with(class))
    }
}

/// There is no room for more work on a pool.
#[derive(Debug, thiserror::Error)]
#[error("too many queries wait for a connection")]
struct TooMuchWork;

fn pool(url: &PostgresUrl, connections: u32) -> PgPool {
    PgPoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        // Testing costs a round trip per use, which is more than the query costs. A dead connection fails its
        // query, and failed queries are tried again.
        .test_before_acquire(false)
        .connect_lazy_with(url.0.clone())
}

/// Brings the schema up to date. It may be run repeatedly and concurrently: a lock in the database makes one
/// run wait for the other, and the second finds nothing left to do.
///
/// # Errors
///
/// When the database is unavailable, or an applied migration differs from the one in this build.
pub async fn migrate(url: &PostgresUrl) -> Result<(), DatabaseError> {
    let mut connection = url.connect("catchall-migrate").await?;
    schema::migrate(&mut connection).await.map_err(|error| DatabaseError::other(url, error))?;
    connection.close().await.map_err(|error| DatabaseError::of(url, error))
}

/// Where work reports that one of its statements is done.
#[derive(Debug)]
pub(crate) struct Steps(watch::Sender<()>);

impl Steps {
    /// Reports that one more statement is done.
    pub(crate) fn done(&self) {
        self.0.send_replace(());
    }
}

/// A pool of connections to one database, opened when first needed. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Database {
    url: PostgresUrl,
    connections: u32,
    pool: Arc<Mutex<PgPool>>,
    work: Arc<Semaphore>,
}

impl Database {
    /// `session` holds settings of each connection, such as the timeouts by which the server bounds a
    /// statement.
    pub(crate) fn new(url: &PostgresUrl, name: &str, connections: u32, session: &[(&str, &str)]) -> Self {
        let url = PostgresUrl(url.0.clone().application_name(name).options(session.iter().copied()));
        let pool = Arc::new(Mutex::new(pool(&url, connections)));
        Self { url, connections, pool, work: Arc::new(Semaphore::new(MAX_WORK)) }
    }

    /// Runs `work` on the pool, in a task of its own that goes on to its end even when the caller is dropped.
    /// If sqlx is cancelled inside `begin`, it can leave a connection in a transaction, where later writes
    /// report success and vanish (sqlx #4393).
    ///
    /// If work takes longer than `timeout`, its peer has vanished silently. It is given up together with the
    /// whole pool, so that no connection in a doubtful state is used again.
    pub(crate) async fn run<W, F, T>(&self, timeout: Duration, work: W) -> Result<T, DatabaseError>
    where
        W: FnOnce(PgPool) -> F,
        F: Future<Output = Result<T, sqlx::Error>> + Send + 'static,
        T: Send + 'static,
    {
        self.run_steps(timeout, |pool, _| work(pool)).await
    }

    /// The same for work of several statements: each of its steps may take as long as `timeout`.
    pub(crate) async fn run_steps<W, F, T>(&self, timeout: Duration, work: W) -> Result<T, DatabaseError>
    where
        W: FnOnce(PgPool, Steps) -> F,
        F: Future<Output = Result<T, sqlx::Error>> + Send + 'static,
        T: Send + 'static,
    {
        let Ok(permit) = Arc::clone(&self.work).try_acquire_owned() else {
            return Err(DatabaseError::other(&self.url, TooMuchWork));
        };
        let used = self.current().clone();
        let (steps, mut stepped) = watch::channel(());
        let work = work(used.clone(), Steps(steps));
        let mut task = tokio::spawn(work.inspect(move |_| drop(permit)));
        let ended = loop {
            tokio::select! {
                ended = &mut task => break Some(ended),
                // Once the work has dropped its `Steps`, the rest of it has to end within one timeout.
                Ok(()) = stepped.changed() => {}
                () = tokio::time::sleep(timeout) => break None,
            }
        };
        match ended {
            Some(Ok(Ok(done))) => Ok(done),
            Some(Ok(Err(error))) => {
                // A session keeps the settings it was opened with, so a misconfigured one is useless. If one
                // connection has ended, the others usually have too.
                if is_misconfigured(&error) || matches!(Kind::of(&error), Kind::Lost) {
                    self.replace(&used);
                }
                Err(DatabaseError::of(&self.url, error))
            }
            Some(Err(panicked)) => Err(DatabaseError::other(&self.url, panicked)),
            None => {
                self.replace(&used);
                task.abort();
                Err(DatabaseError::given_up(&self.url, timeout))
            }
        }
    }

    /// Replaces the pool that was used by a new one, unless another caller has done so.
    fn replace(&self, used: &PgPool) {
        // Marks the pool closed at once: connections that are returned to it later are closed too.
        drop(used.close());
        let mut current = self.current();
        if current.is_closed() {
            *current = pool(&self.url, self.connections);
        }
    }

    fn current(&self) -> MutexGuard<'_, PgPool> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps `dependency` up to date for as long as the process runs. It uses a separate connection, which
    /// can name the real reason when the pool would only report a timeout. Each new connection checks the
    /// schema, because the database may be another one after an outage. `look` is called once a second.
    pub(crate) async fn watch<L>(&self, dependency: Dependency, mut look: L)
    where
        L: AsyncFnMut(&mut PgConnection) -> Result<(), sqlx::Error>,
    {
        loop {
            let error = match self.connect().await {
                Ok(mut connection) => loop {
                    match within(&self.url, look(&mut connection)).await {
                        Ok(()) => dependency.up(),
                        Err(error) => break error,
                    }
                    tokio::time::sleep(WATCH_INTERVAL).await;
                },
                Err(error) => error,
            };
            dependency.down(error);
            tokio::time::sleep(WATCH_INTERVAL).await;
        }
    }

    /// Fails unless the database is available with its schema.
    pub(crate) async fn check(&self) -> Result<(), DatabaseError> {
        self.connect().await.map(drop)
    }

    /// Waits until the database is available with its schema.
    pub(crate) async fn ready(&self) {
        while self.connect().await.is_err() {
            tokio::time::sleep(WATCH_INTERVAL).await;
        }
    }

    async fn connect(&self) -> Result<PgConnection, DatabaseError> {
        let mut connection = within(&self.url, PgConnection::connect_with(&self.url.0)).await?;
        within(&self.url, schema::check(&mut connection)).await?;
        Ok(connection)
    }
}

/// A look at the database, with a time limit. Cancelling it is safe because nothing else uses its connection,
/// which is dropped with it.
async fn within<T>(
    url: &PostgresUrl,
    work: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, DatabaseError> {
    match tokio::time::timeout(ACQUIRE_TIMEOUT, work).await {
        Ok(done) => done.map_err(|error| DatabaseError::of(url, error)),
        Err(_) => Err(DatabaseError::given_up(url, ACQUIRE_TIMEOUT)),
    }
}

/// The error of work that finds its session misconfigured. A later session may be right.
pub(crate) fn misconfigured(reason: &'static str) -> sqlx::Error {
    sqlx::Error::Configuration(reason.into())
}

fn is_misconfigured(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::Configuration(_))
}

/// Describes an error in words an operator can act on, or else in the driver's own words.
fn describe(error: &sqlx::Error) -> String {
    match error {
        sqlx::Error::Database(error) => error.message().into(),
        sqlx::Error::Io(error) if error.kind() == ErrorKind::ConnectionRefused => "connection refused".into(),
        error if let Some(fault) = tls_fault(error) => fault,
        sqlx::Error::PoolTimedOut => "no connection was available in time".into(),
        sqlx::Error::Configuration(reason) => reason.to_string(),
        error => error.to_string(),
    }
}

#[cfg(test)]
mod tests;
