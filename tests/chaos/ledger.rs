//! What this program itself has sent, by domain, and what was counted of it.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use sqlx::{Connection, PgConnection};

use crate::round::Result;

/// How long the primary may take for the counters of some thousand domains.
const READ: Duration = Duration::from_secs(10);

/// How often counters are read that are not there yet.
const LOOK: Duration = Duration::from_millis(100);

/// For each domain the least and the most events it may have been delivered.
#[derive(Debug, Default)]
pub(crate) struct Ledger(HashMap<String, (i64, i64)>);

/// How far the counters are outside of what they may be.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Difference {
    pub(crate) lost: i64,
    pub(crate) duplicated: i64,
}

impl Ledger {
    /// Adds to the bounds of a domain.
    pub(crate) fn expect(&mut self, domain: String, least: i64, most: i64) {
        let bounds = self.0.entry(domain).or_default();
        *bounds = (bounds.0 + least, bounds.1 + most);
    }

    pub(crate) fn merge(&mut self, other: Self) {
        other.0.into_iter().for_each(|(domain, (least, most))| self.expect(domain, least, most));
    }

    /// How many events have to be counted.
    pub(crate) fn least(&self) -> i64 {
        self.0.values().map(|(least, _)| least).sum()
    }

    /// Compares with the counters on the primary, which may take so long until nothing is missing.
    pub(crate) async fn compare(&self, primary: &str, patience: Duration) -> Result<Difference> {
        let domains: Vec<String> = self.0.keys().cloned().collect();
        let begun = Instant::now();
        loop {
            let counted = counters(primary, &domains).await?;
            let mut difference = Difference::default();
            for (domain, (least, most)) in &self.0 {
                let counted = counted.get(domain).copied().unwrap_or_default();
                difference.lost += (least - counted).max(0);
                difference.duplicated += (counted - most).max(0);
            }
            if difference.lost == 0 || begun.elapsed() > patience {
                return Ok(difference);
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// The delivered events of those of the domains that have any.
pub(crate) async fn counters(primary: &str, domains: &[String]) -> Result<HashMap<String, i64>> {
    let reading = async {
        let mut connection = PgConnection::connect(primary).await?;
        let statement = "select domain, delivered from domain_counters where domain = any($1)";
        let rows: Vec<(String, i64)> =
            sqlx::query_as(statement).bind(domains).fetch_all(&mut connection).await?;
        connection.close().await?;
        Ok(rows.into_iter().collect())
    };
    match tokio::time::timeout(READ, reading).await {
        Ok(read) => read.map_err(|error: sqlx::Error| format!("the counters cannot be read: {error}")),
        Err(_) => Err(format!("the counters cannot be read within {READ:?}")),
    }
}
