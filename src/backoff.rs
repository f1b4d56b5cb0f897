//! The one retry policy: how soon what has failed is tried again.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};

/// The first delay is short, so that a dropped connection costs little.
const MIN_DELAY: Duration = Duration::from_millis(100);

/// No delay is longer, so that an outage is over soon after its end.
const MAX_DELAY: Duration = Duration::from_secs(3);

/// Delays before the next attempts, each twice as long as the one before, without end. The jitter keeps a fleet of
/// services from coming back in step.
pub(crate) fn backoff() -> impl Iterator<Item = Duration> + use<> {
    ExponentialBuilder::default()
        .with_min_delay(MIN_DELAY)
        .with_max_delay(MAX_DELAY)
        .with_jitter()
        .without_max_times()
        .build()
}
