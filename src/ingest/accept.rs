//! Acceptance: events of many requests become one batch. Each request gets its response once its batch is
//! durable.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use metrics::{Counter, Histogram};
use tokio::time::{Instant, sleep_until};

use super::spacing::Spacing;
use crate::batch::Batch;
use crate::batcher::{Batcher, Flush};
use crate::http::{Problem, ProblemType};
use crate::store::{BatchSink, NotAccepted};

/// The outcome of a batch.
pub(super) type Accepted = Result<(), NotAccepted>;

/// Handlers of one thread submit events here, and the sink takes them.
pub(super) type Intake = Batcher<Batch, Accepted>;

/// Submits `events` events, which `add` adds to the open batch. Returns once they are durable.
pub(super) async fn submit(
    intake: &Intake,
    events: usize,
    add: impl FnOnce(&mut Batch),
) -> Result<(), Problem> {
    let Ok(ticket) = intake.submit(events, add) else {
        return Err(not_counted("too many events are waiting, nothing was counted"));
    };
    match ticket.await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(Problem::from(&error)),
        Err(_) => {
            Err(Problem::new(ProblemType::MaybeCounted, "the request may or may not have been counted"))
        }
    }
}

pub(super) fn not_counted(detail: &str) -> Problem {
    Problem::new(ProblemType::NotCounted, detail)
}

impl From<&NotAccepted> for Problem {
    /// The broker's address and error are for operators, who find them at `/readyz`.
    fn from(error: &NotAccepted) -> Self {
        let (kind, detail) = match error {
            NotAccepted::NotCounted(_) => {
                (ProblemType::NotCounted, "events cannot be accepted now, nothing was counted")
            }
            NotAccepted::MaybeCounted(_) => (
                ProblemType::MaybeCounted,
                "it was not confirmed: the request may or may not have been counted",
            ),
            NotAccepted::Full(_) => (
                ProblemType::QueueFull,
                "the queue is at its limit: the request may or may not have been counted",
            ),
        };
        Self::new(kind, detail)
    }
}

/// Flushes the open batch whenever the next message is worth sending, forever.
pub(super) async fn flush<S: BatchSink>(intake: Arc<Intake>, sink: S, timeout: Duration) {
    let metrics = Metrics::register();
    let mut spacing = Spacing::default();
    let mut under_way = FuturesUnordered::new();
    loop {
        let next = async {
            tokio::select! {
                () = sleep_until(spacing.due()) => {}
                () = intake.reaches(spacing.enough()) => {}
            }
            intake.take().await
        };
        tokio::select! {
            biased;
            Some((events, took)) = under_way.next(), if !under_way.is_empty() => {
                spacing.confirmed(events, took);
            }
            flush = next => {
                spacing.sent(flush.answer.weight(), Instant::now());
                under_way.push(accept(flush, &sink, timeout, &metrics));
            }
        }
    }
}

/// Hands a flush to the sink and answers every request in it. Returns the number of its events and the time
/// it took.
async fn accept<S: BatchSink>(
    flush: Flush<'_, Batch, Accepted>,
    sink: &S,
    timeout: Duration,
    metrics: &Metrics,
) -> (usize, Duration) {
    let Flush { items, since, answer } = flush;
    let (events, begun) = (answer.weight(), Instant::now());
    let accepted = sink.accept(items, Instant::from_std(since) + timeout).await;
    match &accepted {
        Ok(()) => {
            metrics.accepted_events.increment(events as u64);
            metrics.confirm_seconds.record(since.elapsed());
        }
        Err(_) => metrics.refused_events.increment(events as u64),
    }
    answer.send(accepted);
    (events, begun.elapsed())
}

struct Metrics {
    accepted_events: Counter,
    refused_events: Counter,
    confirm_seconds: Histogram,
}

impl Metrics {
    fn register() -> Self {
        Self {
            accepted_events: metrics::counter!("catchall_ingest_accepted_events_total"),
            refused_events: metrics::counter!("catchall_ingest_refused_events_total"),
            confirm_seconds: metrics::histogram!("catchall_ingest_confirm_seconds"),
        }
    }
}
