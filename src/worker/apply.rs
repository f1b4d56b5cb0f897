//! Counts a request, however long it takes.

use std::ops::Range;
use std::sync::Arc;

use tokio::time::Instant;

use super::dead_letter_lines::RefusedLines;
use super::row_limit::RowLimit;
use crate::backoff::backoff;
use crate::health::Dependency;
use crate::store::ledger::{ApplyError, ApplyRequest, Entry, Ledger};

/// The held messages may no longer be counted: see [`ApplyRequest::before`].
#[derive(Debug, thiserror::Error)]
#[error("{0}, returning them to the queue")]
pub(super) struct AckDeadlinePassed(ApplyError);

/// Counts a request and tries until it is done. If the database refuses it, or does not write it in time, it
/// is counted in halves, down to single messages. The tags of single messages that are refused are returned.
/// A single message that is late is tried again.
pub(super) async fn count(
    ledger: &Ledger,
    commits: &Dependency,
    limit: &mut RowLimit,
    request: ApplyRequest,
    lines: &mut RefusedLines,
) -> Result<Vec<u64>, AckDeadlinePassed> {
    let all = 0..request.entries.len();
    let request = Arc::new(request);
    let mut refused = Vec::new();
    let mut ranges: Vec<Range<usize>> = Some(all).filter(|all| !all.is_empty()).into_iter().collect();
    let mut delays = backoff();
    while let Some(range) = ranges.pop() {
        let rows = request.entries[range.clone()].iter().map(Entry::rows).sum();
        if range.len() > 1 && limit.is_far_exceeded_by(rows) {
            ranges.extend(halves(range));
            continue;
        }
        let begun = Instant::now();
        match ledger.apply(Arc::clone(&request), range.clone()).await {
            Ok(applied) => {
                commits.up();
                delays = backoff();
                limit.wrote(rows, begun.elapsed());
                metrics::counter!("catchall_worker_messages_total").increment(range.len() as u64);
                applied.record(begun.elapsed());
            }
            Err(ApplyError::Refused(_)) if range.len() > 1 => ranges.extend(halves(range)),
            Err(ApplyError::Refused(error)) => {
                let Entry { tag, id, .. } = &request.entries[range.start];
                lines.refused(id.as_ref(), &error);
                refused.push(*tag);
            }
            Err(ApplyError::Late(error)) => {
                let messages = range.len();
                commits.down(format_args!("{error}, holding {messages} messages"));
                limit.timed_out(rows);
                let limit = limit.now();
                tracing::warn!(
                    reason = %error,
                    messages,
                    rows,
                    limit,
                    "{rows} rows were not written in time, the next delivery batches are smaller"
                );
                if messages > 1 {
                    ranges.extend(halves(range));
                } else {
                    // Whatever makes one half slow, the other need not wait for it.
                    ranges.insert(0, range);
                }
                tokio::time::sleep(delays.next().unwrap_or_default()).await;
            }
            Err(ApplyError::Transient(error)) => {
                commits.down(format_args!("{error}, holding {} messages", range.len()));
                ranges.push(range);
                tokio::time::sleep(delays.next().unwrap_or_default()).await;
            }
            Err(error @ ApplyError::TooLate) => return Err(AckDeadlinePassed(error)),
        }
    }
    Ok(refused)
}

/// The halves of a range of several messages, the first one last.
fn halves(range: Range<usize>) -> [Range<usize>; 2] {
    let middle = range.start + range.len() / 2;
    [middle..range.end, range.start..middle]
}

#[cfg(test)]
mod tests {
    #[test]
    fn halves_are_counted_in_their_order() {
        assert_eq!(super::halves(4..9), [6..9, 4..6]);
        assert_eq!(super::halves(4..6), [5..6, 4..5]);
    }
}
