//! Counts of events. They are defined here and not taken from the product, as a second opinion on its rule.

use std::ops::AddAssign;

/// The two kinds of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// A message was delivered.
    Delivered,
    /// A message bounced.
    Bounced,
}

impl EventKind {
    /// The word for it in paths and in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Bounced => "bounced",
        }
    }
}

/// How many events of each kind a domain has had.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Messages that were delivered.
    pub delivered: u64,
    /// Messages that bounced.
    pub bounced: u64,
}

impl Counts {
    /// The counts of `count` events of one kind.
    #[must_use]
    pub fn of(kind: EventKind, count: u64) -> Self {
        match kind {
            EventKind::Delivered => Self { delivered: count, bounced: 0 },
            EventKind::Bounced => Self { delivered: 0, bounced: count },
        }
    }

    /// The status that query has to serve with these counts.
    #[must_use]
    pub fn status(self, threshold: u64) -> &'static str {
        match self {
            Self { bounced: 1.., .. } => "not catch-all",
            Self { delivered, .. } if delivered > threshold => "catch-all",
            Self { .. } => "unknown",
        }
    }

    /// The sum of both kinds.
    #[must_use]
    pub fn total(self) -> u64 {
        self.delivered + self.bounced
    }
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.delivered += other.delivered;
        self.bounced += other.bounced;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use catchall::counters::Counters;
    use catchall::event::Outcome;
    use proptest::prelude::*;

    #[test]
    fn the_product_uses_the_same_words() {
        assert_eq!(EventKind::Delivered.as_str(), Outcome::Delivered.as_str());
        assert_eq!(EventKind::Bounced.as_str(), Outcome::Bounced.as_str());
    }

    proptest! {
        #[test]
        fn the_product_has_the_same_rule(delivered in 0u64..5, bounced in 0u64..3, threshold in 0u64..5) {
            let served = serde_json::to_value(Counters { delivered, bounced }.status(threshold)).unwrap();
            prop_assert_eq!(served, Counts { delivered, bounced }.status(threshold));
        }
    }
}
