//! The clock of the primary, as this process sees it.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

/// A reading that is behind the last one by less than this is late, or comes from a clock that is being
/// slowed down.
const TOLERANCE_SECS: f64 = 1.0;

/// A moment on the primary's clock, which all workers share. Unlike the clock it never goes back. The default
/// is the epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, PartialOrd)]
pub struct Moment {
    epoch_seconds: f64,
}

impl Moment {
    /// The moment that is `duration` later.
    #[must_use]
    pub fn after(self, duration: Duration) -> Self {
        Self { epoch_seconds: self.epoch_seconds + duration.as_secs_f64() }
    }

    /// How much later than `earlier` this is; zero if it is not later.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::try_from_secs_f64(self.epoch_seconds - earlier.epoch_seconds).unwrap_or_default()
    }
}

/// Turns readings into moments. If the clock is set back, or another primary's clock is behind, later
/// readings still become later moments. So a held message becomes too old as if nothing had happened, while
/// other workers tell by the new time how long ago a watermark arrived. If the clock is set ahead, the
/// moments follow it.
#[derive(Debug, Default)]
pub(super) struct Clock {
    state: Mutex<State>,
    /// Notified when the clock is set back.
    set_back: Notify,
}

#[derive(Debug, Default)]
struct State {
    last: Option<Reading>,
    /// How far moments are ahead of readings, in seconds: by how much the clock has been set back so far.
    set_back_by: f64,
}

#[derive(Clone, Copy, Debug)]
struct Reading {
    epoch_seconds: f64,
    received: Instant,
}

impl Clock {
    /// The moment of a reading that was requested at `asked` and has just been received.
    pub(super) fn observe(&self, epoch_seconds: f64, asked: Instant) -> Moment {
        let mut state = self.state();
        let (moment, set_back) = state.observe(epoch_seconds, asked, Instant::now());
        drop(state);
        if let Some(seconds) = set_back {
            tracing::warn!(seconds, "the primary's clock went back by {seconds:.1} s");
            self.set_back.notify_one();
        }
        moment
    }

    /// The moment of the last reading; the epoch before the first.
    pub(super) fn last(&self) -> Moment {
        let state = self.state();
        state.last.map(|last| state.moment(last.epoch_seconds)).unwrap_or_default()
    }

    /// Waits until the clock is set back. Returns at once if it was set back since the last wait.
    pub(super) async fn set_back(&self) {
        self.set_back.notified().await;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn moment(&self, epoch_seconds: f64) -> Moment {
        Moment { epoch_seconds: epoch_seconds + self.set_back_by }
    }

    /// The moment of a reading, and by how many seconds the clock has gone back since the last one, if it
    /// has.
    fn observe(&mut self, epoch_seconds: f64, asked: Instant, received: Instant) -> (Moment, Option<f64>) {
        let mut set_back = None;
        if let Some(last) = self.last {
            // The least it can be: the last reading was taken before it was received, this one after it was
            // requested.
            let passed = signed_seconds(last.received, asked);
            let behind = last.epoch_seconds + passed - epoch_seconds;
            if behind > TOLERANCE_SECS {
                self.set_back_by += behind;
                set_back = Some(behind);
            }
        }
        self.last = Some(Reading { epoch_seconds, received });
        (self.moment(epoch_seconds), set_back)
    }
}

/// Seconds from `from` to `to`, negative if `to` is earlier.
fn signed_seconds(from: Instant, to: Instant) -> f64 {
    match to.checked_duration_since(from) {
        Some(passed) => passed.as_secs_f64(),
        None => -(from - to).as_secs_f64(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Readings of a clock, each with the time it was requested and the time it was received, in seconds of
    /// real time.
    fn moments(readings: &[(f64, f64, f64)]) -> Vec<(f64, Option<f64>)> {
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs_f64(seconds);
        let mut state = State::default();
        readings
            .iter()
            .map(|(clock, asked, received)| {
                let (moment, set_back) = state.observe(*clock, at(*asked), at(*received));
                (moment.epoch_seconds.round(), set_back.map(f64::round))
            })
            .collect()
    }

    #[test]
    fn moments_go_on_where_the_clock_is_set_back() {
        let readings = [
            (1000.0, 0.0, 0.1),
            (1010.0, 10.0, 10.1),
            (420.0, 20.0, 20.1),
            (430.0, 30.0, 30.1),
            (200.0, 40.0, 40.1),
        ];
        let expected =
            [(1000.0, None), (1010.0, None), (1020.0, Some(600.0)), (1030.0, None), (1040.0, Some(240.0))];
        assert_eq!(moments(&readings), expected);
    }

    #[test]
    fn a_clock_that_went_back_is_found_out_also_where_it_shows_more_than_before() {
        // The primary was away for a minute, and the clock of the one that took over is half a minute behind.
        assert_eq!(
            moments(&[(1000.0, 0.0, 0.0), (1030.0, 60.0, 60.0)]),
            [(1000.0, None), (1060.0, Some(30.0))]
        );
    }

    #[test]
    fn moments_are_ahead_with_the_clock() {
        assert_eq!(moments(&[(1000.0, 0.0, 0.0), (5000.0, 1.0, 1.0)]), [(1000.0, None), (5000.0, None)]);
    }

    #[test]
    fn an_answer_that_is_late_or_overtaken_is_no_clock_that_went_back() {
        // The third was read when it was requested, and its response took half a minute while others were
        // faster.
        let late = [(1000.0, 0.0, 0.0), (1020.0, 20.0, 20.0), (1001.0, 1.0, 31.0), (1032.0, 32.0, 32.0)];
        assert!(moments(&late).iter().all(|(_, set_back)| set_back.is_none()), "{:?}", moments(&late));
    }
}
