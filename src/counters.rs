//! The counters of a domain, and the one rule that classifies it.

use std::ops::AddAssign;
use std::str::FromStr;

use serde::Serialize;
use utoipa::ToSchema;

use crate::event::Outcome;

/// How many events of each outcome a domain has had.
///
/// The ledger keeps them as `bigint`: a sum stops at 9,223,372,036,854,775,807 instead of wrapping.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Messages that were delivered.
    pub delivered: u64,
    /// Messages that bounced.
    pub bounced: u64,
}

impl Counters {
    /// The counters of `count` events of one outcome.
    #[must_use]
    pub fn of(outcome: Outcome, count: u64) -> Self {
        match outcome {
            Outcome::Delivered => Self { delivered: count, bounced: 0 },
            Outcome::Bounced => Self { delivered: 0, bounced: count },
        }
    }

    /// The rule: one bounce means not a catch-all; more than `threshold` deliveries without a bounce mean a
    /// catch-all.
    ///
    /// Counters only grow, so a status only moves `unknown` → `catch-all` → `not catch-all`, or straight to
    /// `not catch-all`, which is final.
    #[must_use]
    pub fn status(self, threshold: u64) -> Status {
        if self.bounced > 0 {
            Status::NotCatchAll
        } else if self.delivered > threshold {
            Status::CatchAll
        } else {
            Status::Unknown
        }
    }
}

impl AddAssign for Counters {
    fn add_assign(&mut self, other: Self) {
        self.delivered = self.delivered.saturating_add(other.delivered);
        self.bounced = self.bounced.saturating_add(other.bounced);
    }
}

/// The status of a domain according to its counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, ToSchema)]
pub enum Status {
    /// It has had too few events to tell.
    #[default]
    #[serde(rename = "unknown")]
    Unknown,
    /// The domain accepts mail for any address.
    #[serde(rename = "catch-all")]
    CatchAll,
    /// The domain has refused mail for some address.
    #[serde(rename = "not catch-all")]
    NotCatchAll,
}

impl Status {
    /// All statuses, in the order in which a domain can have them.
    pub const ALL: [Self; 3] = [Self::Unknown, Self::CatchAll, Self::NotCatchAll];

    /// The name that users see.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::CatchAll => "catch-all",
            Self::NotCatchAll => "not catch-all",
        }
    }

    /// The name without a space, for paths and the like.
    #[must_use]
    pub fn slug(self) -> &'static str {
        match self {
            Self::NotCatchAll => "not-catch-all",
            status => status.name(),
        }
    }

    /// The number that the stores use for it.
    #[must_use]
    pub fn number(self) -> i16 {
        match self {
            Self::Unknown => 0,
            Self::CatchAll => 1,
            Self::NotCatchAll => 2,
        }
    }

    /// The status with this number. A store allows no other number.
    #[must_use]
    pub fn from_number(number: i16) -> Self {
        Self::ALL.into_iter().find(|status| status.number() == number).unwrap_or_default()
    }
}

/// There is no such status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a status is \"catch-all\", \"not catch-all\" or \"unknown\"")]
pub struct NoStatus;

impl FromStr for Status {
    type Err = NoStatus;

    /// Takes the name or the [`slug`](Self::slug).
    fn from_str(text: &str) -> Result<Self, NoStatus> {
        Self::ALL.into_iter().find(|status| [status.name(), status.slug()].contains(&text)).ok_or(NoStatus)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_threshold_is_exceeded_not_reached() {
        for (delivered, bounced, status) in [
            (0, 0, Status::Unknown),
            (999, 0, Status::Unknown),
            (1000, 0, Status::Unknown),
            (1001, 0, Status::CatchAll),
            (999, 1, Status::NotCatchAll),
            (1000, 1, Status::NotCatchAll),
            (1001, 1, Status::NotCatchAll),
            (0, 1, Status::NotCatchAll),
        ] {
            let counters = Counters { delivered, bounced };
            assert_eq!(counters.status(1000), status, "{counters:?}");
        }
    }

    #[test]
    fn a_status_is_found_by_its_names_and_its_number() {
        for status in Status::ALL {
            assert_eq!(status.name().parse(), Ok(status));
            assert_eq!(status.slug().parse(), Ok(status));
            assert_eq!(Status::from_number(status.number()), status);
            assert_eq!(serde_json::to_value(status).unwrap(), status.name());
        }
        assert_eq!("Catch-all".parse::<Status>(), Err(NoStatus));
    }

    #[test]
    fn the_threshold_is_configurable() {
        assert_eq!(Counters::of(Outcome::Delivered, 1).status(0), Status::CatchAll);
        assert_eq!(Counters::of(Outcome::Delivered, 1).status(1), Status::Unknown);
    }

    proptest! {
        #[test]
        fn a_status_never_moves_back(
            threshold in 0u64..50,
            events in prop::collection::vec((any::<bool>(), 1u64..30), 0..20),
        ) {
            let mut counters = Counters::default();
            let mut status = counters.status(threshold);
            for (delivered, count) in events {
                let outcome = if delivered { Outcome::Delivered } else { Outcome::Bounced };
                counters += Counters::of(outcome, count);
                prop_assert!(counters.status(threshold) >= status);
                status = counters.status(threshold);
            }
        }
    }
}
