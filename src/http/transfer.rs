//! How slowly a body may come, and an answer go.

use std::time::Duration;

use tokio::time::Instant;

/// Bytes a second, on the wire and on average, that a transfer makes at least. Any connection that people use makes
/// more, and at this rate the largest body of a client that packs it arrives in seconds.
pub(super) const MIN_RATE: u64 = 16 * 1024;

/// How long a transfer may take beyond what it takes at [`MIN_RATE`]: a pause of a client that collects its garbage,
/// or of a network that changes its routes.
pub(super) const GRACE: Duration = Duration::from_secs(10);

/// When a transfer that began at `begun` and has moved so many bytes is given up.
#[must_use]
pub fn deadline(begun: Instant, moved: u64) -> Instant {
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
