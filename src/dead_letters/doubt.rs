//! Letters that may have been counted before and would not be recognised any more.

use std::time::{Duration, SystemTime};

use crate::batch::Batch;
use crate::broker::{Letter, Timestamp};
use crate::ledger::Horizon;

/// How much longer before its death than the horizon says a message may have met its claim for the last time: it
/// may have been in the hands of a worker, which keeps it for up to a day, and clocks differ.
const MARGIN: Duration = Duration::from_hours(24);

/// Tells which letters are in doubt.
#[derive(Clone, Copy, Debug)]
pub(super) struct Doubts(Horizon);

/// What makes a letter doubtful.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Guard {
    /// Its message may have been counted under its `message_id`.
    Message,
    /// Its events may have been counted under their ids.
    Event,
}

impl Doubts {
    /// There are none.
    pub(super) fn none() -> Self {
        Self(Horizon::default())
    }

    /// What died before the horizon is in doubt if it may have been counted.
    pub(super) fn beyond(horizon: Horizon) -> Self {
        Self(horizon)
    }

    /// Why this letter is in doubt, if it is.
    pub(super) fn about(&self, letter: &Letter) -> Option<String> {
        let died = letter.died();
        // What the worker could not read it has not counted; what the broker moved it may have.
        if letter.is_moved_by_broker() && letter.message_id().is_some() && is_beyond(died, self.0.messages) {
            return Some(sentence(Guard::Message, died));
        }
        // An event is counted under its id whatever message brings it.
        let keyed = self.0.events.is_some()
            && Batch::from_json(letter.body()).is_ok_and(|batch| !batch.keyed.is_empty());
        (keyed && is_beyond(died, self.0.events)).then(|| sentence(Guard::Event, died))
    }
}

/// Whether claims that were last met when the letter died may have been forgotten.
fn is_beyond(died: Option<Timestamp>, horizon: Option<SystemTime>) -> bool {
    horizon.is_some_and(|horizon| {
        let horizon = horizon.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default() + MARGIN;
        died.is_none_or(|died| died.since_epoch() < horizon)
    })
}

fn sentence(guard: Guard, died: Option<Timestamp>) -> String {
    let what = match guard {
        Guard::Message => "it",
        Guard::Event => "events in it",
    };
    let when = match died {
        Some(died) => format!("it died at {died}"),
        None => "nobody knows when it died".into(),
    };
    format!("{what} may have been counted, and {when}, too long ago to tell; --even-if-counted replays it")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_died_a_day_after_the_horizon_is_certain() {
        let at = |secs| SystemTime::UNIX_EPOCH + Duration::from_secs(secs);
        let died = |secs| Some(Timestamp::from(at(secs)));
        assert!(!is_beyond(None, None));
        assert!(!is_beyond(died(0), None));
        assert!(is_beyond(None, Some(at(0))));
        assert!(is_beyond(died(1_000_000), Some(at(1_000_000))));
        assert!(is_beyond(died(1_086_399), Some(at(1_000_000))));
        assert!(!is_beyond(died(1_086_400), Some(at(1_000_000))));
    }
}
