//! The maintenance of the data file by operators, even while it is served.
//!
//! The serving process waits for its turn as this one does: each transaction is short, and after each of a
//! series this process leaves the file alone for as long as the transaction took.

use std::path::PathBuf;
use std::time::Duration;

use sqlx::sqlite::SqliteConnection;
use tokio::time::{Instant, sleep};

use super::data_error::{DataError, is_busy};
use super::data_file::{DataConfig, connect_prepared};
use super::export::{self, MoveState};
use super::{audit, import, reclassify, reset};
use crate::domain_name::DomainName;
use crate::process::ExitError;
use crate::store::maintenance::{
    AuditEntry, HistoryFile, ImportPosition, ImportStep, Maintenance, ResetDomain, Signature, Walk, Walked,
    taken_over,
};

/// How long to wait for a turn. A writer that never rests leaves moments in which SQLite has to be asked.
const LOCK_TIMEOUT: Duration = Duration::from_secs(30);

/// The shortest pause after a step: long enough for a process that waits for SQLite's lock to get its turn.
pub(super) const REST: Duration = Duration::from_millis(25);

/// A data file, for its owner. Another process may serve it meanwhile.
#[derive(Debug)]
pub struct FileAdmin {
    path: PathBuf,
    connection: SqliteConnection,
}

impl FileAdmin {
    /// Opens a data file that exists. Its schema is brought up to date, unless another process has the file.
    ///
    /// # Errors
    ///
    /// When the file cannot be used.
    pub async fn open(config: &DataConfig) -> Result<Self, ExitError> {
        let (path, connection) = connect_prepared(config).await?;
        Ok(Self { path, connection })
    }

    /// Runs a transaction. A file that is being moved, or was moved, is left unchanged: later changes would
    /// be missing at its destination.
    async fn transaction<T>(
        &mut self,
        work: impl AsyncFnOnce(&mut SqliteConnection) -> Result<T, sqlx::Error>,
    ) -> Result<T, DataError> {
        let connection = &mut self.connection;
        let failed = |error: sqlx::Error| DataError::of_sqlite(&self.path, error);
        begin(connection).await.map_err(failed)?;
        let done = async {
            let (state, to) = export::state(connection).await?;
            let state = match state {
                MoveState::None | MoveState::Planned => return Ok(Ok(work(connection).await?)),
                MoveState::Begun => "is being moved",
                MoveState::Done => "has been moved",
            };
            Ok(Err(DataError::Moved { path: self.path.clone(), state, to }))
        };
        let end = match done.await {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(error)) => Err(error),
            Err(error) => Err(failed(error)),
        };
        let word = if end.is_ok() { "commit" } else { "rollback" };
        let ended = sqlx::raw_sql(word).execute(connection).await;
        let done = end?;
        ended.map_err(failed)?;
        Ok(done)
    }

    /// The same for one of many.
    async fn step<T>(
        &mut self,
        work: impl AsyncFnOnce(&mut SqliteConnection) -> Result<T, sqlx::Error>,
    ) -> Result<T, DataError> {
        let begun = Instant::now();
        let done = self.transaction(work).await?;
        sleep(begun.elapsed().max(REST)).await;
        Ok(done)
    }
}

async fn begin(connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
    let begun = Instant::now();
    loop {
        match sqlx::raw_sql("begin immediate").execute(&mut *connection).await {
            Err(error) if is_busy(&error) && begun.elapsed() < LOCK_TIMEOUT => {}
            done => return done.map(drop),
        }
    }
}

impl Maintenance for FileAdmin {
    const IMPORT_ROWS: usize = 2_000;

    async fn domains(&mut self) -> Result<u64, ExitError> {
        let domains: Result<i64, _> = sqlx::query_scalar(
            "-- catchall: count the domains
            select coalesce(sum(domains), 0) from totals",
        )
        .fetch_one(&mut self.connection)
        .await;
        let domains = domains.map_err(|error| DataError::of_sqlite(&self.path, error))?;
        Ok(u64::try_from(domains).unwrap_or(0))
    }

    async fn reset(
        &mut self,
        domain: &DomainName,
        signature: &Signature,
    ) -> Result<Option<ResetDomain>, ExitError> {
        let work = async |connection: &mut SqliteConnection| {
            reset::reset(connection, domain.as_str(), signature).await
        };
        Ok(self.transaction(work).await?)
    }

    async fn begin_walk(&mut self, threshold: Option<u64>, signature: &Signature) -> Result<Walk, ExitError> {
        let work = async |connection: &mut SqliteConnection| {
            reclassify::begin_walk(connection, threshold, signature).await
        };
        Ok(self.transaction(work).await?)
    }

    /// There is one transaction at a time, and each reads the threshold.
    async fn settle(&mut self) -> Result<(), ExitError> {
        Ok(())
    }

    async fn walk(&mut self, walk: &Walk) -> Result<Walked, ExitError> {
        let work = async |connection: &mut SqliteConnection| reclassify::step(connection, walk).await;
        self.step(work).await?.ok_or_else(taken_over)
    }

    async fn begin_import(
        &mut self,
        file: &HistoryFile,
        signature: &Signature,
    ) -> Result<ImportPosition, ExitError> {
        let work =
            async |connection: &mut SqliteConnection| import::begin_import(connection, file, signature).await;
        Ok(self.transaction(work).await?)
    }

    async fn import(&mut self, file: &HistoryFile, step: ImportStep) -> Result<ImportPosition, ExitError> {
        let work =
            async |connection: &mut SqliteConnection| import::import(connection, &file.digest, &step).await;
        Ok(self.step(work).await?)
    }

    async fn audit(&mut self, limit: u32) -> Result<Vec<AuditEntry>, ExitError> {
        let read = audit::read(&mut self.connection, limit).await;
        Ok(read.map_err(|error| DataError::of_sqlite(&self.path, error))?)
    }
}
