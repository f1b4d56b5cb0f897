//! A check of the whole file.

use std::path::PathBuf;

use super::data_error::DataError;
use super::data_file::{DataConfig, Purpose, connect, existing};
use super::schema;

/// SQLite stops after this many faults. One is enough to restore a backup.
const CHECK: &str = "pragma integrity_check(10)";

const COUNT: &str = "\
-- catchall: look at every row
select count(*), coalesce(total(delivered), 0.0), coalesce(total(bounced), 0.0),
    count(*) filter (where delivered < 0 or bounced < 0), (select count(*) from event_claims),
    (select count(*) from event_claims where length(id) <> 16)
from domain_counters";

/// What a sound file has.
#[derive(Clone, Debug)]
pub struct Checked {
    /// The absolute path of the file.
    pub path: PathBuf,
    /// Domains that have had events.
    pub domains: u64,
    /// Claims of keyed events.
    pub claims: u64,
    /// Delivered events; rounded beyond some 9e15.
    pub delivered: f64,
    /// Bounced events; rounded beyond some 9e15.
    pub bounced: f64,
}

/// Reads all of the file, which another process may serve meanwhile.
///
/// # Errors
///
/// When the file is damaged or cannot be read.
pub async fn check(config: &DataConfig) -> Result<Checked, DataError> {
    let path = existing(config)?;
    schema::inspect(&path)?;
    let mut connection = connect(&path, Purpose::Read).await?;
    let failed = |error: sqlx::Error| DataError::of_sqlite(&path, error);
    let damaged = |reason: String| DataError::Damaged { path: path.clone(), reason, source: None };
    let faults: Vec<String> = sqlx::query_scalar(CHECK).fetch_all(&mut connection).await.map_err(failed)?;
    if faults != ["ok"] {
        return Err(damaged(faults.join("; ").replace('\n', " ")));
    }
    let (domains, delivered, bounced, negative, claims, odd): (i64, f64, f64, i64, i64, i64) =
        sqlx::query_as(COUNT).fetch_one(&mut connection).await.map_err(failed)?;
    if negative > 0 || odd > 0 {
        return Err(damaged(format!(
            "{negative} domains with negative counters, {odd} claims without an id"
        )));
    }
    let (domains, claims) = (domains.unsigned_abs(), claims.unsigned_abs());
    Ok(Checked { path, domains, claims, delivered, bounced })
}
