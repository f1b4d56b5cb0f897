//! The spacing of messages: when the next one is worth sending.

use std::time::Duration;

use tokio::time::Instant;

use crate::batch::MESSAGE_EVENTS;

/// Longest time from one message to the next while events wait. A broker that takes longer to confirm than
/// this has several messages under way. Fifty messages a second cost it 4 % of a core, whatever they contain.
const MAX_SPACING: Duration = Duration::from_millis(20);

/// Time from one message to the next, in confirms. A message costs the broker nearly a millisecond of
/// processor time however many events it has, and its confirm shows how long that takes at present. With one
/// thread publishing, the broker is left alone for as long as the last message took. The busier it is, the
/// fewer and larger the messages become.
const SPACING_CONFIRMS: u32 = 2;

/// A message is sent at once when this many eighths of the largest recent crowd wait for it: then hardly any
/// client is left to wait for. Clients that send their next event after each response are all back soon after
/// a confirm, and the rest of the spacing would be lost for them.
const NEARLY_ALL: usize = 7;

/// The time of the next confirm is estimated by the mean of about this many.
const MEAN_OF: u32 = 8;

/// Decides when the next message is worth sending, from how the last ones went.
#[derive(Debug, Default)]
pub(super) struct Spacing {
    /// When the last message was sent, if there was one.
    last: Option<Instant>,
    /// How long a confirm takes: the mean of the last few.
    confirm: Duration,
    /// Events that were sent and are not confirmed yet.
    under_way: usize,
    /// The most events that were under way at the same time recently.
    crowd: usize,
}

impl Spacing {
    /// When the next message may be sent, unless [enough](Self::enough) events have gathered before.
    pub(super) fn due(&self) -> Instant {
        let Some(last) = self.last else { return Instant::now() };
        let apart =
            if self.under_way > 0 { MAX_SPACING } else { MAX_SPACING.min(self.confirm * SPACING_CONFIRMS) };
        last + apart
    }

    /// How many events are worth a message at once. A full message gains nothing by waiting, and neither does
    /// a message when no client is left to wait for. While another message is under way, no number is enough.
    pub(super) fn enough(&self) -> usize {
        if self.under_way > 0 {
            return usize::MAX;
        }
        (self.crowd * NEARLY_ALL).div_ceil(8).clamp(1, MESSAGE_EVENTS)
    }

    /// `events` events were sent at `now`.
    pub(super) fn sent(&mut self, events: usize, now: Instant) {
        self.last = Some(now);
        self.under_way += events;
        self.crowd = self.under_way.max(self.crowd - self.crowd.div_ceil(8));
    }

    /// `events` events got their response, `took` after they were sent.
    pub(super) fn confirmed(&mut self, events: usize, took: Duration) {
        self.under_way -= events;
        self.confirm = (self.confirm * (MEAN_OF - 1) + took) / MEAN_OF;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// The spacing after many messages of `events` events, each confirmed within `confirm`.
    fn after_many(events: usize, confirm: Duration) -> (Spacing, Instant) {
        let (mut spacing, now) = (Spacing::default(), Instant::now());
        for _ in 0..100 {
            spacing.sent(events, now);
            spacing.confirmed(events, confirm);
        }
        (spacing, now)
    }

    #[test]
    fn the_first_event_is_sent_at_once() {
        let spacing = Spacing::default();
        assert!(spacing.due() <= Instant::now());
        assert_eq!(spacing.enough(), 1);
    }

    #[test]
    fn messages_are_two_confirms_apart_and_never_far() {
        for (confirm, expected) in [(MS, 2 * MS), (4 * MS, 8 * MS), (300 * MS, 20 * MS)] {
            let (spacing, last) = after_many(50, confirm);
            let apart = spacing.due() - last;
            assert!(
                apart <= expected && apart + MS / 100 > expected,
                "{apart:?} after confirms of {confirm:?}"
            );
        }
    }

    #[test]
    fn a_broker_that_is_slow_has_several_messages_under_way() {
        let (mut spacing, now) = after_many(50, MS);
        spacing.sent(50, now);
        assert_eq!((spacing.due(), spacing.enough()), (now + MAX_SPACING, usize::MAX));
        spacing.sent(50, now + MAX_SPACING);
        spacing.confirmed(50, 30 * MS);
        assert_eq!(spacing.due(), now + 2 * MAX_SPACING, "one is still under way");
    }

    #[test]
    fn when_nearly_all_wait_nobody_is_waited_for() {
        let (spacing, _) = after_many(64, MS);
        assert_eq!(spacing.enough(), 56);
        let (spacing, _) = after_many(1, MS);
        assert_eq!(spacing.enough(), 1);
        let (spacing, _) = after_many(100_000, MS);
        assert_eq!(spacing.enough(), MESSAGE_EVENTS, "a full message");
    }

    #[test]
    fn a_crowd_that_has_left_is_forgotten() {
        let (mut spacing, now) = after_many(1000, MS);
        for _ in 0..60 {
            spacing.sent(1, now);
            spacing.confirmed(1, MS);
        }
        assert_eq!(spacing.enough(), 1);
    }
}
