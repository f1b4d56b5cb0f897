//! Log lines about messages that become dead letters. Any publisher can cause these lines.

use std::fmt::Display;

use crate::excerpt::excerpt;
use crate::idempotency_key::IdempotencyKey;
use crate::log_limit::LogLimit;

/// Lines about messages that cannot be read.
#[derive(Debug)]
pub(super) struct UnreadableLines {
    unreadable: LogLimit,
    unkept: LogLimit,
}

impl UnreadableLines {
    /// Logs a message that cannot be read, unless there have been many.
    pub(super) fn unreadable(&mut self, reason: &str) {
        if self.unreadable.admits() {
            tracing::warn!(reason, "a message cannot be read and is kept as a dead letter: {reason}");
        }
    }

    /// Logs that the broker did not keep `count` dead letters, unless that has happened many times.
    pub(super) fn unkept(&mut self, count: usize, reason: &dyn Display) {
        if self.unkept.admits() {
            tracing::warn!(
                %reason,
                count,
                "cannot keep {count} dead letters with their reasons: {reason}"
            );
        }
    }
}

/// Lines about messages that the database refuses.
#[derive(Debug)]
pub(super) struct RefusedLines(LogLimit);

impl RefusedLines {
    /// Logs a message that the database refuses, unless there have been many.
    pub(super) fn refused(&mut self, id: Option<&IdempotencyKey>, error: &dyn Display) {
        if self.0.admits() {
            let message_id = id.map(ToString::to_string);
            let reason = excerpt(error);
            tracing::warn!(
                message_id,
                reason,
                "the database refuses a message, which becomes a dead letter: {reason}"
            );
        }
    }
}

/// All of these lines.
#[derive(Debug)]
pub(super) struct DeadLetterLines {
    pub(super) unreadable: UnreadableLines,
    pub(super) refused: RefusedLines,
}

impl DeadLetterLines {
    pub(super) fn new() -> Self {
        let unreadable = "more messages could not be read; each is a dead letter with its reason";
        let unkept = "more times, dead letters could not be kept with their reasons";
        let refused = "more messages were refused by the database and became dead letters";
        Self {
            unreadable: UnreadableLines {
                unreadable: LogLimit::new(unreadable),
                unkept: LogLimit::new(unkept),
            },
            refused: RefusedLines(LogLimit::new(refused)),
        }
    }

    /// Logs what was left out, once that is due. Call it now and then.
    pub(super) fn tell(&mut self) {
        let Self { unreadable: UnreadableLines { unreadable, unkept }, refused: RefusedLines(refused) } =
            self;
        [unreadable, unkept, refused].into_iter().for_each(LogLimit::tell);
    }
}
