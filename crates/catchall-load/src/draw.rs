//! One event of a workload.

use crate::counts::EventKind;

/// One event of a workload. Its domain is a number, which [`Names`](crate::workload::Names) spells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Draw {
    /// The domain's number, from 0.
    pub domain: u32,
    /// Whether a message was delivered or bounced.
    pub kind: EventKind,
}

/// Maps 64 random bits to a number below `bound`. The bias is below 2⁻³², too small to matter.
#[expect(clippy::cast_possible_truncation, reason = "below the bound, which has 32 bits")]
pub(crate) fn below(bound: u32, random: u64) -> u32 {
    ((u128::from(random) * u128::from(bound)) >> 64) as u32
}
