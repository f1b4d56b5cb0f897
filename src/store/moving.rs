//! A move: the content of a data file is added to the ledger on a Postgres primary.
//!
//! It goes step by step. Each step adds to the ledger and records its progress in `moves`, in one
//! transaction, so a move can be killed at any moment and run again. Before the first step the file is marked
//! as being moved, and it is not served from then on: later counts would be missing in the ledger.

mod steps;

use std::fmt;
use std::path::Path;
use std::time::Duration;

use sqlx::PgPool;
use uuid::Uuid;

use super::ledger;
use super::postgres::{self, Database, DatabaseError, PostgresUrl, Steps};
use super::sqlite::{DataConfig, DataError, FileExport, MoveState, Noted};
use crate::cause::Cause;
use crate::counters::Counters;
use crate::domain_name::DomainName;
use crate::tally::Tally;
use steps::{add_claims, add_records, date_back, find_missing};

/// Rows of one step. It takes some tenths of a second.
const STEP: u32 = 10_000;

/// How long the primary works on one statement, and how long to wait for it.
const STATEMENT_TIMEOUT: &str = "60s";
const TIMEOUT: Duration = Duration::from_secs(90);

/// Why a move could not be done.
#[derive(Debug, thiserror::Error)]
pub enum MoveError {
    /// The file cannot be read or written.
    #[error(transparent)]
    File(#[from] DataError),
    /// The ledger cannot be reached, or does not work. The same move may be run again.
    #[error("{0}. Nothing is lost: run the same command again to continue where it stopped")]
    Ledger(#[source] Cause),
    /// The move of the file has begun, but to another ledger.
    #[error("this file is already being moved to {0}, not to {1}: finish that move first")]
    Elsewhere(String, String),
    /// A copy of the file was moved.
    #[error(
        "{0} has already received the content of a copy of this file: moving it again would count it twice"
    )]
    Copy(String),
    /// The two classify by different thresholds.
    #[error(
        "the threshold of the file is {file} and that of {to} is {ledger}, so the move would silently change \
         statuses: first run `catchall-admin reclassify` on one of them"
    )]
    Threshold {
        /// The file's.
        file: u64,
        /// The ledger's.
        ledger: u64,
        /// Where the ledger is.
        to: String,
    },
    /// The ledger does not contain what the file contained.
    #[error("the ledger differs from the file: {0}")]
    Differs(String),
}

impl From<DatabaseError> for MoveError {
    fn from(error: DatabaseError) -> Self {
        Self::Ledger(Cause::new(error))
    }
}

/// How far the move has come in the ledger.
#[derive(Clone, Debug, Default)]
struct MovePosition {
    claims_through: Option<Uuid>,
    domains_through: String,
}

impl MovePosition {
    fn has_begun(&self) -> bool {
        self.claims_through.is_some() || !self.domains_through.is_empty()
    }
}

/// The sums that were found in the file at the end, and must be in the ledger.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// Claims of events.
    pub claims: u64,
    /// Domains.
    pub domains: u64,
    /// Delivered events.
    pub delivered: u128,
    /// Bounced events.
    pub bounced: u128,
}

impl fmt::Display for Moved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { claims, domains, delivered, bounced } = self;
        write!(
            f,
            "{domains} domains with {delivered} delivered and {bounced} bounced events, {claims} claims"
        )
    }
}

/// A move that has begun.
#[derive(Debug)]
pub struct Move {
    file: FileExport,
    ledger: Database,
    to: String,
    position: MovePosition,
    /// The file had been moved before.
    done: bool,
    found: Moved,
}

impl Move {
    /// Begins or continues a move. The ledger's schema is brought up to date.
    ///
    /// # Errors
    ///
    /// When the file or the ledger cannot be used, or do not belong together.
    pub async fn begin(data: &DataConfig, to: &PostgresUrl) -> Result<Self, MoveError> {
        let mut file = FileExport::open(data).await?;
        postgres::migrate(to).await?;
        let session = [("statement_timeout", STATEMENT_TIMEOUT), ("lock_timeout", "10s")];
        let ledger = Database::new(to, "catchall-move", 1, &session);
        ledger.run(TIMEOUT, ledger::check_durability).await?;
        let (state, before) = file.state().await?;
        let to = to.to_string();
        let noted = note(&ledger, file.id).await?;
        match (state, &noted) {
            (MoveState::None, Some(_)) => return Err(MoveError::Copy(to)),
            (MoveState::Planned, Some((position, _))) if position.has_begun() => {
                return Err(MoveError::Copy(to));
            }
            (MoveState::Begun | MoveState::Done, None) => return Err(MoveError::Elsewhere(before, to)),
            (MoveState::None | MoveState::Planned, _) => {
                let rule = async move |pool: PgPool| ledger::rule(&mut *pool.acquire().await?).await;
                let (of_file, rule) = (file.threshold().await?, ledger.run(TIMEOUT, rule).await?);
                if of_file != rule.threshold {
                    return Err(MoveError::Threshold { file: of_file, ledger: rule.threshold, to });
                }
                file.set_state(MoveState::Planned, &to).await?;
                let id = file.id;
                ledger.run(TIMEOUT, async move |pool| begin(&pool, id).await).await?;
                file.set_state(MoveState::Begun, &to).await?;
            }
            (MoveState::Begun | MoveState::Done, Some(_)) => {}
        }
        let (position, done) = noted.unwrap_or_default();
        Ok(Self { file, ledger, to, position, done, found: Moved::default() })
    }

    /// Whether all of it had been moved before.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.done
    }

    /// Where to.
    #[must_use]
    pub fn to(&self) -> &str {
        &self.to
    }

    /// How many claims and domains the file has.
    ///
    /// # Errors
    ///
    /// When the file cannot be read.
    pub async fn totals(&mut self) -> Result<(u64, u64), MoveError> {
        Ok(self.file.totals().await?)
    }

    /// Copies the list of imported files, so that they count once there too, and the audit log.
    ///
    /// # Errors
    ///
    /// When the file or the ledger cannot be used.
    pub async fn move_records(&mut self) -> Result<(), MoveError> {
        let (id, imports, audit) = (self.file.id, self.file.imports().await?, self.file.audit().await?);
        let add = async move |pool: PgPool| add_records(&pool, id, &imports, &audit).await;
        Ok(self.ledger.run(TIMEOUT, add).await?)
    }

    /// Copies some claims and returns how many; zero when none is left.
    ///
    /// # Errors
    ///
    /// When the file or the ledger cannot be used.
    pub async fn move_claims(&mut self) -> Result<u64, MoveError> {
        loop {
            let claims = self.file.claims_after(self.position.claims_through, STEP).await?;
            let Some((last, _)) = claims.last().copied() else { return Ok(0) };
            let (id, from, count) = (self.file.id, self.position.claims_through, claims.len() as u64);
            let add = async move |pool: PgPool| add_claims(&pool, id, from, claims).await;
            if self.ledger.run(TIMEOUT, add).await? {
                self.position.claims_through = Some(last);
                return Ok(count);
            }
            self.look_again().await?;
        }
    }

    /// Adds the counters of some domains and returns the number of domains; zero when none is left.
    ///
    /// # Errors
    ///
    /// When the file or the ledger cannot be used.
    pub async fn move_counters(&mut self) -> Result<u64, MoveError> {
        loop {
            let rows = self.file.counters_after(&self.position.domains_through, STEP).await?;
            let Some((last, _)) = rows.last().cloned() else { return Ok(0) };
            let (id, from, count) = (self.file.id, self.position.domains_through.clone(), rows.len() as u64);
            let tally = tally(rows, self.file.path())?;
            let noted = self.file.noted_between(&from, &last).await?;
            let add =
                async move |pool: PgPool, steps| add_counters(&pool, &steps, id, &from, &tally, &noted).await;
            if self.ledger.run_steps(TIMEOUT, add).await? {
                self.position.domains_through = last;
                return Ok(count);
            }
            self.look_again().await?;
        }
    }

    /// Reads how far the move has come in the ledger. The last step of a killed move may still end on the
    /// server after that.
    async fn look_again(&mut self) -> Result<(), MoveError> {
        let noted = note(&self.ledger, self.file.id).await?;
        let (position, _) =
            noted.ok_or_else(|| MoveError::Differs("its record of this move is gone".into()))?;
        self.position = position;
        Ok(())
    }

    /// Compares the counters of the domains after `from` with the ledger. Returns the last one that was
    /// compared and how many there were; `None` when none is left.
    ///
    /// # Errors
    ///
    /// When the file or the ledger cannot be read, or the ledger has less than the file.
    pub async fn verify(&mut self, from: &str) -> Result<Option<(String, u64)>, MoveError> {
        let rows = self.file.counters_after(from, STEP).await?;
        let Some((last, _)) = rows.last().cloned() else { return Ok(None) };
        let count = rows.len() as u64;
        self.found.domains += count;
        for (_, counters) in &rows {
            self.found.delivered += u128::from(counters.delivered);
            self.found.bounced += u128::from(counters.bounced);
        }
        let missing = self.ledger.run(TIMEOUT, async move |pool| find_missing(&pool, &rows).await).await?;
        match missing {
            Some(domain) => Err(MoveError::Differs(format!("it has fewer events of {domain}"))),
            None => Ok(Some((last, count))),
        }
    }

    /// Compares the sums that were added to the ledger with those that [`verify`](Self::verify) found in the
    /// file, and ends the move.
    ///
    /// # Errors
    ///
    /// When they differ, or the ledger or the file cannot be written.
    pub async fn finish(mut self) -> Result<Moved, MoveError> {
        self.found.claims = self.file.totals().await?.0;
        let id = self.file.id;
        let added = self.ledger.run(TIMEOUT, async move |pool| added(&pool, id).await).await?;
        if added != self.found {
            return Err(MoveError::Differs(format!("it received {added}, and the file has {}", self.found)));
        }
        self.ledger.run(TIMEOUT, async move |pool| finish(&pool, id).await).await?;
        self.file.set_state(MoveState::Done, &self.to).await?;
        self.file.close().await;
        Ok(added)
    }
}

/// The rows of the file, with their names parsed.
fn tally(rows: Vec<(String, Counters)>, path: &Path) -> Result<Tally, DataError> {
    let parsed = rows.into_iter().map(|(name, counters)| {
        let domain = DomainName::parse(&name).map_err(|_| DataError::invalid_domain(path, &name))?;
        Ok((domain, counters))
    });
    parsed.collect::<Result<Vec<_>, DataError>>().map(|rows| rows.into_iter().collect())
}

/// How far the file with this id has been moved to the ledger, and whether that is finished.
async fn note(ledger: &Database, id: Uuid) -> Result<Option<(MovePosition, bool)>, DatabaseError> {
    let row: Option<(Option<Uuid>, String, bool)> = ledger
        .run(TIMEOUT, async move |pool| {
            sqlx::query_as(
                "-- catchall: find a move
                select claims_through, domains_through, finished_at is not null from moves where file_id = $1",
            )
            .bind(id)
            .fetch_optional(&pool)
            .await
        })
        .await?;
    Ok(row.map(|(claims_through, domains_through, finished)| {
        (MovePosition { claims_through, domains_through }, finished)
    }))
}

async fn begin(pool: &PgPool, id: Uuid) -> Result<(), sqlx::Error> {
    let begin = "-- catchall: begin a move
        insert into moves (file_id) values ($1) on conflict do nothing";
    sqlx::query(begin).bind(id).execute(pool).await.map(drop)
}

/// Adds counters and records the progress. `false`: the ledger is not where the step would begin.
async fn add_counters(
    pool: &PgPool,
    steps: &Steps,
    id: Uuid,
    from: &str,
    tally: &Tally,
    noted: &[Noted],
) -> Result<bool, sqlx::Error> {
    let mut transaction = ledger::begin(pool).await?;
    let (mut delivered, mut bounced) = (0_u128, 0_u128);
    for (_, counters) in tally.iter() {
        delivered += u128::from(counters.delivered);
        bounced += u128::from(counters.bounced);
    }
    let moved = sqlx::query(
        "-- catchall: note how far the counters are moved
        update moves set domains_through = $3, domains = domains + $4,
            delivered = delivered + $5::text::numeric, bounced = bounced + $6::text::numeric
        where file_id = $1 and domains_through = $2 and finished_at is null",
    );
    let moved = moved
        .bind(id)
        .bind(from)
        .bind(tally.iter().last().map(|(domain, _)| domain.as_str()))
        .bind(i64::try_from(tally.len()).unwrap_or(i64::MAX))
        .bind(delivered.to_string())
        .bind(bounced.to_string())
        .execute(&mut *transaction)
        .await?;
    if moved.rows_affected() == 0 {
        return Ok(false);
    }
    let borrowed: Tally<&DomainName> = tally.iter().map(|(domain, counters)| (domain, *counters)).collect();
    let rule = ledger::rule(&mut transaction).await?;
    ledger::count_old(&mut transaction, steps, id, rule, &borrowed).await?;
    date_back(&mut transaction, rule.transaction, noted).await?;
    transaction.commit().await.map(|()| true)
}

/// The sums that were added.
async fn added(pool: &PgPool, id: Uuid) -> Result<Moved, sqlx::Error> {
    let (claims, domains, delivered, bounced): (i64, i64, String, String) = sqlx::query_as(
        "-- catchall: look at what was moved
        select claims, domains, delivered::text, bounced::text from moves where file_id = $1",
    )
    .bind(id)
    .fetch_one(pool)
    .await?;
    let number =
        |text: String| text.parse().map_err(|_| sqlx::Error::Protocol("a sum is not a number".into()));
    Ok(Moved {
        claims: claims.unsigned_abs(),
        domains: domains.unsigned_abs(),
        delivered: number(delivered)?,
        bounced: number(bounced)?,
    })
}

async fn finish(pool: &PgPool, id: Uuid) -> Result<(), sqlx::Error> {
    let finish = "-- catchall: end a move
        update moves set finished_at = coalesce(finished_at, now()) where file_id = $1";
    sqlx::query(finish).bind(id).execute(pool).await.map(drop)
}
