//! What is known of a domain: its counters, its status, and since when it has that.

use serde::Serialize;
use utoipa::ToSchema;

use crate::counters::{Counters, Status};
use crate::domain_name::DomainName;
use crate::utc_time::UtcTime;

/// What is known of a domain whose name is at hand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Classified {
    /// Its events.
    pub counters: Counters,
    /// What the rule makes of them.
    pub status: Status,
    /// When the status was noted. `None` while it is unknown, and for the moment between a change of the
    /// threshold and the note of what that changes.
    pub since: Option<UtcTime>,
}

impl Classified {
    /// Applies the rule. What was noted counts only if it is of the same status.
    #[must_use]
    pub fn new(counters: Counters, threshold: u64, noted: Option<(Status, UtcTime)>) -> Self {
        let status = counters.status(threshold);
        let since = noted.filter(|(noted, _)| *noted == status && status != Status::Unknown);
        Self { counters, status, since: since.map(|(_, since)| since) }
    }

    /// The same by another threshold, if there is one.
    #[must_use]
    pub fn by(self, threshold: Option<u64>) -> Self {
        threshold.map_or(self, |threshold| {
            Self::new(self.counters, threshold, self.since.map(|since| (self.status, since)))
        })
    }

    /// What was noted, whatever the rule may say by now.
    #[must_use]
    pub fn noted(counters: Counters, status: Status, since: UtcTime) -> Self {
        Self { counters, status, since: (status != Status::Unknown).then_some(since) }
    }
}

/// What is known of a domain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct DomainReport {
    /// Its name.
    pub domain: DomainName,
    /// What the rule makes of its events.
    pub status: Status,
    /// Messages that were delivered.
    pub delivered: u64,
    /// Messages that bounced.
    pub bounced: u64,
    /// When the status was reached; null while it is unknown.
    #[schema(required)]
    pub since: Option<UtcTime>,
}

impl DomainReport {
    /// The report of a name.
    #[must_use]
    pub fn new(domain: DomainName, Classified { counters, status, since }: Classified) -> Self {
        Self { domain, status, delivered: counters.delivered, bounced: counters.bounced, since }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_counts_only_with_the_status_it_was_noted_for() {
        let counters = Counters { delivered: 7, bounced: 0 };
        let noted = |status| Some((status, UtcTime(1)));
        let since = |threshold, noted| Classified::new(counters, threshold, noted).since;
        assert_eq!(since(5, noted(Status::CatchAll)), Some(UtcTime(1)));
        assert_eq!(since(5, noted(Status::Unknown)), None);
        assert_eq!(since(7, noted(Status::CatchAll)), None);
        assert_eq!(since(7, noted(Status::Unknown)), None);
        assert_eq!(since(5, None), None);
    }
}
