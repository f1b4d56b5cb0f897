//! Counting a portion, however long it takes.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::broker;
use crate::health::Dependency;
use crate::ledger::{Applied, ApplyError, Ledger, Portion};

/// What is held may no longer be counted: see [`Portion::before`].
#[derive(Debug, thiserror::Error)]
#[error("{0}, giving them back")]
pub(super) struct HeldTooLong(ApplyError);

/// Counts a portion, trying until it is done. Where the database refuses it, it is counted in halves, down to
/// the batches that are refused on their own: returns their places.
pub(super) async fn count(
    ledger: &Ledger,
    commits: &Dependency,
    portion: Portion,
) -> Result<Vec<usize>, HeldTooLong> {
    let all = 0..portion.batches.len();
    let portion = Arc::new(portion);
    let mut refused = Vec::new();
    let mut parts: Vec<Range<usize>> = Some(all).filter(|all| !all.is_empty()).into_iter().collect();
    let mut delays = broker::backoff();
    while let Some(part) = parts.pop() {
        let begun = Instant::now();
        match ledger.apply(Arc::clone(&portion), part.clone()).await {
            Ok(applied) => {
                commits.up();
                delays = broker::backoff();
                record(part.len(), applied, begun.elapsed());
            }
            Err(ApplyError::Refused(_)) if part.len() > 1 => {
                let middle = part.start + part.len() / 2;
                parts.extend([middle..part.end, part.start..middle]);
            }
            Err(ApplyError::Refused(error)) => {
                let (id, _) = &portion.batches[part.start];
                let message_id = id.map(|id| id.to_string());
                tracing::warn!(message_id, reason = %error, "the database refuses a message, which becomes a dead letter: {error}");
                refused.push(part.start);
            }
            Err(ApplyError::Transient(error)) => {
                commits.down(format_args!("{error}, holding {} messages", part.len()));
                parts.push(part);
                tokio::time::sleep(delays.next().unwrap_or_default()).await;
            }
            Err(error @ ApplyError::TooLate) => return Err(HeldTooLong(error)),
        }
    }
    Ok(refused)
}

fn record(messages: usize, applied: Applied, took: Duration) {
    metrics::counter!("catchall_worker_messages_total").increment(messages as u64);
    metrics::counter!("catchall_worker_duplicates_total").increment(applied.duplicates as u64);
    metrics::counter!("catchall_worker_rows_total").increment(applied.rows as u64);
    metrics::counter!("catchall_worker_delivered_total").increment(applied.added.delivered);
    metrics::counter!("catchall_worker_bounced_total").increment(applied.added.bounced);
    metrics::histogram!("catchall_worker_commit_seconds").record(took);
}
