//! Sums of events per domain, in key order.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use crate::counters::Counters;
use crate::domain_name::DomainName;

/// An ordered map from domain to the sum of its events. It owns its domains while a batch gathers, and
/// borrows them when several batches are folded into one transaction.
///
/// The order is that of the ledger's primary key. Rows are upserted in this order, so two workers lock shared
/// rows in the same order and cannot deadlock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tally<D = DomainName>(BTreeMap<D, Counters>);

impl<D> Default for Tally<D> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

/// Sorting merges runs that are already in order, as the entries of a tally are. For many domains this costs
/// a fraction of looking up each one.
impl<D: Ord> FromIterator<(D, Counters)> for Tally<D> {
    fn from_iter<I: IntoIterator<Item = (D, Counters)>>(entries: I) -> Self {
        let mut entries: Vec<(D, Counters)> = entries.into_iter().collect();
        entries.sort_by(|(left, _), (right, _)| left.cmp(right));
        entries.dedup_by(|(domain, counters), (last, sum)| {
            let same = domain == last;
            if same {
                *sum += *counters;
            }
            same
        });
        Self(entries.into_iter().collect())
    }
}

impl<D: Ord> Tally<D> {
    /// Adds `counters` to those of `domain`.
    pub fn record(&mut self, domain: D, counters: Counters) {
        match self.0.entry(domain) {
            Entry::Vacant(entry) => {
                entry.insert(counters);
            }
            Entry::Occupied(mut entry) => *entry.get_mut() += counters,
        }
    }

    /// Adds everything in `other`.
    pub fn merge(&mut self, other: Self) {
        if self.0.is_empty() {
            self.0 = other.0;
        } else {
            other.0.into_iter().for_each(|(domain, counters)| self.record(domain, counters));
        }
    }

    /// How many domains it holds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether it holds no domain.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The domains and their sums, in key order.
    pub fn iter(&self) -> impl Iterator<Item = (&D, &Counters)> {
        self.0.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn events() -> impl Strategy<Value = Vec<(DomainName, Counters)>> {
        let event = ("[a-c]{1,2}", 0u64..9, 0u64..9).prop_map(|(name, delivered, bounced)| {
            let domain = DomainName::parse(&format!("{name}.com")).unwrap();
            (domain, Counters { delivered, bounced })
        });
        prop::collection::vec(event, 0..60)
    }

    fn tally(events: &[(DomainName, Counters)]) -> Tally {
        let mut tally = Tally::default();
        for (domain, counters) in events {
            tally.record(domain.clone(), *counters);
        }
        tally
    }

    proptest! {
        #[test]
        fn merging_the_parts_is_recording_the_whole(events in events(), cut in any::<prop::sample::Index>()) {
            let (left, right) = events.split_at(cut.index(events.len() + 1));
            let mut merged = tally(left);
            merged.merge(tally(right));
            prop_assert_eq!(&merged, &tally(&events));
            prop_assert_eq!(merged, events.into_iter().collect());
        }

        #[test]
        fn it_sums_each_domain_in_key_order(events in events()) {
            let tally = tally(&events);
            let rows: Vec<_> = tally.iter().collect();
            let bytes = |row: usize| rows[row].0.as_str().as_bytes();
            prop_assert!((1..rows.len()).all(|row| bytes(row - 1) < bytes(row)));
            for (domain, counters) in rows {
                let of_domain = events.iter().filter(|(name, _)| name == domain);
                prop_assert_eq!(counters.delivered, of_domain.clone().map(|(_, c)| c.delivered).sum::<u64>());
                prop_assert_eq!(counters.bounced, of_domain.map(|(_, c)| c.bounced).sum::<u64>());
            }
        }
    }
}
