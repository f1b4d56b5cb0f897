//! Settling: counts a delivery batch, and keeps messages that cannot be counted as dead letters.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::Instant;

use super::apply::{AckDeadlinePassed, count};
use super::dead_letter_lines::{DeadLetterLines, UnreadableLines};
use super::delivery_batch::{DeliveryBatch, Poison};
use super::row_limit::RowLimit;
use crate::broker::{Message, Publisher};
use crate::health::Dependency;
use crate::store::ledger::{Ledger, Moment};

/// How long a dead letter waits for the broker's confirm. After that the message is left to the queue's own
/// dead-lettering, which keeps it as safely but without the reason.
pub(super) const DEAD_LETTER_TIMEOUT: Duration = Duration::from_secs(5);

/// A settled delivery batch: every message was counted or kept as a dead letter, except those that must be
/// rejected.
#[derive(Debug)]
pub(super) struct Settled {
    /// The tag of the last message.
    pub(super) through: u64,
    /// The tag of the last message that is not rejected, if there is one. The broker closes the channel of a
    /// client that acknowledges a message it has rejected.
    pub(super) acked: Option<u64>,
    pub(super) rejected: BTreeSet<u64>,
}

/// The context of settling.
pub(super) struct Settler {
    pub(super) ledger: Ledger,
    pub(super) dead_letters: Publisher,
    /// The dependency on the primary for commits. They can fail although a check of the primary succeeds.
    pub(super) commits: Dependency,
    pub(super) row_limit: RowLimit,
    pub(super) lines: DeadLetterLines,
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

    /// Counts the readable messages and keeps the others as dead letters, however long that takes. If the
    /// database fails, the delivery batch is held: returned messages would only come again. The future may be
    /// dropped: the ledger finishes what it has begun, and messages that are delivered again are recognised
    /// by their ids.
    pub(super) async fn settle(&mut self, batch: DeliveryBatch) -> Result<Settled, AckDeadlinePassed> {
        let Self { ledger, dead_letters, commits, row_limit, lines } = self;
        lines.tell();
        let DeadLetterLines { unreadable, refused } = lines;
        let DeliveryBatch { request, poison, last, .. } = batch;
        let read = request.entries.iter().map(|entry| entry.tag);
        let tags: Vec<u64> = read.chain(poison.iter().map(|poison| poison.tag)).collect();
        let (mut rejected, counted) = tokio::join!(
            keep(dead_letters, poison, unreadable),
            count(ledger, commits, row_limit, request, refused)
        );
        rejected.extend(counted?);
        let acked = tags.into_iter().filter(|tag| !rejected.contains(tag)).max();
        Ok(Settled { through: last, acked, rejected })
    }
}

/// Publishes poison as dead letters with their reasons. Returns the tags of messages that are left to the
/// queue's own dead-lettering: those that cannot be copied, and those whose copy is not known to be kept.
async fn keep(dead_letters: &Publisher, poison: Vec<Poison>, lines: &mut UnreadableLines) -> BTreeSet<u64> {
    if poison.is_empty() {
        return BTreeSet::new();
    }
    for Poison { reason, .. } in &poison {
        lines.unreadable(reason);
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
    let outcomes = dead_letters.publish_each(messages, Instant::now() + DEAD_LETTER_TIMEOUT).await;
    let failed: Vec<_> =
        tags.into_iter().zip(outcomes).filter_map(|(tag, outcome)| Some((tag, outcome.err()?))).collect();
    if let Some((_, error)) = failed.first() {
        lines.unkept(failed.len(), error);
    }
    rejected.extend(failed.into_iter().map(|(tag, _)| tag));
    rejected
}
