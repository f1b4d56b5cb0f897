//! Dead letters that may have been counted before and would not be recognised any more.

use std::time::{Duration, SystemTime};

use crate::batch::Batch;
use crate::broker::{DeadLetter, Timestamp};
use crate::store::ledger::Horizon;

/// How far the clocks may be apart that a dead letter's death and the horizon are told by: the worker's or the broker's, and
/// the primary's.
const CLOCKS_APART: Duration = Duration::from_hours(1);

/// Tells which dead letters are in doubt.
#[derive(Clone, Copy, Debug)]
pub(super) struct Doubts {
    horizon: Horizon,
    /// How long before its death a dead letter may have met its claim for the last time: it may have been in the hands of a
    /// worker.
    margin: Duration,
}

/// What makes a dead letter doubtful.
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
        Self { horizon: Horizon::default(), margin: Duration::ZERO }
    }

    /// What died before the horizon, or a hold after it, is in doubt if it may have been counted.
    pub(super) fn beyond(horizon: Horizon, ack_deadline: Duration) -> Self {
        Self { horizon, margin: ack_deadline + CLOCKS_APART }
    }

    /// Why this dead letter is in doubt, if it is.
    pub(super) fn about(&self, letter: &DeadLetter) -> Option<String> {
        let died = letter.dead_lettered_at();
        // What the worker could not read it has not counted; what the broker moved it may have.
        let moved = letter.is_moved_by_broker() && letter.message_id().is_some();
        if moved && self.is_beyond(died, self.horizon.messages) {
            return Some(sentence(Guard::Message, died));
        }
        // An event is counted under its id whatever message brings it.
        let keyed = self.horizon.events.is_some()
            && Batch::from_json(letter.body()).is_ok_and(|batch| !batch.keyed.is_empty());
        (keyed && self.is_beyond(died, self.horizon.events)).then(|| sentence(Guard::Event, died))
    }

    /// Whether claims that were last met before the dead letter died may have been pruned.
    fn is_beyond(&self, died: Option<Timestamp>, horizon: Option<SystemTime>) -> bool {
        horizon.is_some_and(|horizon| {
            let certain = horizon.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default() + self.margin;
            died.is_none_or(|died| died.since_epoch() < certain)
        })
    }
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
    fn only_what_died_a_hold_and_an_hour_after_the_horizon_is_certain() {
        let at = |secs| SystemTime::UNIX_EPOCH + Duration::from_secs(secs);
        let died = |secs| Some(Timestamp::from(at(secs)));
        for hold in [60, 86_400, 1_000_000] {
            let doubts = Doubts::beyond(Horizon::default(), Duration::from_secs(hold));
            assert!(!doubts.is_beyond(None, None));
            assert!(!doubts.is_beyond(died(0), None));
            assert!(doubts.is_beyond(None, Some(at(0))));
            assert!(doubts.is_beyond(died(1_000_000), Some(at(1_000_000))));
            assert!(doubts.is_beyond(died(1_003_599 + hold), Some(at(1_000_000))));
            assert!(!doubts.is_beyond(died(1_003_600 + hold), Some(at(1_000_000))));
        }
    }
}
