//! An open loop: when each request is due, independent of the others.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;

/// Requests are due at multiples of this, several at a time, so that a thread wakes at most four thousand
/// times a second and not once per request.
const TICK: Duration = Duration::from_micros(250);

/// A fixed number of requests per second.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    per_second: f64,
}

impl Rate {
    /// A rate above 0.
    #[must_use]
    pub fn per_second(per_second: f64) -> Self {
        Self { per_second }
    }

    /// How long after the start request `index` is due. The first one is due at once.
    fn due(self, index: u64) -> Duration {
        #[expect(clippy::cast_precision_loss, reason = "a run has fewer than 2^53 requests")]
        let exact = Duration::from_secs_f64(index as f64 / self.per_second);
        Duration::from_nanos(nanos(exact).next_multiple_of(nanos(TICK)))
    }
}

/// Whole nanoseconds; 64 bits of them are 584 years.
fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX / 2)
}

/// Releases requests when they are due.
#[derive(Debug)]
pub struct Pace {
    rate: Rate,
    begun: Instant,
    due: Arc<Semaphore>,
}

impl Pace {
    /// Begins now, on its own thread: the event loop's timer counts whole milliseconds, longer than a
    /// response takes.
    ///
    /// # Errors
    ///
    /// When the thread cannot be started.
    pub fn begin(rate: Rate, requests: u64) -> std::io::Result<Self> {
        let (begun, due) = (Instant::now(), Arc::new(Semaphore::new(0)));
        let permits = Arc::clone(&due);
        thread::Builder::new().name("pace".into()).spawn(move || {
            let mut next = 0;
            while next < requests && !permits.is_closed() {
                let elapsed = begun.elapsed();
                let mut ready = 0;
                while next < requests && rate.due(next) <= elapsed {
                    ready += 1;
                    next += 1;
                }
                permits.add_permits(ready);
                thread::sleep(rate.due(next).saturating_sub(begun.elapsed()));
            }
        })?;
        Ok(Self { rate, begun, due })
    }

    /// Waits until another request is due. `false` when it was stopped.
    pub async fn wait(&self) -> bool {
        self.due.acquire().await.map(tokio::sync::SemaphorePermit::forget).is_ok()
    }

    /// Whether another request is due already.
    #[must_use]
    pub fn is_due(&self) -> bool {
        self.due.try_acquire().map(tokio::sync::SemaphorePermit::forget).is_ok()
    }

    /// The time at which request `index` was due. Its latency is measured from there.
    #[must_use]
    pub fn moment(&self, index: u64) -> Instant {
        self.begun + self.rate.due(index)
    }

    /// Releases no more requests.
    pub fn stop(&self) {
        self.due.close();
    }
}

impl Drop for Pace {
    fn drop(&mut self) {
        self.stop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_due_at_ticks_and_never_early() {
        for per_second in [0.5, 3.0, 1_000.0, 33_333.0, 1_000_000.0] {
            let rate = Rate::per_second(per_second);
            for index in [0_u32, 1, 2, 10, 99_999, 1_000_000] {
                let (due, exact) = (rate.due(index.into()).as_secs_f64(), f64::from(index) / per_second);
                assert!(due >= exact - 1e-6 && due < exact + 0.000_251, "{index} at {per_second}/s: {due}");
            }
        }
    }

    #[tokio::test]
    async fn a_pace_is_kept_however_late_it_is_asked() {
        let pace = Pace::begin(Rate::per_second(1_000.0), 80).unwrap();
        // Nobody asks for much longer than thirty of them take, on a machine that may do ten other things.
        thread::sleep(Duration::from_millis(30));
        for _ in 0..30 {
            assert!(pace.wait().await);
        }
        assert!(pace.begun.elapsed() >= Duration::from_millis(29));
        thread::sleep(Duration::from_secs(1));
        assert!((0..50).all(|_| pace.is_due()), "a stall has not moved what is due");
        assert!(!pace.is_due());
        pace.stop();
        assert!(!pace.wait().await);
    }
}
