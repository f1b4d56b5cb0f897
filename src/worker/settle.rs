//! Settling: a delivery batch is counted, and what cannot be counted is kept as dead letters.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::Instant;

use super::apply::{AckDeadlinePassed, count};
use super::delivery_batch::{DeliveryBatch, Poison};
use super::row_limit::RowLimit;
use crate::broker::{Message, Publisher};
use crate::health::Dependency;
use crate::store::ledger::{Ledger, Moment};

/// How long a dead letter waits for the broker's confirm before the message is left to the queue's own
/// dead-lettering, which keeps it as safely but without the reason.
pub(super) const DEAD_LETTER_TIMEOUT: Duration = Duration::from_secs(5);

/// Unreadable messages of one delivery batch that have a line each in the log: whoever sends a flood of them must not fill it.
const MOST_LOGGED: usize = 10;

/// Messages that are counted or kept as dead letters, all but the rejected ones.
#[derive(Debug)]
pub(super) struct Settled {
    /// The tag of the last message.
    pub(super) through: u64,
    /// The last of those that are not rejected, if there is one: the broker breaks the channel of whoever accepts
    /// what they have rejected.
    pub(super) acked: Option<u64>,
    pub(super) rejected: BTreeSet<u64>,
}

/// What it takes to settle.
pub(super) struct Settler {
    pub(super) ledger: Ledger,
    pub(super) dead_letters: Publisher,
    /// The primary as seen by the commits, which can fail where a look at it succeeds.
    pub(super) commits: Dependency,
    pub(super) row_limit: RowLimit,
}

impl Settler {
    /// How many rows the next delivery batch may write.
    pub(super) fn max_rows(&self) -> usize {
        self.row_limit.now()
    }

    /// The primary's clock.
    pub(super) fn now(&self) -> Moment {
        self.ledger.clock()
    }

    /// Counts what can be read and keeps what cannot, however long it takes: a failure of the database holds the delivery
    /// batch, without giving anything back that would only come again. It may be dropped: what the ledger has begun it
    /// ends by itself, and what is delivered again is known by its id.
    pub(super) async fn settle(&mut self, batch: DeliveryBatch) -> Result<Settled, AckDeadlinePassed> {
        let Self { ledger, dead_letters, commits, row_limit } = self;
        let DeliveryBatch { request, poison, last, .. } = batch;
        let read = request.entries.iter().map(|entry| entry.tag);
        let tags: Vec<u64> = read.chain(poison.iter().map(|poison| poison.tag)).collect();
        let (mut rejected, refused) =
            tokio::join!(keep(dead_letters, poison), count(ledger, commits, row_limit, request));
        rejected.extend(refused?);
        let acked = tags.into_iter().filter(|tag| !rejected.contains(tag)).max();
        Ok(Settled { through: last, acked, rejected })
    }
}

/// Publishes the poison as dead letters with their reasons. Returns the tags of those that are for the queue's own
/// dead-lettering: what cannot be copied, and what is not known to be kept so.
async fn keep(dead_letters: &Publisher, poison: Vec<Poison>) -> BTreeSet<u64> {
    if poison.is_empty() {
        return BTreeSet::new();
    }
    for Poison { reason, .. } in poison.iter().take(MOST_LOGGED) {
        tracing::warn!(reason, "a message cannot be read and is kept as a dead letter: {reason}");
    }
    if let Some(count) = poison.len().checked_sub(MOST_LOGGED).filter(|more| *more > 0) {
        tracing::warn!(count, "so are {count} more messages, each with its reason");
    }
    metrics::counter!("catchall_worker_dead_letters_total").increment(poison.len() as u64);
    let mut rejected = BTreeSet::new();
    let (mut tags, mut messages) = (Vec::new(), Vec::<Message>::new());
    for Poison { tag, copy, .. } in poison {
        if let Some(copy) = copy {
            tags.push(tag);
            messages.push(copy);
        } else {
            rejected.insert(tag);
        }
    }
    if messages.is_empty() {
        return rejected;
    }
    let fates = dead_letters.publish_each(messages, Instant::now() + DEAD_LETTER_TIMEOUT).await;
    let failed: Vec<_> =
        tags.into_iter().zip(fates).filter_map(|(tag, fate)| Some((tag, fate.err()?))).collect();
    if let Some((_, error)) = failed.first() {
        let count = failed.len();
        tracing::warn!(reason = %error, count, "cannot keep {count} dead letters with their reasons: {error}");
    }
    rejected.extend(failed.into_iter().map(|(tag, _)| tag));
    rejected
}
