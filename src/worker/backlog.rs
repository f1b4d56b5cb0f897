//! The backlog of the relay: how long changes have waited to be published.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use crate::position::Place;

/// Most looks that are remembered: more than half an hour of them, in some hundred kilobytes. Later changes
/// are recorded only when those of the first look have been published.
const MOST_LOOKS: usize = 1000;

/// The waiting changes, by the looks that saw them first.
///
/// The time in the database is no measure: it says when a domain reached its status, which may be months ago
/// for a domain that was moved here from a data file.
#[derive(Debug, Default)]
pub(super) struct Backlog(VecDeque<(Place, Instant)>);

impl Backlog {
    /// Records a look: the last published change, and the last change.
    pub(super) fn look(&mut self, published: &Place, last: Place, now: Instant) {
        while self.0.front().is_some_and(|(seen, _)| seen <= published) {
            self.0.pop_front();
        }
        // After a restore, `catchall-admin reclassify` lowers transaction numbers that came from another
        // server.
        while self.0.back().is_some_and(|(seen, _)| *seen > last) {
            self.0.pop_back();
        }
        let is_new = last > *published && self.0.back().is_none_or(|(seen, _)| *seen < last);
        if is_new && self.0.len() < MOST_LOOKS {
            self.0.push_back((last, now));
        }
    }

    /// How long the oldest change has waited.
    pub(super) fn age(&self, now: Instant) -> Duration {
        self.0.front().map_or(Duration::ZERO, |(_, seen_at)| now.duration_since(*seen_at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(transaction: i64) -> Place {
        Place { transaction, domain: "a.com".to_owned() }
    }

    #[test]
    fn the_age_is_that_of_the_oldest_that_waits() {
        let begin = Instant::now();
        let after = |secs| begin + Duration::from_secs(secs);
        let mut backlog = Backlog::default();
        let mut look = |published, last, secs| {
            backlog.look(&at(published), at(last), after(secs));
            backlog.age(after(secs)).as_secs()
        };
        assert_eq!(look(5, 5, 0), 0, "nothing waits");
        assert_eq!(look(5, 9, 10), 0, "nobody has seen it earlier");
        assert_eq!(look(5, 9, 12), 2);
        assert_eq!(look(5, 20, 14), 4);
        assert_eq!(look(8, 20, 16), 6, "some wait that were seen at 10 s");
        assert_eq!(look(9, 30, 18), 4, "all of these are published, and some wait that were seen at 14 s");
        assert_eq!(look(29, 30, 20), 2);
        assert_eq!(look(30, 30, 22), 0);
        assert_eq!(look(30, 31, 24), 0);
        assert_eq!(backlog.age(after(31)).as_secs(), 7, "it goes on without a look");
    }

    #[test]
    fn what_was_to_come_and_is_brought_into_the_present_has_not_waited() {
        let begin = Instant::now();
        let after = |secs| begin + Duration::from_secs(secs);
        let mut backlog = Backlog::default();
        backlog.look(&at(5), at(1_000_000), after(0));
        assert_eq!(backlog.age(after(60)).as_secs(), 60);
        backlog.look(&at(5), at(7), after(60));
        assert_eq!(backlog.age(after(62)).as_secs(), 2);
    }

    #[test]
    fn it_takes_little_memory_however_long_nothing_is_published() {
        let (begin, mut backlog) = (Instant::now(), Backlog::default());
        for look in 1..=3 * MOST_LOOKS as u64 {
            let last = i64::try_from(look).unwrap();
            backlog.look(&Place::default(), at(last), begin + Duration::from_secs(look));
        }
        assert_eq!(backlog.0.len(), MOST_LOOKS);
        assert_eq!(backlog.age(begin + Duration::from_secs(5001)).as_secs(), 5000);
    }
}
