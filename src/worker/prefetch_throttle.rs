//! The prefetch throttle: how many messages to take ahead, depending on how many were settled so far.

/// Begins with one message at a time and doubles with each settled delivery batch, so that full speed is
/// reached within a fraction of a second.
///
/// It guards against a message that ends every session or process that takes it, for an unforeseen reason.
/// (So a fresh process begins with one, too.) Messages handed out together with such a message come back with
/// it, each time nearer to the delivery limit, beyond which they would be dead letters too. But a worker that
/// holds `n` messages has settled `n` - 1 before. So if the bad message was the hundredth in the queue, it is
/// about the fiftieth for the next process, and so on, until it is taken alone. A good message meets it some
/// ten times, of the hundred that the limit allows, and the bad one reaches the limit alone.
///
/// A session that ends for another reason, such as a restart of the broker, has settled something. The next
/// one goes on with the same prefetch.
#[derive(Debug)]
pub(super) struct PrefetchThrottle {
    most: u16,
    now: u16,
    /// Whether the session has settled anything.
    settled: bool,
}

impl PrefetchThrottle {
    /// Begins with one message, and never takes more than `most`.
    pub(super) fn new(most: u16) -> Self {
        Self { most, now: 1, settled: false }
    }

    /// How many messages the broker may hand out ahead.
    pub(super) fn prefetch(&self) -> u16 {
        self.now
    }

    /// A session has begun.
    pub(super) fn session_begins(&mut self) {
        self.settled = false;
    }

    /// A delivery batch that was taken under the present prefetch was settled.
    pub(super) fn settled(&mut self) {
        self.settled = true;
        self.now = self.now.saturating_mul(2).min(self.most);
    }

    /// The session has ended.
    pub(super) fn session_ended(&mut self) {
        if !self.settled {
            self.now = 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;

    #[test]
    fn it_widens_with_what_is_settled_and_closes_at_once() {
        let mut throttle = PrefetchThrottle::new(1000);
        for expected in [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000, 1000] {
            assert_eq!(throttle.prefetch(), expected);
            throttle.session_begins();
            throttle.settled();
            throttle.session_ended();
        }
        throttle.session_begins();
        throttle.session_ended();
        assert_eq!(throttle.prefetch(), 1);
        assert_eq!(PrefetchThrottle::new(1).prefetch(), 1);
        let mut most = PrefetchThrottle::new(u16::MAX);
        (0..20).for_each(|_| most.settled());
        assert_eq!(most.prefetch(), u16::MAX);
    }

    /// How often the good and the bad messages of a queue are handed out, where one bad message ends every
    /// process that takes it.
    fn handed_out(before: usize, behind: usize, prefetch: u16) -> (usize, usize) {
        const LIMIT: usize = 100;
        let mut queue: VecDeque<Option<usize>> = vec![Some(0); before].into();
        queue.push_back(None);
        queue.extend(vec![Some(0); behind]);
        let (mut worst, mut killer) = (0, 0);
        while killer < LIMIT {
            let mut throttle = PrefetchThrottle::new(prefetch);
            loop {
                let hand = queue.len().min(throttle.prefetch().into());
                for good in queue.iter_mut().take(hand).flatten() {
                    *good += 1;
                    worst = worst.max(*good);
                }
                if queue.iter().take(hand).any(Option::is_none) {
                    killer += 1;
                    break;
                }
                queue.drain(..hand);
                throttle.settled();
            }
        }
        (worst, killer)
    }

    #[test]
    fn few_good_messages_come_back_often_because_of_a_bad_one() {
        for before in [0, 1, 2, 3, 7, 100, 500, 999, 1000, 1001, 5000, 100_000] {
            for prefetch in [1, 2, 1000, u16::MAX] {
                let (worst, killer) = handed_out(before, 2000, prefetch);
                assert_eq!(killer, 100);
                assert!(worst <= 20, "{before} before it, prefetch {prefetch}: handed out {worst} times");
            }
        }
    }
}
