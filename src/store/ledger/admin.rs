//! The ledger as operators maintain it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sqlx::PgPool;
use uuid::Uuid;

use super::apply::check_durability;
use super::{audit, import, reclassify, reset};
use crate::domain_name::DomainName;
use crate::process::ExitError;
use crate::store::maintenance::{
    AuditEntry, HistoryFile, ImportPosition, ImportStep, Maintenance, ResetDomain, Signature, Walk, Walked,
    taken_over,
};
use crate::store::postgres::{Database, DatabaseError, PostgresUrl, Steps};

/// How long the primary works on one statement, and how long to wait for it. If a tool is suspended in the
/// middle of a transaction, its locks are released after 10 s, like those of workers.
const SESSION: [(&str, &str); 4] = [
    ("statement_timeout", "60s"),
    ("lock_timeout", "30s"),
    ("idle_in_transaction_session_timeout", "10s"),
    // Plans that know the ranges of their steps: one for any range could read all domains.
    ("plan_cache_mode", "force_custom_plan"),
];
const TIMEOUT: Duration = Duration::from_secs(90);

/// How often to try a transaction that the primary rolls back in favour of others.
const TRIES: u32 = 10;

/// The ledger on a primary, for its owner.
#[derive(Debug)]
pub struct LedgerAdmin {
    database: Database,
    /// Its part of the totals.
    writer: Uuid,
    /// What the last step of a reclassification did.
    walked: Walked,
}

impl LedgerAdmin {
    /// Connects to a primary.
    ///
    /// # Errors
    ///
    /// When it is unavailable, or has another schema than this build needs, or does not keep what it commits.
    pub async fn open(url: &PostgresUrl) -> Result<Self, ExitError> {
        let database = Database::new(url, "catchall-admin", 1, &SESSION);
        database.check().await.map_err(failed)?;
        database.run(TIMEOUT, check_durability).await.map_err(failed)?;
        Ok(Self { database, writer: Uuid::now_v7(), walked: Walked::default() })
    }

    /// Runs a transaction, again if it was rolled back in favour of others.
    async fn run<F, T>(&self, work: impl Fn(PgPool, Steps) -> F) -> Result<T, ExitError>
    where
        F: Future<Output = Result<T, sqlx::Error>> + Send + 'static,
        T: Send + 'static,
    {
        let mut tries = 1;
        loop {
            match self.database.run_steps(TIMEOUT, &work).await {
                Err(error) if error.is_conflict() && tries < TRIES => tries += 1,
                done => return done.map_err(failed),
            }
        }
    }
}

/// The answer may have been lost after everything was done. Each command can be run again, and then reports
/// what it finds.
fn failed(error: DatabaseError) -> ExitError {
    ExitError::of(1, error)
}

impl Maintenance for LedgerAdmin {
    const IMPORT_ROWS: usize = 10_000;

    async fn domains(&mut self) -> Result<u64, ExitError> {
        let read = async |pool: PgPool, _| {
            let domains: i64 = sqlx::query_scalar(
                "-- catchall: count the domains
                select coalesce(sum(domains), 0)::bigint from totals",
            )
            .fetch_one(&pool)
            .await?;
            Ok(u64::try_from(domains).unwrap_or(0))
        };
        self.run(read).await
    }

    async fn reset(
        &mut self,
        domain: &DomainName,
        signature: &Signature,
    ) -> Result<Option<ResetDomain>, ExitError> {
        let writer = self.writer;
        self.run(|pool, _| {
            let (domain, signature) = (domain.to_string(), signature.clone());
            async move { reset::reset(&pool, writer, &domain, &signature).await }
        })
        .await
    }

    async fn begin_walk(&mut self, threshold: Option<u64>, signature: &Signature) -> Result<Walk, ExitError> {
        self.run(|pool, _| {
            let signature = signature.clone();
            async move { reclassify::begin_walk(&pool, threshold, &signature).await }
        })
        .await
    }

    async fn settle(&mut self) -> Result<(), ExitError> {
        let next = self.run(async |pool, _| reclassify::next_transaction(&pool).await).await?;
        while !self.run(move |pool, _| async move { reclassify::have_ended(&pool, next).await }).await? {
            tokio::time::sleep(reclassify::SETTLE_INTERVAL).await;
        }
        Ok(())
    }

    async fn walk(&mut self, walk: &Walk) -> Result<Walked, ExitError> {
        let (writer, walk, look) = (self.writer, *walk, reclassify::look(self.walked));
        let step = move |pool: PgPool, steps: Steps| async move {
            reclassify::step(&pool, &steps, writer, walk, look).await
        };
        let begun = Instant::now();
        self.walked = self.run(step).await?.ok_or_else(taken_over)?;
        // Workers and the replica catch up meanwhile.
        tokio::time::sleep(begun.elapsed()).await;
        Ok(self.walked)
    }

    async fn begin_import(
        &mut self,
        file: &HistoryFile,
        signature: &Signature,
    ) -> Result<ImportPosition, ExitError> {
        self.run(|pool, _| {
            let (file, signature) = (file.clone(), signature.clone());
            async move { import::begin_import(&pool, &file, &signature).await }
        })
        .await
    }

    async fn import(&mut self, file: &HistoryFile, step: ImportStep) -> Result<ImportPosition, ExitError> {
        let (writer, digest, step) = (self.writer, file.digest, Arc::new(step));
        self.run(|pool, steps| {
            let step = Arc::clone(&step);
            async move { import::import(&pool, &steps, writer, &digest, &step).await }
        })
        .await
    }

    async fn audit(&mut self, limit: u32) -> Result<Vec<AuditEntry>, ExitError> {
        self.run(move |pool, _| async move { audit::read(&pool, limit).await }).await
    }
}
