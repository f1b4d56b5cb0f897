//! How many rows a transaction may write, depending on how long the last ones took.

use std::time::Duration;

/// A transaction is quick if it takes at most the timeout divided by this. A slower one tells nothing about a
/// transaction of twice its size.
const QUICK: u32 = 4;

/// The most rows that the next transactions may write: as configured while the primary writes them in time;
/// after a timeout, half of the rows that were not written in time; doubled again whenever a full transaction
/// was quick. No transaction is expected to take more than half of the timeout, so the limit does not swing.
#[derive(Debug)]
pub(super) struct RowLimit {
    most: usize,
    now: usize,
    timeout: Duration,
}

impl RowLimit {
    /// The primary works on a statement for at most `timeout`.
    pub(super) fn new(most: usize, timeout: Duration) -> Self {
        metrics::gauge!("catchall_worker_row_limit").set(rows(most));
        Self { most, now: most, timeout }
    }

    pub(super) fn now(&self) -> usize {
        self.now
    }

    /// Whether `rows` is clearly more than one transaction may write. Clearly, because a delivery batch ends
    /// with the message that fills it, and halves are not equal.
    pub(super) fn is_far_exceeded_by(&self, rows: usize) -> bool {
        rows > self.now.saturating_add(self.now / 2)
    }

    /// `rows` rows were not written in time.
    pub(super) fn timed_out(&mut self, rows: usize) {
        self.set(self.now.min(rows / 2).max(1));
    }

    /// `rows` rows were written in the time `took`.
    pub(super) fn wrote(&mut self, rows: usize, took: Duration) {
        if self.now < self.most && rows >= self.now / 2 && took * QUICK <= self.timeout {
            self.set(self.now.saturating_mul(2).min(self.most));
        }
    }

    fn set(&mut self, now: usize) {
        self.now = now;
        metrics::gauge!("catchall_worker_row_limit").set(rows(now));
    }
}

fn rows(rows: usize) -> f64 {
    u32::try_from(rows).map_or(f64::INFINITY, f64::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_falls_with_what_is_late_and_grows_with_what_is_quick() {
        let secs = Duration::from_secs;
        let mut limit = RowLimit::new(1000, secs(60));
        limit.wrote(1000, secs(1));
        assert_eq!(limit.now(), 1000);
        limit.timed_out(1010);
        assert_eq!(limit.now(), 505);
        assert!(limit.is_far_exceeded_by(1010) && !limit.is_far_exceeded_by(600));
        limit.timed_out(400);
        assert_eq!(limit.now(), 200);
        limit.timed_out(900);
        assert_eq!(limit.now(), 200, "it never grows by failing");
        limit.wrote(200, secs(16));
        assert_eq!(limit.now(), 200, "that was slow");
        limit.wrote(50, secs(1));
        assert_eq!(limit.now(), 200, "that was too little to tell");
        limit.wrote(200, secs(15));
        assert_eq!(limit.now(), 400);
        (0..9).for_each(|_| limit.wrote(1000, secs(1)));
        assert_eq!(limit.now(), 1000);
        (0..20).for_each(|_| limit.timed_out(1));
        assert_eq!(limit.now(), 1);
    }
}
