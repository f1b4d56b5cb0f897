//! The one retry policy: how long to wait after a failure.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};

/// The first delay is short, so that a dropped connection costs little.
const MIN_DELAY: Duration = Duration::from_millis(100);

/// The longest delay is short too, so work resumes soon after an outage ends.
const MAX_DELAY: Duration = Duration::from_secs(3);

/// An endless sequence of delays, each twice as long as the one before up to [`MAX_DELAY`]. The jitter keeps
/// a fleet of services from retrying in step.
pub(crate) fn backoff() -> impl Iterator<Item = Duration> + use<> {
    ExponentialBuilder::default()
        .with_min_delay(MIN_DELAY)
        .with_max_delay(MAX_DELAY)
        .with_jitter()
        .without_max_times()
        .build()
}
