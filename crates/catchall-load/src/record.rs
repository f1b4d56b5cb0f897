//! The tool's own record of what was accepted, to be compared with what was counted.

use std::collections::HashMap;
use std::ops::RangeInclusive;

use crate::counts::{Counts, EventKind};
use crate::workload::Draw;

/// The outcome of the events of each domain, by the domain's number.
///
/// It takes eight bytes per domain, up to the highest number; the system provides memory only where it is
/// used.
#[derive(Debug, Default)]
pub struct SendRecord {
    acknowledged: Vec<[u32; 2]>,
    /// There are few, unless the server has trouble.
    unknown: HashMap<u32, [u32; 2]>,
}

impl SendRecord {
    /// An empty record with space for `domains` domains.
    #[must_use]
    pub fn with_domains(domains: usize) -> Self {
        Self { acknowledged: vec![[0; 2]; domains], unknown: HashMap::new() }
    }

    /// Notes an accepted event: it must be counted once.
    pub fn acknowledge(&mut self, draw: Draw) {
        let domain = draw.domain as usize;
        if domain >= self.acknowledged.len() {
            self.acknowledged.resize(domain + 1, [0; 2]);
        }
        self.acknowledged[domain][column(draw.kind)] += 1;
    }

    /// Notes an event with an unknown outcome: it may be counted once or not at all.
    pub fn leave_unknown(&mut self, draw: Draw) {
        self.unknown.entry(draw.domain).or_default()[column(draw.kind)] += 1;
    }

    /// The bounds of a domain's counters, which were `before` at the start.
    #[must_use]
    pub fn expected(&self, domain: u32, before: Counts) -> Bounds {
        let mut least = before;
        least += counters(self.acknowledged.get(domain as usize).copied().unwrap_or_default());
        let mut most = least;
        most += counters(self.unknown.get(&domain).copied().unwrap_or_default());
        Bounds { least, most }
    }
}

fn column(kind: EventKind) -> usize {
    match kind {
        EventKind::Delivered => 0,
        EventKind::Bounced => 1,
    }
}

fn counters([delivered, bounced]: [u32; 2]) -> Counts {
    Counts { delivered: delivered.into(), bounced: bounced.into() }
}

/// The least and the most a domain's counters may be: all acknowledged events, and none to all of the
/// unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// With none of the unknown.
    pub least: Counts,
    /// With all of the unknown.
    pub most: Counts,
}

impl Bounds {
    /// How far counters are outside these bounds.
    #[must_use]
    pub fn difference(&self, counted: Counts) -> Difference {
        let Self { least, most } = self;
        let mut difference = Difference::default();
        difference.add(least.delivered..=most.delivered, counted.delivered);
        difference.add(least.bounced..=most.bounced, counted.bounced);
        difference
    }
}

/// Events that are missing, and events that were counted too often.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// Acknowledged, but not counted.
    pub lost: u64,
    /// Counted beyond what was sent.
    pub duplicated: u64,
}

impl Difference {
    /// Adds how far one counter is outside its bounds.
    pub fn add(&mut self, expected: RangeInclusive<u64>, counted: u64) {
        self.lost += expected.start().saturating_sub(counted);
        self.duplicated += counted.saturating_sub(*expected.end());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn draw(domain: u32, delivered: bool) -> Draw {
        let kind = if delivered { EventKind::Delivered } else { EventKind::Bounced };
        Draw { domain, kind }
    }

    #[test]
    fn a_domain_never_seen_stays_as_it_was() {
        let before = Counts { delivered: 3, bounced: 1 };
        let expected = SendRecord::default().expected(9, before);
        assert_eq!(expected, Bounds { least: before, most: before });
        assert_eq!(expected.difference(before), Difference::default());
    }

    #[test]
    fn the_kinds_do_not_make_up_for_each_other() {
        let mut record = SendRecord::with_domains(1);
        record.acknowledge(draw(0, true));
        let counted = Counts { delivered: 0, bounced: 1 };
        let difference = record.expected(0, Counts::default()).difference(counted);
        assert_eq!(difference, Difference { lost: 1, duplicated: 1 });
    }

    proptest! {
        #[test]
        fn only_what_cannot_be_explained_is_a_difference(
            before in (0u64..9, 0u64..9),
            events in prop::collection::vec((0u32..3, any::<bool>(), any::<bool>(), any::<bool>()), 0..60),
            stray in -3i64..=3,
        ) {
            let mut record = SendRecord::default();
            let before = Counts { delivered: before.0, bounced: before.1 };
            let mut counted = before;
            let mut unknown = 0;
            for (domain, delivered, acknowledged, effective) in events {
                let draw = draw(domain, delivered);
                if acknowledged { record.acknowledge(draw) } else { record.leave_unknown(draw) }
                if domain == 1 {
                    if acknowledged || effective { counted += Counts::of(draw.kind, 1) }
                    unknown += i64::from(!acknowledged && delivered);
                }
            }
            let expected = record.expected(1, before);
            prop_assert_eq!(expected.difference(counted), Difference::default());
            // Every event beyond what the unknown ones can explain is a difference.
            let delivered = if stray < 0 {
                expected.least.delivered.saturating_sub(stray.unsigned_abs())
            } else {
                expected.most.delivered + stray.unsigned_abs()
            };
            let difference = expected.difference(Counts { delivered, ..counted });
            let gone = expected.least.delivered - delivered.min(expected.least.delivered);
            prop_assert_eq!(difference, Difference { lost: gone, duplicated: stray.max(0).unsigned_abs() });
            prop_assert_eq!(expected.most.delivered - expected.least.delivered, unknown.unsigned_abs());
        }
    }
}
