//! A limit for log lines that strangers can cause: only so many are logged per minute.

use std::mem;
use std::time::{Duration, Instant};

/// The period that the limit applies to. It begins with its first line.
const PERIOD: Duration = Duration::from_mins(1);

/// Most lines of one kind in that period: enough to see what is going on, and some 3 MB a day.
const MOST_LINES: u32 = 10;

/// Lines of one kind. The first ones of each minute are logged, the others counted.
#[derive(Debug)]
pub(crate) struct LogLimit {
    others: &'static str,
    begun: Option<Instant>,
    lines: u32,
    left_out: u64,
}

impl LogLimit {
    /// `others` is logged after the number of lines that were left out, and says what they stand for.
    pub(crate) fn new(others: &'static str) -> Self {
        Self { others, begun: None, lines: 0, left_out: 0 }
    }

    /// Whether to log the next line.
    pub(crate) fn admits(&mut self) -> bool {
        self.tell();
        self.take(Instant::now())
    }

    /// Logs how many lines were left out, once their minute is over. Call it now and then, because no further
    /// line may come.
    pub(crate) fn tell(&mut self) {
        if let Some(count) = self.over(Instant::now()) {
            tracing::warn!(count, "{count} {}", self.others);
        }
    }

    fn take(&mut self, now: Instant) -> bool {
        self.begun.get_or_insert(now);
        let admitted = self.lines < MOST_LINES;
        if admitted {
            self.lines += 1;
        } else {
            self.left_out += 1;
        }
        admitted
    }

    /// How many lines were left out, if any were and their minute is over.
    fn over(&mut self, now: Instant) -> Option<u64> {
        if now.duration_since(self.begun?) < PERIOD {
            return None;
        }
        (self.begun, self.lines) = (None, 0);
        Some(mem::take(&mut self.left_out)).filter(|count| *count > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_ten_lines_a_minute_and_a_number() {
        let begin = Instant::now();
        let mut limit = LogLimit::new("more");
        // A thousand lines a second, for five minutes.
        let (mut logged, mut told) = (0, Vec::new());
        for ms in 0..300_000 {
            let now = begin + Duration::from_millis(ms);
            told.extend(limit.over(now));
            logged += u32::from(limit.take(now));
        }
        assert_eq!(logged, 5 * MOST_LINES);
        assert_eq!(told, [59_990; 4]);
        assert_eq!(limit.over(begin + 5 * PERIOD), Some(59_990), "it is told when nothing comes any more");
        assert_eq!(limit.over(begin + 9 * PERIOD), None);
    }

    #[test]
    fn few_lines_are_all_logged() {
        let begin = Instant::now();
        let mut limit = LogLimit::new("more");
        for line in 0..600 {
            let now = begin + Duration::from_secs(7 * line);
            assert_eq!(limit.over(now), None);
            assert!(limit.take(now), "line {line}");
        }
    }
}
