//! Caution: how many messages to take at a time when sessions achieve nothing.

/// Messages that are taken one at a time before many are again. Each costs a transaction of its own, some
/// milliseconds; too few, and a bad message further back is met too often with many good ones in hand.
const ONE_AT_A_TIME: u32 = 100;

/// A message whose properties the client library cannot parse (a routing key in Latin-1 is enough) ends the
/// connection and comes back, and whatever was handed out with it comes back too, each time nearer to the delivery
/// limit. So after a session that accepted nothing, messages are taken one at a time: the bad one reaches the
/// limit alone, and becomes a dead letter.
#[derive(Debug, Default)]
pub(super) struct Caution {
    /// Messages that are still taken one at a time.
    left: u32,
    /// Whether the session has accepted nothing yet.
    fruitless: bool,
}

impl Caution {
    /// How many messages the broker may hand out ahead in the next session.
    pub(super) fn prefetch(&self, usual: u16) -> u16 {
        if self.left > 0 { 1 } else { usual }
    }

    /// A session has begun.
    pub(super) fn session_begins(&mut self) {
        self.fruitless = true;
    }

    /// The session has ended, if there was one.
    pub(super) fn session_ended(&mut self) {
        if std::mem::take(&mut self.fruitless) {
            self.left = ONE_AT_A_TIME;
        }
    }

    /// Messages were accepted. Says when that was enough to trust the next ones again.
    pub(super) fn accepted(&mut self) -> Trust {
        self.fruitless = false;
        match self.left {
            0 => Trust::Kept,
            1 => {
                self.left = 0;
                Trust::Regained
            }
            _ => {
                self.left -= 1;
                Trust::Kept
            }
        }
    }
}

/// Whether a session can go on as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trust {
    /// It can.
    Kept,
    /// A new one may take many messages at a time again.
    Regained,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trust_is_lost_at_once_and_regained_step_by_step() {
        let mut caution = Caution::default();
        caution.session_ended();
        caution.session_begins();
        assert_eq!((caution.prefetch(1000), caution.accepted()), (1000, Trust::Kept));
        caution.session_ended();
        assert_eq!(caution.prefetch(1000), 1000);
        caution.session_begins();
        caution.session_ended();
        for _ in 1..ONE_AT_A_TIME {
            assert_eq!((caution.prefetch(1000), caution.accepted()), (1, Trust::Kept));
        }
        assert_eq!((caution.prefetch(1000), caution.accepted()), (1, Trust::Regained));
        assert_eq!((caution.prefetch(1000), caution.accepted()), (1000, Trust::Kept));
    }
}
