//! Durations and table sizes of the full form and of the short form.

use std::fmt;

use serde::Serialize;

/// Seconds per number of connections in the row frontier.
const STEP_SECONDS: u64 = 3;

/// The duration of the rows, and the sizes of the tables.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Scale {
    /// Seconds per row.
    pub(crate) seconds: u64,
    /// Seconds of the row that shows which rate can be sustained.
    pub(crate) sustained_seconds: u64,
    /// Seconds per number of connections.
    pub(crate) step_seconds: u64,
    /// Domains in the large table.
    pub(crate) domains: u32,
    /// Whether a table three times as large is measured too.
    pub(crate) with_larger: bool,
}

impl Scale {
    pub(crate) fn new(short: bool, seconds: Option<u32>, domains: Option<u32>) -> Self {
        let (usual, sustained, usual_domains) = if short { (5, 5, 1_000_000) } else { (60, 180, 10_000_000) };
        Self {
            seconds: seconds.map_or(usual, u64::from),
            sustained_seconds: seconds.map_or(sustained, u64::from),
            step_seconds: seconds.map_or(STEP_SECONDS, |seconds| u64::from(seconds).min(STEP_SECONDS)),
            domains: domains.unwrap_or(usual_domains),
            with_larger: !short,
        }
    }

    /// Domains in the small table.
    pub(crate) fn fewer_domains(&self) -> u32 {
        self.domains / 10
    }

    /// Domains in the table that is three times as large.
    pub(crate) fn more_domains(&self) -> u32 {
        self.domains * 3
    }
}

impl fmt::Display for Scale {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seconds, sustained_seconds, domains, .. } = self;
        write!(
            f,
            "{seconds} s a row, {sustained_seconds} s uniform; \
            the large table has {domains} domains, loaded in key order"
        )
    }
}
