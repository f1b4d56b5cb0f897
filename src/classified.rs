//! What is known about a domain: its counters, its status, and when it reached that status.

use serde::Serialize;
use utoipa::ToSchema;

use crate::counters::{Counters, Status};
use crate::domain_name::DomainName;
use crate::utc_time::UtcTime;

/// What is known about a domain, without its name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Classified {
    /// Its events.
    pub counters: Counters,
    /// The status that follows from them by the rule.
    pub status: Status,
    /// When the status was recorded. `None` while it is unknown, and between a change of the threshold and
    /// the record of the new status.
    pub since: Option<UtcTime>,
}

impl Classified {
    /// Applies the rule. A recorded time counts only if it belongs to the same status.
    #[must_use]
    pub fn new(counters: Counters, threshold: u64, noted: Option<(Status, UtcTime)>) -> Self {
        let status = counters.status(threshold);
        let since = noted.filter(|(noted, _)| *noted == status && status != Status::Unknown);
        Self { counters, status, since: since.map(|(_, since)| since) }
    }

    /// The same with another threshold, if one is given.
    #[must_use]
    pub fn by(self, threshold: Option<u64>) -> Self {
        threshold.map_or(self, |threshold| {
            Self::new(self.counters, threshold, self.since.map(|since| (self.status, since)))
        })
    }

    /// The recorded status and time, even if the rule now gives another status.
    #[must_use]
    pub fn noted(counters: Counters, status: Status, since: UtcTime) -> Self {
        Self { counters, status, since: (status != Status::Unknown).then_some(since) }
    }
}

/// What is known about a domain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct DomainReport {
    /// Its name.
    pub domain: DomainName,
    /// The status that follows from its events by the rule.
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
