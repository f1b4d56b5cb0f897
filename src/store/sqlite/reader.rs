//! Counters, read from the data file.

use std::fmt::Write;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use sqlx::sqlite::SqliteConnection;

use super::data_error::describe;
use super::data_file::{Purpose, connect};
use crate::counters::Counters;
use crate::domain_name::DomainName;
use crate::store::{CounterSource, Unreadable};

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
    idle: Mutex<Vec<SqliteConnection>>,
}

impl Reader {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, idle: Mutex::default() }
    }

    async fn read(&self, names: &[DomainName]) -> Result<Vec<Counters>, Unreadable> {
        let idle = || self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let waiting = idle().pop();
        let mut connection = match waiting {
            Some(connection) => connection,
            None => connect(&self.path, Purpose::Read).await.map_err(Unreadable::new)?,
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
