//! Counts and latencies of a run so far.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

/// The longest latency that is recorded exactly, in microseconds: an hour.
const LONGEST: u64 = 3_600_000_000;

/// Counts of events and latencies of requests.
#[derive(Debug)]
pub(crate) struct LoadStats {
    /// Events that were accepted.
    pub(crate) acknowledged: u64,
    /// Events that were refused, because something is wrong with them.
    pub(crate) refused: u64,
    /// Events that were sent, with an unknown outcome.
    pub(crate) unknown: u64,
    /// Events sent again, counted each time.
    pub(crate) retried: u64,
    /// Requests that were not answered, or not with success.
    pub(crate) errors: u64,
    /// Events in flight.
    pub(crate) in_flight: u64,
    /// The most recent error, until a request succeeds.
    pub(crate) trouble: Option<String>,
    /// The most recent error.
    pub(crate) last_error: Option<String>,
    /// When the last event was acknowledged.
    pub(crate) last_acknowledged: Option<Instant>,
    latencies_us: Histogram<u64>,
}

impl LoadStats {
    pub(crate) fn new() -> Self {
        let latencies_us =
            Histogram::new_with_max(LONGEST, 3).expect("three digits and an hour are in range");
        Self {
            acknowledged: 0,
            refused: 0,
            unknown: 0,
            retried: 0,
            errors: 0,
            in_flight: 0,
            trouble: None,
            last_error: None,
            last_acknowledged: None,
            latencies_us,
        }
    }

    /// Notes that a response acknowledged `events` events after this latency.
    pub(crate) fn acknowledge(&mut self, events: u64, latency: Duration, now: Instant) {
        self.acknowledged += events;
        self.last_acknowledged = Some(now);
        let micros = u64::try_from(latency.as_micros()).unwrap_or(LONGEST);
        self.latencies_us.saturating_record_n(micros, events);
    }

    /// Notes an error.
    pub(crate) fn note_trouble(&mut self, reason: &str) {
        self.trouble = Some(reason.to_owned());
        self.last_error = Some(reason.to_owned());
    }

    /// Events with a final outcome.
    pub(crate) fn done(&self) -> u64 {
        self.acknowledged + self.refused + self.unknown
    }

    /// The latency in milliseconds that this share of the acknowledged events did not exceed; `None` if there
    /// are none.
    pub(crate) fn latency_ms(&self, share: f64) -> Option<f64> {
        let micros = self.latencies_us.value_at_quantile(share);
        #[expect(clippy::cast_precision_loss, reason = "an hour of microseconds fits")]
        (!self.latencies_us.is_empty()).then_some(micros as f64 / 1000.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latencies_are_of_events_not_of_requests() {
        let mut stats = LoadStats::new();
        assert_eq!(stats.latency_ms(0.5), None);
        let now = Instant::now();
        for _ in 0..98 {
            stats.acknowledge(1, Duration::from_micros(1_500), now);
        }
        stats.acknowledge(2, Duration::from_millis(40), now);
        let near = |share, ms: f64| (stats.latency_ms(share).unwrap() - ms).abs() < ms / 500.0;
        assert!(near(0.5, 1.5) && near(0.98, 1.5) && near(0.99, 40.0) && near(1.0, 40.0));
        assert_eq!(stats.acknowledged, 100);
    }

    #[test]
    fn no_latency_is_too_long() {
        let mut stats = LoadStats::new();
        stats.acknowledge(1, Duration::from_secs(100_000), Instant::now());
        assert!(stats.latency_ms(1.0).unwrap() >= 3_600_000.0);
    }
}
