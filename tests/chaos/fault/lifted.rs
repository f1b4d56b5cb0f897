//! The end of a fault.

use std::time::Instant;

use harness::expected::ExpectedCounts;

/// The end of a fault.
#[derive(Debug)]
pub(crate) struct Lifted {
    /// When it ended.
    pub(crate) at: Instant,
    /// A remark for the table.
    pub(crate) note: Option<String>,
    /// What went wrong while it lasted.
    pub(crate) failures: Vec<String>,
    /// The counts expected for events that were sent by the fault itself.
    pub(crate) expected: ExpectedCounts,
}

impl Lifted {
    /// It has just ended, and nothing is to be said of it.
    pub(super) fn now() -> Self {
        Self { at: Instant::now(), note: None, failures: Vec::new(), expected: ExpectedCounts::default() }
    }
}
