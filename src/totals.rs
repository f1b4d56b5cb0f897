//! Totals over all domains.

use serde::Serialize;
use utoipa::ToSchema;

use crate::counters::Counters;
use crate::utc_time::UtcTime;

/// Totals over all domains. They are updated as events are counted, so reading them is cheap.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct Totals {
    /// Domains by their status.
    pub domains: DomainTotals,
    /// Events by their outcome.
    pub events: EventTotals,
    /// Events that were counted recently.
    pub recent: RecentEvents,
    /// Events that were counted in each of the last minutes, the oldest minute first. A minute without events
    /// is left out.
    pub minutes: Vec<MinuteTotals>,
}

/// Domains by their status. A domain without events is not included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct DomainTotals {
    /// They accept mail for any address.
    #[serde(rename = "catch-all")]
    pub catch_all: u64,
    /// They have refused mail for some address.
    #[serde(rename = "not catch-all")]
    pub not_catch_all: u64,
    /// They have had too few events to tell.
    pub unknown: u64,
}

/// Events by their outcome.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct EventTotals {
    /// Messages that were delivered.
    pub delivered: u64,
    /// Messages that bounced.
    pub bounced: u64,
}

impl From<Counters> for EventTotals {
    fn from(Counters { delivered, bounced }: Counters) -> Self {
        Self { delivered, bounced }
    }
}

/// Events that were counted recently, to ten seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct RecentEvents {
    /// In the last minute.
    pub minute: u64,
    /// In the last hour.
    pub hour: u64,
}

/// Events that were counted in one minute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct MinuteTotals {
    /// When the minute began.
    pub at: UtcTime,
    /// Messages that were delivered.
    pub delivered: u64,
    /// Messages that bounced.
    pub bounced: u64,
}

impl DomainTotals {
    /// Computed from the number of all domains, and of those that are not `unknown`.
    #[must_use]
    pub fn new(all: u64, catch_all: u64, not_catch_all: u64) -> Self {
        let unknown = all.saturating_sub(catch_all).saturating_sub(not_catch_all);
        Self { catch_all, not_catch_all, unknown }
    }
}
