//! Reads what is known about domains from the data file.
//!
//! Each answer comes as one row: each row of an answer would cost as much as several look-ups.

mod row;
mod interruptible;
mod look_up;
mod pages;
mod totals;
mod feed;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use sqlx::AssertSqlSafe;
use sqlx::sqlite::SqliteConnection;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use self::interruptible::Interruptible;
use super::data_error::DataError;
use super::data_file::{DataConfig, Purpose, connect, existing_current};
use crate::classified::Classified;
use crate::domain_name::DomainName;
use crate::position::{Place, Position};
use crate::store::{DomainSource, Page, PageRequest, Portion, Standing, Unreadable};
use crate::totals::Totals;

/// Memory for pages of the file, over all connections that look up counters. The inner pages of ten million
/// domains take 8 MB, and each connection has its own; the rest saves calls of the system.
const CACHE_KIB: usize = 64 * 1024;

/// The least for each of them, where many threads serve. It is also what a connection gets that reads one page
/// of the file after the other.
const LEAST_CACHE_KIB: usize = 2 * 1024;

/// How long a read waits for its turn. The reads before it take some milliseconds each, or tens of them.
const TURN_TIMEOUT: Duration = Duration::from_secs(5);

/// The turn of a read did not come.
#[derive(Debug, thiserror::Error)]
#[error("no connection to the data file was free within {TURN_TIMEOUT:?}")]
struct NoTurn;

/// Reads a data file, over a few connections. A read that begins after an event was accepted sees it.
#[derive(Debug)]
pub struct Reader {
    path: PathBuf,
    look_ups: Connections,
    /// For all other reads.
    pages: Connections,
}

/// Connections of one kind. Each is a thread and has a cache, so there must not be any number of them.
#[derive(Debug)]
struct Connections {
    /// For the cache of each.
    cache_kib: usize,
    turns: Semaphore,
    /// Those that are not in use.
    idle: Mutex<Vec<Interruptible>>,
}

impl Connections {
    fn new(at_once: usize, cache_kib: usize) -> Self {
        Self { cache_kib, turns: Semaphore::new(at_once), idle: Mutex::default() }
    }

    /// Reads over a connection that is idle, or a new one. One that failed is not used again.
    async fn read<T>(
        &self,
        path: &Path,
        read: impl AsyncFnOnce(&mut SqliteConnection) -> Result<T, sqlx::Error>,
    ) -> Result<T, Unreadable> {
        let turn = timeout(TURN_TIMEOUT, self.turns.acquire()).await;
        let _turn = turn.map_err(|_| Unreadable::new(NoTurn))?.map_err(Unreadable::new)?;
        let idle = || self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let waiting = idle().pop();
        let connection = match waiting {
            Some(connection) => connection,
            None => self.connect(path).await?,
        };
        let done = connection.read(read).await;
        let (found, connection) = done.map_err(|error| failed(path, error))?;
        idle().push(connection);
        Ok(found)
    }

    async fn connect(&self, path: &Path) -> Result<Interruptible, Unreadable> {
        let mut connection = connect(path, Purpose::Read).await.map_err(Unreadable::new)?;
        // A pragma takes no parameters.
        let cache = format!("pragma cache_size = -{}", self.cache_kib);
        let set = sqlx::raw_sql(AssertSqlSafe(cache)).execute(&mut connection).await;
        set.map_err(|error| failed(path, error))?;
        Interruptible::new(connection).await.map_err(|error| failed(path, error))
    }
}

fn failed(path: &Path, error: sqlx::Error) -> Unreadable {
    Unreadable::new(DataError::of_sqlite(path, error))
}

/// Pages that are read at the same time.
const PAGES_AT_ONCE: usize = 2;

impl Reader {
    /// A reader that gets its part of the [cache](CACHE_KIB), for this many `readers` that each look up names
    /// over this many connections.
    pub(super) fn new(path: PathBuf, readers: usize, look_ups_at_once: usize) -> Self {
        let connections = (readers * look_ups_at_once).max(1);
        let look_ups = Connections::new(look_ups_at_once, (CACHE_KIB / connections).max(LEAST_CACHE_KIB));
        Self { path, look_ups, pages: Connections::new(PAGES_AT_ONCE, LEAST_CACHE_KIB) }
    }

    /// A reader of a file that another process may serve.
    ///
    /// # Errors
    ///
    /// When the file does not exist, or this build cannot read it.
    pub async fn open(config: &DataConfig) -> Result<Self, DataError> {
        Ok(Self::new(existing_current(config).await?, 1, 1))
    }

    async fn read_page<T>(
        &self,
        read: impl AsyncFnOnce(&mut SqliteConnection) -> Result<T, sqlx::Error>,
    ) -> Result<T, Unreadable> {
        self.pages.read(&self.path, read).await
    }
}

impl DomainSource for Reader {
    const IS_COPY: bool = false;
    const FINISHES_READS: bool = false;

    async fn look_up(&self, names: &[DomainName]) -> Result<Vec<Classified>, Unreadable> {
        let read = async |connection: &mut SqliteConnection| look_up::read(connection, names).await;
        self.look_ups.read(&self.path, read).await
    }

    async fn list(&self, page: PageRequest) -> Result<Page, Unreadable> {
        self.read_page(async |connection| pages::read(connection, &page).await).await
    }

    async fn totals(&self, minutes: u32) -> Result<Totals, Unreadable> {
        self.read_page(async |connection| totals::read(connection, minutes).await).await
    }

    async fn changes(&self, after: Place, limit: u32) -> Result<Portion, Unreadable> {
        self.read_page(async |connection| feed::read(connection, &after, limit).await).await
    }

    async fn latest(&self, limit: u32) -> Result<Portion, Unreadable> {
        self.read_page(async |connection| feed::latest(connection, limit).await).await
    }

    async fn standing(&self) -> Result<Standing, Unreadable> {
        let threshold = self.read_page(async |connection| threshold(connection).await).await?;
        Ok(Standing { threshold, lag: None })
    }

    async fn head(&self) -> Result<Position, Unreadable> {
        self.read_page(async |connection| feed::head(connection).await).await
    }

    /// Only changes of statuses move the head.
    async fn last_change(&self) -> Result<Position, Unreadable> {
        self.head().await
    }
}

pub(super) async fn threshold(connection: &mut SqliteConnection) -> Result<u64, sqlx::Error> {
    let read = "-- catchall: read the threshold
        select threshold from classification";
    let threshold: i64 = sqlx::query_scalar(read).fetch_one(connection).await?;
    Ok(threshold.unsigned_abs())
}
