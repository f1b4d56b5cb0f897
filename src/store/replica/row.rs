//! The rows about domains, and how long a read may take.

use std::time::Duration;

use crate::classified::{Classified, DomainReport};
use crate::counters::{Counters, Status};
use crate::domain_name::DomainName;
use crate::utc_time::UtcTime;

/// How long a read may take before its connection is given up. This is longer than the server lets it run.
pub(super) const READ_TIMEOUT: Duration = Duration::from_secs(5);

/// Counters, the recorded status and its time (in seconds since 1970), and the threshold.
pub(super) type Known = (i64, i64, Option<i16>, Option<f64>, i64);

pub(super) fn classified((delivered, bounced, status, since, threshold): Known) -> Classified {
    let counters = Counters { delivered: count(delivered), bounced: count(bounced) };
    let noted = status.map(Status::from_number).zip(since.map(timestamp));
    Classified::new(counters, count(threshold), noted)
}

/// The report of a row with a name in front; `None` if that is not a domain name, which only a stranger to
/// the ledger can have written.
pub(super) fn report(domain: &str, known: Known) -> Option<DomainReport> {
    Some(DomainReport::new(DomainName::parse(domain).ok()?, classified(known)))
}

pub(super) fn count(bigint: i64) -> u64 {
    u64::try_from(bigint).unwrap_or(0)
}

#[expect(clippy::cast_possible_truncation, reason = "milliseconds since 1970 fit")]
pub(super) fn timestamp(epoch_seconds: f64) -> UtcTime {
    UtcTime((epoch_seconds * 1000.0).round() as i64)
}
