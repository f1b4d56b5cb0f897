//! How many events a test expects for each domain, compared with what was counted.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use catchall_load::counts::Counts;
use catchall_load::record::Difference;

use crate::sql::counts;

/// How long to wait before counters are read again.
const LOOK: Duration = Duration::from_millis(100);

/// For each domain, the least and the most delivered events it may have.
#[derive(Debug, Default)]
pub struct ExpectedCounts(HashMap<String, (u64, u64)>);

impl ExpectedCounts {
    /// Adds to the bounds of a domain.
    pub fn expect(&mut self, domain: String, least: u64, most: u64) {
        let bounds = self.0.entry(domain).or_default();
        *bounds = (bounds.0 + least, bounds.1 + most);
    }

    /// Adds the bounds of another test.
    pub fn merge(&mut self, other: Self) {
        other.0.into_iter().for_each(|(domain, (least, most))| self.expect(domain, least, most));
    }

    /// How many events have to be counted.
    #[must_use]
    pub fn least(&self) -> u64 {
        self.0.values().map(|(least, _)| least).sum()
    }

    /// Compares with the counters on the primary. Waits up to `timeout` until no event is missing.
    ///
    /// # Errors
    ///
    /// When they cannot be read.
    pub async fn compare(&self, primary: &str, timeout: Duration) -> anyhow::Result<Difference> {
        self.compare_with(async |domains: &[String]| counts(primary, domains).await, timeout).await
    }

    /// The same with counters that are read by `counts`, which leaves out domains that have none.
    ///
    /// # Errors
    ///
    /// When they cannot be read.
    pub async fn compare_with(
        &self,
        counts: impl AsyncFn(&[String]) -> anyhow::Result<HashMap<String, Counts>>,
        timeout: Duration,
    ) -> anyhow::Result<Difference> {
        let domains: Vec<String> = self.0.keys().cloned().collect();
        let begun = Instant::now();
        loop {
            let counted = counts(&domains).await?;
            let mut difference = Difference::default();
            for (domain, (least, most)) in &self.0 {
                let counted = counted.get(domain).copied().unwrap_or_default();
                difference.add(*least..=*most, counted.delivered);
            }
            if difference.lost == 0 || begun.elapsed() > timeout {
                return Ok(difference);
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}
