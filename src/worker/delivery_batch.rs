//! A delivery batch: what has been taken from the queue for one transaction.

use std::collections::VecDeque;
use std::time::Duration;

use futures::FutureExt;
use tokio::time::{Instant, timeout_at};

use crate::batch::Batch;
use crate::broker::{self, Deliveries, Delivery, Message};
use crate::event::IdempotencyKey;
use crate::excerpt::excerpt;
use crate::store::ledger::{ApplyRequest, Moment};

/// Messages that are read without a pause for whatever else this thread has to do: at up to a thousand
/// events each, some ten milliseconds.
const READS_AT_A_STRETCH: usize = 32;

/// Bytes of messages that cannot be read after which a delivery batch is full. They are in memory twice while their copies are
/// published.
const MAX_POISON_BYTES: usize = 8 << 20;

/// The part of the longest hold by which it may be uncertain when a message was handed out.
const STALE_FRACTION: u32 = 4;

/// What has been taken from the queue for one transaction.
#[derive(Debug, Default)]
pub(super) struct DeliveryBatch {
    /// What the messages that can be read say.
    pub(super) request: ApplyRequest,
    /// The tags of those messages, in the order of the request's batches.
    pub(super) tags: Vec<u64>,
    /// The messages that cannot be read.
    pub(super) poison: Vec<Poison>,
    /// The tag of the first message of either kind.
    pub(super) first: u64,
    /// When that was taken.
    begun: Option<Instant>,
    /// The tag of the last message of either kind. Every message up to it is in this delivery batch or in one that
    /// is settled, which is what makes one acceptance for all of them right.
    pub(super) last: u64,
    /// How many rows it can touch.
    rows: usize,
    /// How many bytes the copies of what cannot be read have.
    poison_bytes: usize,
}

/// A message that cannot be read.
#[derive(Debug)]
pub(super) struct Poison {
    pub(super) tag: u64,
    pub(super) reason: String,
    /// What is to be kept as a dead letter; nothing where the client library could not read all of the message, which
    /// only the broker can keep as it is.
    pub(super) copy: Option<Message>,
}

impl DeliveryBatch {
    pub(super) fn is_empty(&self) -> bool {
        self.messages() == 0
    }

    /// Whether it has all that one transaction may write.
    pub(super) fn is_full(&self, max_rows: usize) -> bool {
        self.rows >= max_rows || self.poison_bytes >= MAX_POISON_BYTES
    }

    fn messages(&self) -> usize {
        self.tags.len() + self.poison.len()
    }

    /// Waits for a message and takes what else has arrived by then. When it is dropped while it waits, no
    /// message goes with it.
    pub(super) async fn gather(
        &mut self,
        deliveries: &mut Deliveries,
        max_rows: usize,
    ) -> Result<(), broker::Error> {
        self.add(&deliveries.next().await?);
        for _ in 1..READS_AT_A_STRETCH {
            if self.is_full(max_rows) {
                break;
            }
            match deliveries.next().now_or_never() {
                Some(delivery) => self.add(&delivery?),
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
            while !self.is_full(max_rows) && self.messages() < enough_messages {
                self.gather(deliveries, max_rows).await?;
            }
            Ok(())
        };
        timeout_at(begun + linger, growing).await.unwrap_or(Ok(()))
    }

    fn add(&mut self, delivery: &Delivery) {
        let tag = delivery.tag();
        if self.is_empty() {
            self.first = tag;
            self.begun = Some(Instant::now());
        }
        self.last = tag;
        if let Some(defects) = delivery.unreadable() {
            let reason = excerpt(format_args!("it cannot be read whole: {defects}"));
            self.poison.push(Poison { tag, reason, copy: None });
            return;
        }
        match read(delivery) {
            Ok((id, batch)) => {
                self.rows += rows_of(&batch);
                self.tags.push(tag);
                self.request.batches.push((id, batch));
                self.request.watermarks.extend(delivery.watermark());
            }
            Err(reason) => {
                let reason = excerpt(reason);
                self.poison_bytes += delivery.body().len();
                let copy = Some(Message::dead_letter(delivery, &reason));
                self.poison.push(Poison { tag, reason, copy });
            }
        }
    }
}

/// How many rows a message can touch: its own claim, and those of its events.
pub(super) fn rows_of(batch: &Batch) -> usize {
    1 + batch.rows()
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

/// Since when messages can have been in this worker's hands. They arrive unseen, in the client library's buffer, but
/// never more than the prefetch ahead of what is accepted, and none before its consumer was asked for.
#[derive(Debug)]
pub(super) struct HandedOut {
    prefetch: u64,
    /// The last message that was handed out to an earlier consumer.
    before: u64,
    /// Tags behind which all messages were handed out after a moment, in their order. The first is of all that are asked
    /// for.
    floors: VecDeque<(u64, Moment)>,
}

impl HandedOut {
    /// Nothing was handed out before this moment.
    pub(super) fn new(prefetch: u16, asked: Moment) -> Self {
        Self { prefetch: prefetch.into(), before: 0, floors: VecDeque::from([(0, asked)]) }
    }

    /// There is a new consumer, which was asked for at this moment, and the messages up to this tag were handed out to
    /// the one before it.
    pub(super) fn renew(&mut self, prefetch: u16, before: u64, asked: Moment) {
        self.prefetch = prefetch.into();
        self.before = before;
        while self.floors.back().is_some_and(|(tag, _)| *tag >= before) {
            self.floors.pop_back();
        }
        self.floors.push_back((before, asked));
    }

    /// All messages up to `tag` are being accepted.
    pub(super) fn ack(&mut self, tag: u64, now: Moment) {
        // What an earlier consumer was handed makes no room for this one.
        self.floors.push_back((tag.max(self.before) + self.prefetch, now));
    }

    /// A moment before the message with this tag was handed out. Tags have to be asked for in their order.
    pub(super) fn since(&mut self, tag: u64) -> Moment {
        while self.floors.get(1).is_some_and(|(floor, _)| *floor < tag) {
            self.floors.pop_front();
        }
        self.floors[0].1
    }

    /// Whether the message behind the last one that was seen would seem to have been handed out long ago, though it may
    /// come only now. That is so where little comes: until a new consumer shows the contrary, it could have been here
    /// all the time.
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
        handed_out.ack(5, at(50));
        handed_out.ack(8, at(80));
        // While nothing is accepted, the first ten are in our hands, and nothing tells when each came.
        assert_eq!(handed_out.since(10), begin);
        assert_eq!(handed_out.since(15), begin);
        assert_eq!(handed_out.since(16), at(50));
        assert_eq!(handed_out.since(18), at(50));
        assert_eq!(handed_out.since(19), at(80));
        handed_out.ack(19, at(190));
        assert_eq!(handed_out.since(1000), at(190));
    }

    #[test]
    fn a_message_was_handed_out_after_its_consumer_was_asked_for() {
        let begin = Moment::default();
        let at = |seconds| begin.after(Duration::from_secs(seconds));
        let mut handed_out = HandedOut::new(10, begin);
        // Nothing has come yet.
        handed_out.renew(10, 0, at(5));
        assert_eq!(handed_out.since(1), at(5));
        handed_out.ack(4, at(40));
        // Of the first consumer were the messages up to the eighth, four of which are in our hands.
        handed_out.renew(20, 8, at(50));
        assert_eq!(handed_out.will_be_since(9), at(50));
        let hold = Duration::from_secs(40);
        assert!(!handed_out.is_stale(8, at(60), hold) && handed_out.is_stale(8, at(61), hold));
        assert!(!handed_out.is_stale(8, at(40), hold), "a clock that stepped back");
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
