//! A window: what has been taken from the queue for one transaction.

use std::collections::VecDeque;
use std::time::Duration;

use futures::FutureExt;
use tokio::time::{Instant, timeout_at};

use crate::batch::Batch;
use crate::broker::{self, Deliveries, Delivery};
use crate::event::IdempotencyKey;
use crate::excerpt::excerpt;
use crate::ledger::{Moment, Portion};

/// Messages that are read without a pause for whatever else this thread has to do: at up to a thousand
/// events each, some ten milliseconds.
const READS_AT_A_STRETCH: usize = 32;

/// What has been taken from the queue for one transaction.
#[derive(Debug, Default)]
pub(super) struct Window {
    /// What the messages that can be read say.
    pub(super) portion: Portion,
    /// The tags of those messages, in the order of the portion's batches.
    pub(super) tags: Vec<u64>,
    /// The messages that cannot be read, and why.
    pub(super) poison: Vec<(Delivery, String)>,
    /// The tag of the first message of either kind.
    pub(super) first: u64,
    /// When that was taken.
    begun: Option<Instant>,
    /// The tag of the last message of either kind. Every message up to it is in this window or in one that
    /// is settled, which is what makes one acceptance for all of them right.
    pub(super) last: u64,
    /// How many rows it can touch.
    pub(super) rows: usize,
}

impl Window {
    pub(super) fn is_empty(&self) -> bool {
        self.tags.is_empty() && self.poison.is_empty()
    }

    /// Waits for a message and takes what else has arrived by then. When it is dropped while it waits, no
    /// message goes with it.
    pub(super) async fn gather(
        &mut self,
        deliveries: &mut Deliveries,
        max_rows: usize,
    ) -> Result<(), broker::Error> {
        self.add(deliveries.next().await?);
        for _ in 1..READS_AT_A_STRETCH {
            if self.rows >= max_rows {
                break;
            }
            match deliveries.next().now_or_never() {
                Some(delivery) => self.add(delivery?),
                None => break,
            }
        }
        Ok(())
    }

    /// Gathers on until there is enough for a transaction, or the first message has waited for so long.
    pub(super) async fn grow(
        &mut self,
        deliveries: &mut Deliveries,
        max_rows: usize,
        enough_messages: usize,
        linger: Duration,
    ) -> Result<(), broker::Error> {
        let Some(begun) = self.begun else { return Ok(()) };
        let growing = async {
            while self.rows < max_rows && self.tags.len() + self.poison.len() < enough_messages {
                self.gather(deliveries, max_rows).await?;
            }
            Ok(())
        };
        timeout_at(begun + linger, growing).await.unwrap_or(Ok(()))
    }

    fn add(&mut self, delivery: Delivery) {
        if self.is_empty() {
            self.first = delivery.tag();
            self.begun = Some(Instant::now());
        }
        self.last = delivery.tag();
        match read(&delivery) {
            Ok((id, batch)) => {
                self.rows += batch.rows();
                self.tags.push(delivery.tag());
                self.portion.batches.push((id, batch));
                self.portion.marks.extend(delivery.mark());
            }
            Err(reason) => self.poison.push((delivery, excerpt(reason))),
        }
    }
}

/// How long a transaction waits for company after one that took so long. Short ones wait as little as they may: to wait
/// is worth it where rows are the cost, and those take their time.
pub(super) fn linger(took: Duration, least: Duration, most: Duration) -> Duration {
    (2 * took).clamp(least, most.max(least))
}

/// What a message says, or why it cannot be read now or ever.
fn read(delivery: &Delivery) -> Result<(Option<IdempotencyKey>, Batch), String> {
    if let Some(media_type) = delivery.content_type() {
        let essence = media_type.split(';').next().unwrap_or_default().trim();
        if !essence.eq_ignore_ascii_case("application/json") {
            return Err(format!("the content type {media_type:?} is not read here: send application/json"));
        }
    }
    // Some clients put the character encoding here.
    let plain =
        |encoding: &str| ["identity", "utf-8"].iter().any(|plain| encoding.eq_ignore_ascii_case(plain));
    if let Some(encoding) = delivery.content_encoding().filter(|encoding| !plain(encoding)) {
        return Err(format!("the content encoding {encoding:?} is not read here: send none"));
    }
    let id = delivery.message_id().map(str::parse::<IdempotencyKey>).transpose();
    let id = id.map_err(|error| format!("message_id: {error}"))?;
    let batch = Batch::from_json(delivery.body()).map_err(|error| error.to_string())?;
    Ok((id, batch))
}

/// Since when messages can have been in this worker's hands. They arrive unseen, in the client library's buffer,
/// but never more than the prefetch ahead of what is accepted.
#[derive(Debug)]
pub(super) struct HandedOut {
    prefetch: u64,
    /// The tag up to which all was accepted, and when that was; the last that is too old to matter comes first.
    accepted: VecDeque<(u64, Moment)>,
}

impl HandedOut {
    /// Nothing has been handed out yet.
    pub(super) fn new(prefetch: u16, now: Moment) -> Self {
        Self { prefetch: prefetch.into(), accepted: VecDeque::from([(0, now)]) }
    }

    /// All messages up to `tag` have been accepted.
    pub(super) fn accept(&mut self, tag: u64, now: Moment) {
        self.accepted.push_back((tag, now));
    }

    /// A moment before the message with this tag was handed out. Tags have to be asked for in their order.
    pub(super) fn since(&mut self, tag: u64) -> Moment {
        while self.accepted.get(1).is_some_and(|(accepted, _)| accepted + self.prefetch < tag) {
            self.accepted.pop_front();
        }
        self.accepted[0].1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_transaction_lingers_as_long_as_the_last_one_makes_it_worth() {
        let ms = Duration::from_millis;
        for (took, lingers) in [(0, 10), (5, 10), (6, 12), (400, 800), (501, 1000), (90_000, 1000)] {
            assert_eq!(linger(ms(took), ms(10), ms(1000)), ms(lingers), "after {took} ms");
        }
        assert_eq!(linger(ms(90_000), ms(10), ms(0)), ms(10), "the least wins");
    }

    #[test]
    fn a_message_was_handed_out_after_the_one_a_prefetch_before_was_accepted() {
        let begin = Moment::default();
        let at = |seconds| begin.after(Duration::from_secs(seconds));
        let mut handed_out = HandedOut::new(10, begin);
        assert_eq!(handed_out.since(1), begin);
        handed_out.accept(5, at(50));
        handed_out.accept(8, at(80));
        // While nothing is accepted, the first ten are in our hands, and nothing tells when each came.
        assert_eq!(handed_out.since(10), begin);
        assert_eq!(handed_out.since(15), begin);
        assert_eq!(handed_out.since(16), at(50));
        assert_eq!(handed_out.since(18), at(50));
        assert_eq!(handed_out.since(19), at(80));
        handed_out.accept(19, at(190));
        assert_eq!(handed_out.since(1000), at(190));
    }
}
