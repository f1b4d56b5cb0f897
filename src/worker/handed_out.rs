//! When messages were handed out to this worker. The ack deadline counts from then.

use std::collections::VecDeque;
use std::time::Duration;

use crate::store::ledger::Moment;

/// The time at which a message was handed out may be uncertain by the ack deadline divided by this.
const STALE_FRACTION: u32 = 4;

/// The earliest times at which messages can have been handed out to this worker. Messages arrive unseen, in
/// the client library's buffer, but never more than the prefetch ahead of what is acknowledged, and never
/// before their consumer was requested.
#[derive(Debug)]
pub(super) struct HandedOut {
    prefetch: u64,
    /// The tag of the last message that was handed out to an earlier consumer.
    before: u64,
    /// Tags in ascending order, each with a moment: all messages behind the tag were handed out after the
    /// moment. The first entry covers all tags that are still asked for.
    floors: VecDeque<(u64, Moment)>,
}

impl HandedOut {
    /// Nothing was handed out before the moment `asked`.
    pub(super) fn new(prefetch: u16, asked: Moment) -> Self {
        Self { prefetch: prefetch.into(), before: 0, floors: VecDeque::from([(0, asked)]) }
    }

    /// A new consumer was requested at the moment `asked`. Messages up to the tag `before` were handed out to
    /// its predecessor.
    pub(super) fn renew(&mut self, prefetch: u16, before: u64, asked: Moment) {
        self.prefetch = prefetch.into();
        self.before = before;
        while self.floors.back().is_some_and(|(tag, _)| *tag >= before) {
            self.floors.pop_back();
        }
        self.floors.push_back((before, asked));
    }

    /// All messages up to `tag` are being acknowledged.
    pub(super) fn ack(&mut self, tag: u64, now: Moment) {
        // Messages of an earlier consumer do not count against the prefetch of this one.
        self.floors.push_back((tag.max(self.before) + self.prefetch, now));
    }

    /// A moment before the message with this tag was handed out. Tags must be asked for in ascending order.
    pub(super) fn since(&mut self, tag: u64) -> Moment {
        while self.floors.get(1).is_some_and(|(floor, _)| *floor < tag) {
            self.floors.pop_front();
        }
        self.floors[0].1
    }

    /// Whether the next message would count as handed out long ago, even if it arrives only now. That happens
    /// when few messages arrive: until a new consumer proves otherwise, it could have been here all the time.
    pub(super) fn is_stale(&self, seen: u64, now: Moment, ack_deadline: Duration) -> bool {
        now.since(self.will_be_since(seen + 1)) > ack_deadline / STALE_FRACTION
    }

    fn will_be_since(&self, tag: u64) -> Moment {
        let known = self.floors.partition_point(|(floor, _)| *floor < tag);
        self.floors[known.saturating_sub(1)].1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_was_handed_out_after_the_one_a_prefetch_before_was_acknowledged() {
        let begin = Moment::default();
        let at = |seconds| begin.after(Duration::from_secs(seconds));
        let mut handed_out = HandedOut::new(10, begin);
        assert_eq!(handed_out.since(1), begin);
        handed_out.ack(5, at(50));
        handed_out.ack(8, at(80));
        // While nothing is acknowledged, up to ten messages are in our hands, and nothing shows when each
        // arrived.
        assert_eq!(handed_out.since(10), begin);
        assert_eq!(handed_out.since(15), begin);
        assert_eq!(handed_out.since(16), at(50));
        assert_eq!(handed_out.since(18), at(50));
        assert_eq!(handed_out.since(19), at(80));
        handed_out.ack(19, at(190));
        assert_eq!(handed_out.since(1000), at(190));
    }

    #[test]
    fn a_message_was_handed_out_after_its_consumer_was_requested() {
        let begin = Moment::default();
        let at = |seconds| begin.after(Duration::from_secs(seconds));
        let mut handed_out = HandedOut::new(10, begin);
        // Nothing has come yet.
        handed_out.renew(10, 0, at(5));
        assert_eq!(handed_out.since(1), at(5));
        handed_out.ack(4, at(40));
        // The messages up to the eighth went to the first consumer, and four of them are in our hands.
        handed_out.renew(20, 8, at(50));
        assert_eq!(handed_out.will_be_since(9), at(50));
        let deadline = Duration::from_secs(40);
        assert!(!handed_out.is_stale(8, at(60), deadline) && handed_out.is_stale(8, at(61), deadline));
        assert!(!handed_out.is_stale(8, at(40), deadline), "a clock that stepped back");
        assert_eq!(handed_out.since(5), at(5));
        assert_eq!(handed_out.since(8), at(5));
        handed_out.ack(6, at(60));
        assert_eq!(handed_out.will_be_since(28), at(50), "the second may have handed out twenty at once");
        assert_eq!(handed_out.since(28), at(50));
        handed_out.ack(9, at(90));
        assert_eq!(handed_out.will_be_since(29), at(60));
        assert_eq!(handed_out.will_be_since(30), at(90));
        assert_eq!(handed_out.since(29), at(60));
        assert_eq!(handed_out.since(30), at(90));
    }
}
