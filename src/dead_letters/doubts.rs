//! Dead letters that may have been counted before and would no longer be recognised.

use std::time::{Duration, SystemTime};

use crate::batch::Batch;
use crate::broker::{DeadLetter, Timestamp};
use crate::store::ledger::Horizon;

/// How far apart two clocks may be: the worker's or the broker's, which dates a dead letter, and the
/// primary's, which dates the horizon.
const CLOCKS_APART: Duration = Duration::from_hours(1);

/// Tells which dead letters are in doubt.
#[derive(Clone, Copy, Debug)]
pub(super) struct Doubts {
    horizon: Horizon,
    /// How long before it was dead-lettered a message may have met its claim for the last time: a worker may
    /// have held it.
    margin: Duration,
}

/// Which kind of claim may have been pruned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Guarded {
    /// Its message may have been counted under its `message_id`.
    Message,
    /// Its events may have been counted under their ids.
    Event,
}

impl Doubts {
    /// No dead letter is in doubt.
    pub(super) fn none() -> Self {
        Self { horizon: Horizon::default(), margin: Duration::ZERO }
    }

    /// A message that may have been counted is in doubt if it was dead-lettered before the horizon, or at
    /// most an ack deadline and an hour (for clock differences) after it.
    pub(super) fn beyond(horizon: Horizon, ack_deadline: Duration) -> Self {
        Self { horizon, margin: ack_deadline + CLOCKS_APART }
    }

    /// Why this dead letter is in doubt, if it is.
    pub(super) fn about(&self, letter: &DeadLetter) -> Option<String> {
        let dead_lettered_at = letter.dead_lettered_at();
        // A worker has not counted a message that it could not read. A message that the broker moved may have
        // been counted.
        let moved = letter.is_moved_by_broker() && letter.message_id().is_some();
        if moved && self.is_beyond(dead_lettered_at, self.horizon.messages) {
            return Some(sentence(Guarded::Message, dead_lettered_at));
        }
        // An event is counted under its id, whichever message brings it.
        let keyed = self.horizon.events.is_some()
            && Batch::from_json(letter.body()).is_ok_and(|batch| !batch.keyed.is_empty());
        (keyed && self.is_beyond(dead_lettered_at, self.horizon.events))
            .then(|| sentence(Guarded::Event, dead_lettered_at))
    }

    /// Whether claims that were last met before the message was dead-lettered may have been pruned.
    fn is_beyond(&self, dead_lettered_at: Option<Timestamp>, horizon: Option<SystemTime>) -> bool {
        horizon.is_some_and(|horizon| {
            let certain = horizon.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default() + self.margin;
            dead_lettered_at.is_none_or(|dead_lettered_at| dead_lettered_at.since_epoch() < certain)
        })
    }
}

fn sentence(guard: Guarded, dead_lettered_at: Option<Timestamp>) -> String {
    let what = match guard {
        Guarded::Message => "it",
        Guarded::Event => "events in it",
    };
    let when = match dead_lettered_at {
        Some(dead_lettered_at) => format!("it was dead-lettered at {dead_lettered_at}"),
        None => "the time of its dead-lettering is unknown".into(),
    };
    format!(
        "{what} may have been counted: {when}, and its claim may have been pruned; --even-if-counted \
        replays it"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_letter_is_certain_from_the_ack_deadline_and_an_hour_after_the_horizon() {
        let at = |secs| SystemTime::UNIX_EPOCH + Duration::from_secs(secs);
        let dead_lettered_at = |secs| Some(Timestamp::from(at(secs)));
        for hold in [60, 86_400, 1_000_000] {
            let doubts = Doubts::beyond(Horizon::default(), Duration::from_secs(hold));
            assert!(!doubts.is_beyond(None, None));
            assert!(!doubts.is_beyond(dead_lettered_at(0), None));
            assert!(doubts.is_beyond(None, Some(at(0))));
            assert!(doubts.is_beyond(dead_lettered_at(1_000_000), Some(at(1_000_000))));
            assert!(doubts.is_beyond(dead_lettered_at(1_003_599 + hold), Some(at(1_000_000))));
            assert!(!doubts.is_beyond(dead_lettered_at(1_003_600 + hold), Some(at(1_000_000))));
        }
    }
}
