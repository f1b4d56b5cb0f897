//! A delivery batch: the messages taken from the queue for one transaction.

use std::time::Duration;

use futures::FutureExt;
use tokio::task::yield_now;
use tokio::time::{Instant, timeout_at};

use crate::broker::{self, Deliveries, Delivery, Message};
use crate::excerpt::excerpt;
use crate::store::ledger::{ApplyRequest, Entry};

/// Messages that are read before other tasks of this thread get their turn: at up to a thousand events each,
/// as ingest writes them, they take some ten milliseconds.
const READS_AT_A_STRETCH: usize = 32;

/// Bytes after which their turn comes sooner. So many messages of ingest have as many.
const BYTES_AT_A_STRETCH: usize = 2 << 20;

/// Bytes of unreadable messages after which a delivery batch is full. They are in memory twice while their
/// copies are published.
const MAX_POISON_BYTES: usize = 8 << 20;

/// The messages taken from the queue for one transaction.
#[derive(Debug, Default)]
pub(super) struct DeliveryBatch {
    /// The contents of the readable messages.
    pub(super) request: ApplyRequest,
    /// The unreadable messages.
    pub(super) poison: Vec<Poison>,
    /// The tag of the first message of either kind.
    pub(super) first: u64,
    /// When the first message was taken.
    begun: Option<Instant>,
    /// The tag of the last message of either kind. Every message up to it is in this delivery batch or in one
    /// that is settled, so one acknowledgement may cover them all.
    pub(super) last: u64,
    /// How many rows the batch can touch.
    rows: usize,
    /// The bytes of the copies of unreadable messages.
    poison_bytes: usize,
}

/// A message that cannot be read.
#[derive(Debug)]
pub(super) struct Poison {
    pub(super) tag: u64,
    pub(super) reason: String,
    /// The copy to keep as a dead letter. `None` if the client library could not read all of the message:
    /// then only the broker can keep it as it is.
    pub(super) copy: Option<Message>,
}

impl DeliveryBatch {
    pub(super) fn is_empty(&self) -> bool {
        self.messages() == 0
    }

    /// Whether it fills a transaction.
    pub(super) fn is_full(&self, max_rows: usize) -> bool {
        self.rows >= max_rows || self.poison_bytes >= MAX_POISON_BYTES
    }

    fn messages(&self) -> usize {
        self.request.entries.len() + self.poison.len()
    }

    /// Waits for a message, and takes the others that have arrived by then, up to a stretch; then other tasks
    /// get their turn. If the future is dropped while it waits, no message is lost.
    pub(super) async fn gather(
        &mut self,
        deliveries: &mut Deliveries,
        max_rows: usize,
    ) -> Result<(), broker::BrokerError> {
        let mut bytes = self.add(&deliveries.next().await?);
        for _ in 1..READS_AT_A_STRETCH {
            if bytes >= BYTES_AT_A_STRETCH || self.is_full(max_rows) {
                break;
            }
            match deliveries.next().now_or_never() {
                Some(delivery) => bytes += self.add(&delivery?),
                None => return Ok(()),
            }
        }
        // The client library never makes its reader wait while it has messages. Without this, a caller in a
        // loop would let nobody else work, and pass its own deadline, until all of them are read.
        yield_now().await;
        Ok(())
    }

    /// Gathers more messages until there are enough for a transaction, or until the first one has waited for
    /// `linger`, which is looked at after each stretch. So however large the messages are, they delay their
    /// transaction only by that.
    pub(super) async fn grow(
        &mut self,
        deliveries: &mut Deliveries,
        max_rows: usize,
        enough_messages: usize,
        linger: Duration,
    ) -> Result<(), broker::BrokerError> {
        let Some(begun) = self.begun else { return Ok(()) };
        let growing = async {
            while !self.is_full(max_rows) && self.messages() < enough_messages {
                self.gather(deliveries, max_rows).await?;
            }
            Ok(())
        };
        timeout_at(begun + linger, growing).await.unwrap_or(Ok(()))
    }

    /// Adds a message, and returns the size of its body in bytes.
    fn add(&mut self, delivery: &Delivery) -> usize {
        let tag = delivery.tag();
        if self.is_empty() {
            self.first = tag;
            self.begun = Some(Instant::now());
        }
        self.last = tag;
        if let Some(defects) = delivery.unreadable() {
            let reason = excerpt(format_args!("it cannot be read whole: {defects}"));
            self.poison.push(Poison { tag, reason, copy: None });
            return delivery.body().len();
        }
        match delivery.read() {
            Ok((id, batch)) => {
                let entry = Entry { tag, id, batch };
                self.rows += entry.rows();
                self.request.entries.push(entry);
                self.request.watermark_ids.extend(delivery.watermark());
            }
            Err(error) => {
                let reason = excerpt(error);
                self.poison_bytes += delivery.body().len();
                let copy = Some(Message::dead_letter(delivery, &reason));
                self.poison.push(Poison { tag, reason, copy });
            }
        }
        delivery.body().len()
    }
}

/// How long a transaction waits for more messages, given that the last one `took` so long. Short transactions
/// wait as little as possible: waiting pays off only if the rows are the main cost, and then transactions
/// take long.
pub(super) fn linger(took: Duration, least: Duration, most: Duration) -> Duration {
    (2 * took).clamp(least, most.max(least))
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
}
