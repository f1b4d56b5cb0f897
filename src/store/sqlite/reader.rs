//! Counters, read from the data file.

use std::fmt::Write;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use sqlx::AssertSqlSafe;
use sqlx::sqlite::SqliteConnection;

use super::data_error::describe;
use super::data_file::{Purpose, connect};
use crate::counters::Counters;
use crate::domain_name::DomainName;
use crate::store::{CounterSource, Unreadable};

/// Memory for pages of the file, over all connections that look up counters. The inner pages of ten million
/// domains take 8 MB, and each connection has its own; the rest saves calls of the system.
const CACHE_KIB: usize = 64 * 1024;

/// The least for each of them, where many threads serve.
const LEAST_CACHE_KIB: usize = 2 * 1024;

/// One row, whatever is asked: each row of an answer would cost as much as several look-ups.
const READ: &str = "\
-- catchall: read counters
select coalesce(group_concat(asked.key || ' ' || delivered || ' ' || bounced), '')
from json_each(?) as asked cross join domain_counters on domain = asked.value";

/// Reads a data file, over as many connections as reads are under way. A read that begins after an event was
/// accepted sees it.
#[derive(Debug)]
pub struct Reader {
    path: PathBuf,
    /// For the cache of each connection.
    cache_kib: usize,
    idle: Mutex<Vec<SqliteConnection>>,
}

impl Reader {
    /// A reader that takes its part of the [cache](CACHE_KIB), if there are so many connections of all readers.
    pub(super) fn new(path: PathBuf, connections: usize) -> Self {
        let cache_kib = (CACHE_KIB / connections.max(1)).max(LEAST_CACHE_KIB);
        Self { path, cache_kib, idle: Mutex::default() }
    }

    async fn connect(&self) -> Result<SqliteConnection, Unreadable> {
        let mut connection = connect(&self.path, Purpose::Read).await.map_err(Unreadable::new)?;
        // A pragma takes no parameters.
        let cache = format!("pragma cache_size = -{}", self.cache_kib);
        let set = sqlx::raw_sql(AssertSqlSafe(cache)).execute(&mut connection).await;
        set.map_err(|error| Unreadable::new(describe(&error)))?;
        Ok(connection)
    }

    async fn read(&self, names: &[DomainName]) -> Result<Vec<Counters>, Unreadable> {
        let idle = || self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let waiting = idle().pop();
        let mut connection = match waiting {
            Some(connection) => connection,
            None => self.connect().await?,
        };
        let found: Result<String, _> =
            sqlx::query_scalar(READ).bind(json(names)).fetch_one(&mut connection).await;
        let found = found.map_err(|error| Unreadable::new(describe(&error)))?;
        idle().push(connection);
        let mut counters = vec![Counters::default(); names.len()];
        for row in found.split(',') {
            let mut numbers = row.split(' ').map_while(|number| number.parse::<u64>().ok());
            if let (Some(place), Some(delivered), Some(bounced)) =
                (numbers.next(), numbers.next(), numbers.next())
                && let Some(counters) = usize::try_from(place).ok().and_then(|place| counters.get_mut(place))
            {
                *counters = Counters { delivered, bounced };
            }
        }
        Ok(counters)
    }
}

impl CounterSource for Reader {
    async fn counters(&self, names: &[DomainName]) -> Result<Vec<Counters>, Unreadable> {
        self.read(names).await
    }
}

/// The names as a JSON array. A domain name needs no escapes.
fn json(names: &[DomainName]) -> String {
    let mut list = String::from("[");
    for (place, name) in names.iter().enumerate() {
        let comma = if place == 0 { "" } else { "," };
        write!(list, "{comma}\"{}\"", name.as_str()).expect("a string grows as it must");
    }
    list + "]"
}
