//! What one transaction counted.

use std::time::Duration;

use crate::counters::Counters;

/// What one transaction did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Messages and keyed events that had been counted before and were not counted again.
    pub duplicates: usize,
    /// Domains whose counters grew.
    pub rows: usize,
    /// The sum of everything that was added.
    pub added: Counters,
}

impl Applied {
    /// Adds it to the metrics, with the time that the transaction took.
    pub(crate) fn record(&self, took: Duration) {
        metrics::counter!("catchall_worker_duplicates_total").increment(self.duplicates as u64);
        metrics::counter!("catchall_worker_rows_total").increment(self.rows as u64);
        metrics::counter!("catchall_worker_delivered_total").increment(self.added.delivered);
        metrics::counter!("catchall_worker_bounced_total").increment(self.added.bounced);
        metrics::histogram!("catchall_worker_commit_seconds").record(took);
    }
}
