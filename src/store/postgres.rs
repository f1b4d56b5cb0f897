//! Postgres: what the ledger on the primary and the replica have in common.

use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{ConnectOptions, Connection, PgConnection, PgPool};
use tokio::sync::watch;

use super::schema;
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

impl Url {
    /// Opens one connection, under this name.
    pub(super) async fn connect(&self, application: &str) -> Result<PgConnection, Error> {
        let options = self.0.clone().application_name(application);
        PgConnection::connect_with(&options).await.map_err(|error| Error::new(self, describe(&error)))
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
    /// What could not be done at `url`, where the database did not say why.
    pub(super) fn new(url: &Url, reason: String) -> Self {
        Self { url: url.to_string(), reason, code: None, given_up: false }
    }

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
    /// Work that takes longer than `timeout` has lost its peer without a word. It is given up together with
    /// the whole pool, so that no connection of doubtful state is used again.
    pub(crate) async fn run<W, F, T>(&self, timeout: Duration, work: W) -> Result<T, Error>
    where
        W: FnOnce(PgPool) -> F,
        F: Future<Output = Result<T, sqlx::Error>> + Send + 'static,
        T: Send + 'static,
    {
        self.run_steps(timeout, |pool, _| work(pool)).await
    }

    /// The same for work of several statements: each of its steps may take as long as `timeout`.
    pub(crate) async fn run_steps<W, F, T>(&self, timeout: Duration, work: W) -> Result<T, Error>
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
                // When the work has dropped its end, what is left of it has to end within one timeout.
                Ok(()) = stepped.changed() => {}
                () = tokio::time::sleep(timeout) => break None,
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
                (format!("no answer within {timeout:?}"), None, true)
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
        within(schema::check(&mut connection)).await?;
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
pub(super) fn describe(error: &sqlx::Error) -> String {
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
}
