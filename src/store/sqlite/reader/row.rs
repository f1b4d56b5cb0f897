//! The rows about domains. Numbers of a row are separated by spaces, rows by commas.

use crate::classified::Classified;
use crate::counters::{Counters, Status};
use crate::utc_time::UtcTime;

/// The numbers of a row: delivered, bounced, the recorded status and its time.
pub(super) struct Row {
    pub(super) counters: Counters,
    pub(super) noted: Status,
    pub(super) since: UtcTime,
}

impl Row {
    pub(super) fn read<'a>(words: &mut impl Iterator<Item = &'a str>) -> Option<Self> {
        let mut number = || words.next()?.parse::<i64>().ok();
        let counters = Counters { delivered: number()?.unsigned_abs(), bounced: number()?.unsigned_abs() };
        let noted = Status::from_number(i16::try_from(number()?).ok()?);
        Some(Self { counters, noted, since: UtcTime(number()?) })
    }

    pub(super) fn classified(&self, threshold: i64) -> Classified {
        Classified::new(self.counters, threshold.unsigned_abs(), Some((self.noted, self.since)))
    }
}

/// The rows of an answer.
pub(super) fn rows(answer: &str) -> impl Iterator<Item = &str> {
    answer.split(',').filter(|row| !row.is_empty())
}
