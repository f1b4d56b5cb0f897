//! The relay: changes of statuses as messages on the exchange of changes.

use std::mem;
use std::time::Duration;

use metrics::{Counter, Gauge};
use tokio::time::{Instant, sleep};

use super::backlog::Backlog;
use crate::backoff::backoff;
use crate::broker::{Message, PublishError, Publisher};
use crate::position::Position;
use crate::store::ledger::{Ledger, Relayed};
use crate::store::postgres::DatabaseError;
use crate::trouble::Trouble;

/// How long a worker keeps the turn without renewing it. It renews it with each step.
const TURN: Duration = Duration::from_secs(10);

/// How often a worker that does not have the turn asks for it.
const ASK_INTERVAL: Duration = Duration::from_secs(2);

/// How long the one with the turn rests when there is nothing to publish.
const REST: Duration = Duration::from_millis(100);

/// How often the metrics are brought up to date, and the turn is renewed while nothing changes.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);

/// Changes of one step.
const STEP: u32 = 500;

/// The longest rest after a failure: with the time for which a step waits, it is less than a turn. Another
/// worker would begin with a whole step, and repeat it to all who have it.
const MAX_DELAY: Duration = Duration::from_secs(4);

/// How long the messages of a step wait for their confirms. It is less than a turn, so that what is late does
/// not overtake what another worker publishes.
pub(super) const RELAY_TIMEOUT: Duration = Duration::from_secs(5);

/// Publishes changes while it is this worker's turn, forever. Each is published at least once. When the turn
/// passes to another worker, the last ones may come again.
pub(super) async fn relay(ledger: Ledger, publisher: Publisher) {
    let mut relay = Relay {
        ledger,
        publisher,
        backlog: Backlog::default(),
        metrics: Metrics::register(),
        is_failing: false,
        failures: Trouble::default(),
        refusals: Trouble::default(),
    };
    let mut delays = backoff();
    loop {
        let Err(error) = relay.turn().await else {
            sleep(ASK_INTERVAL).await;
            continue;
        };
        // It is said once for as long as it lasts, however long a try takes; and once if it comes and goes.
        let is_news = relay.failures.is_news();
        if !mem::replace(&mut relay.is_failing, true) {
            delays = backoff();
            if is_news {
                tracing::warn!(reason = %error, "changes are not published, trying again: {error}");
            }
        }
        // What was seen to wait goes on waiting.
        relay.metrics.show_age(&relay.backlog);
        sleep(delays.next().unwrap_or_default().min(MAX_DELAY)).await;
    }
}

/// Why changes are not published at present.
#[derive(Debug, thiserror::Error)]
enum Unpublished {
    #[error(transparent)]
    Database(#[from] DatabaseError),
    #[error(transparent)]
    Broker(#[from] PublishError),
}

/// What comes after a step.
enum Step {
    /// There is more.
    Full,
    /// There was no more.
    Rest,
    /// Another worker has the turn.
    Over,
}

struct Relay {
    ledger: Ledger,
    publisher: Publisher,
    backlog: Backlog,
    metrics: Metrics,
    /// Whether the last try failed.
    is_failing: bool,
    failures: Trouble,
    /// Queues that refuse changes.
    refusals: Trouble,
}

impl Relay {
    /// Publishes until the turn is over, if there is one.
    async fn turn(&mut self) -> Result<(), Unpublished> {
        let Some(turn) = self.ledger.take_relay(TURN).await? else {
            // The worker that has the turn shows what waits. Before this it is not known whether one has.
            (self.is_failing, self.backlog) = (false, Backlog::default());
            self.metrics.unpublished.set(0.0);
            self.metrics.show_age(&self.backlog);
            return Ok(());
        };
        let mut position = turn.position;
        let mut next_look = Instant::now();
        loop {
            if next_look <= Instant::now() {
                self.look(&position).await?;
                if self.ledger.take_relay(TURN).await?.is_none() {
                    return Ok(());
                }
                next_look = Instant::now() + LOOK_INTERVAL;
            }
            match self.step(&mut position).await? {
                Step::Full => {}
                Step::Rest => sleep(REST).await,
                Step::Over => return Ok(()),
            }
        }
    }

    /// Brings the metrics up to date.
    async fn look(&mut self, position: &Position) -> Result<(), DatabaseError> {
        let Relayed { waiting, last } = self.ledger.relayed(position).await?;
        self.backlog.look(position, last, Instant::now());
        #[expect(clippy::cast_precision_loss, reason = "it has few digits")]
        self.metrics.unpublished.set(waiting as f64);
        self.metrics.show_age(&self.backlog);
        Ok(())
    }

    /// Publishes the next changes, and notes how far that came.
    async fn step(&mut self, position: &mut Position) -> Result<Step, Unpublished> {
        // Whoever has got what another queue does not confirm gets it again with each try: one change then,
        // not hundreds.
        let limit = if self.is_failing { 1 } else { STEP };
        let changes = self.ledger.changes(position, limit).await?;
        if changes.is_empty() {
            self.is_failing = false;
            return Ok(Step::Rest);
        }
        let messages = changes.iter().map(Message::change).collect();
        let outcomes = self.publisher.publish_each(messages, Instant::now() + RELAY_TIMEOUT).await;
        let (mut done, mut refused, mut failed) = (0, 0, None);
        for outcome in outcomes {
            match outcome {
                Ok(()) => {}
                // A queue is at the limit that its owner has set. The others have the change, and would get
                // it again and again if this one had to have it too.
                Err(PublishError::Refused) => refused += 1,
                Err(error) => {
                    failed = Some(error);
                    break;
                }
            }
            done += 1;
        }
        if let Some(last) = changes[..done].last() {
            if !self.ledger.move_relay(&last.position, TURN).await? {
                return Ok(Step::Over);
            }
            *position = last.position.clone();
            self.metrics.published.increment(done as u64);
            self.note_refused(refused);
        }
        if let Some(error) = failed {
            // Some behind it may have been published. They are published again, also by whoever has the turn
            // next.
            return Err(error.into());
        }
        self.is_failing = false;
        Ok(if changes.len() == limit as usize { Step::Full } else { Step::Rest })
    }

    fn note_refused(&mut self, changes: u64) {
        if changes == 0 {
            return;
        }
        self.metrics.refused.increment(changes);
        if self.refusals.is_news() {
            tracing::warn!(
                "a queue that is bound to catchall.changes refuses changes, as it does at its limit, \
                 and misses them"
            );
        }
    }
}

struct Metrics {
    published: Counter,
    refused: Counter,
    unpublished: Gauge,
    oldest: Gauge,
}

impl Metrics {
    fn register() -> Self {
        Self {
            published: metrics::counter!("catchall_worker_changes_published_total"),
            refused: metrics::counter!("catchall_worker_changes_refused_total"),
            unpublished: metrics::gauge!("catchall_worker_changes_unpublished"),
            oldest: metrics::gauge!("catchall_worker_changes_oldest_unpublished_seconds"),
        }
    }

    /// Shows for how long the oldest change has waited.
    fn show_age(&self, backlog: &Backlog) {
        self.oldest.set(backlog.age(Instant::now()).as_secs_f64());
    }
}
