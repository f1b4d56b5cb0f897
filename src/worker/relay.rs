//! The relay: changes of statuses as messages on the exchange of changes.

use std::mem;
use std::time::Duration;

use metrics::{Counter, Gauge};
use tokio::time::{Instant, sleep};

use crate::broker::{Message, Publisher};
use crate::position::Position;
use crate::store::ledger::{Ledger, Relayed};
use crate::store::postgres::DatabaseError;

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

/// How long the messages of a step wait for their confirms. It is less than a turn, so that what is late does
/// not overtake what another worker publishes.
pub(super) const RELAY_TIMEOUT: Duration = Duration::from_secs(5);

/// Publishes changes while it is this worker's turn, forever. Each is published at least once. When the turn
/// passes to another worker, the last ones may come again.
pub(super) async fn relay(ledger: Ledger, publisher: Publisher) {
    let metrics = Metrics::register();
    let mut failing = false;
    loop {
        match turn(&ledger, &publisher, &metrics).await {
            Ok(()) => failing = false,
            Err(error) => {
                // Whether database and broker are available is reported elsewhere; a right that is missing is
                // not.
                if !mem::replace(&mut failing, true) {
                    tracing::warn!(reason = %error, "changes are not published, trying again: {error}");
                }
            }
        }
        metrics.show(&Relayed::default());
        sleep(ASK_INTERVAL).await;
    }
}

/// Publishes until the turn is over, if there is one.
async fn turn(ledger: &Ledger, publisher: &Publisher, metrics: &Metrics) -> Result<(), DatabaseError> {
    let Some(turn) = ledger.take_relay(TURN).await? else { return Ok(()) };
    let mut position = turn.position;
    let mut next_look = Instant::now();
    loop {
        if next_look <= Instant::now() {
            metrics.show(&ledger.relayed(&position).await?);
            if ledger.take_relay(TURN).await?.is_none() {
                return Ok(());
            }
            next_look = Instant::now() + LOOK_INTERVAL;
        }
        match step(ledger, publisher, &mut position, metrics).await? {
            Step::Full => {}
            Step::Rest => sleep(REST).await,
            Step::Over => return Ok(()),
        }
    }
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

async fn step(
    ledger: &Ledger,
    publisher: &Publisher,
    position: &mut Position,
    metrics: &Metrics,
) -> Result<Step, DatabaseError> {
    let changes = ledger.changes(position, STEP).await?;
    let Some(last) = changes.last() else { return Ok(Step::Rest) };
    let messages = changes.iter().map(Message::change).collect();
    if publisher.publish(messages, Instant::now() + RELAY_TIMEOUT).await.is_err() {
        // Some may have been published. All of them are published again, also by whoever has the turn next.
        return Ok(Step::Rest);
    }
    if !ledger.move_relay(&last.position, TURN).await? {
        return Ok(Step::Over);
    }
    metrics.published.increment(changes.len() as u64);
    *position = last.position.clone();
    Ok(if changes.len() == STEP as usize { Step::Full } else { Step::Rest })
}

struct Metrics {
    published: Counter,
    unpublished: Gauge,
    oldest: Gauge,
}

impl Metrics {
    fn register() -> Self {
        Self {
            published: metrics::counter!("catchall_worker_changes_published_total"),
            unpublished: metrics::gauge!("catchall_worker_changes_unpublished"),
            oldest: metrics::gauge!("catchall_worker_changes_oldest_unpublished_seconds"),
        }
    }

    fn show(&self, relayed: &Relayed) {
        #[expect(clippy::cast_precision_loss, reason = "it has few digits")]
        self.unpublished.set(relayed.waiting as f64);
        self.oldest.set(relayed.oldest.as_secs_f64());
    }
}
