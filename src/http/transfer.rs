//! The slowest allowed transfer of a body or a response.

use std::time::Duration;

use tokio::time::Instant;

/// The minimum bytes per second of a transfer, on the wire and on average. Any connection in practical use is
/// faster, and at this rate the largest compressed body arrives in seconds.
pub(super) const MIN_RATE: u64 = 16 * 1024;

/// How long a transfer may take beyond its time at [`MIN_RATE`]. It covers a client's garbage collection or a
/// network's change of routes.
pub(super) const GRACE: Duration = Duration::from_secs(10);

/// When a transfer that began at `begun` and has moved `moved` bytes is given up.
pub(super) fn deadline(begun: Instant, moved: u64) -> Instant {
    begun + GRACE + Duration::from_millis(moved.saturating_mul(1000) / MIN_RATE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_moves_fast_enough_is_never_given_up() {
        let begun = Instant::now();
        assert_eq!(deadline(begun, 0), begun + GRACE);
        for seconds in 1..100 {
            let now = begun + Duration::from_secs(seconds);
            assert_eq!(deadline(begun, MIN_RATE * seconds), now + GRACE);
        }
        assert!(deadline(begun, u64::MAX) > begun + GRACE);
    }
}
