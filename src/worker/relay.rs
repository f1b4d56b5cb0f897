//! The relay: changes of statuses as messages on the exchange of changes.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::time::Duration;

use futures::FutureExt;
use metrics::{Counter, Gauge};
use tokio::time::{Instant, sleep, timeout};

use super::backlog::Backlog;
use crate::backoff::backoff;
use crate::broker::{BrokerConfig, Message, PublishError, Publisher};
use crate::health::Dependency;
use crate::position::Place;
use crate::shutdown::{GRACE, Shutdown};
use crate::store::ledger::{Ledger, Relayed};
use crate::store::postgres::DatabaseError;
use crate::store::{Change, Portion};
use crate::trouble::Trouble;

/// How long a worker keeps the turn without renewing it. It renews it with each step.
const TURN: Duration = Duration::from_secs(10);

/// How often a worker that does not have the turn asks for it.
const ASK_INTERVAL: Duration = Duration::from_secs(2);

/// How long the worker with the turn rests when there is nothing to publish.
const REST: Duration = Duration::from_millis(100);

/// How often the metrics are brought up to date, and the turn is renewed while nothing changes.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);

/// Changes of one step.
const STEP: u32 = 500;

/// The longest rest after a failure. Together with the time that a step waits, it is shorter than a turn.
/// Otherwise another worker would take over, begin with a whole step, and repeat it to all queues that
/// already have it.
const MAX_DELAY: Duration = Duration::from_secs(4);

/// The longest rest when a message is not confirmed: every other bound queue gets the change again with each
/// try. The turn is kept meanwhile.
const MAX_REST: Duration = Duration::from_secs(30);

/// How long the messages of a step wait for their confirms. It is shorter than a turn, so that a late message
/// does not overtake what another worker publishes.
const RELAY_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a connection may owe confirms. The cause may be a single queue that does not confirm, which a new
/// connection would not fix. A dead connection is noticed by its missing heartbeats.
const RELAY_SILENCE: Duration = Duration::from_mins(2);

/// The connection that publishes changes. It affects neither the readiness of the worker nor its log, because
/// a subscriber's queue may be all that is wrong. The relay logs what is not published.
pub(super) fn publisher(config: BrokerConfig) -> Publisher {
    Publisher::connect(config, "catchall-worker changes".into(), Dependency::untold(), RELAY_SILENCE)
}

/// Publishes changes while it is this worker's turn. On shutdown it finishes its step, within the grace
/// period. Each change is published at least once. When the turn passes to another worker, the last ones may
/// come again.
pub(super) async fn relay(ledger: Ledger, publisher: Publisher, shutdown: Shutdown) {
    let grace_is_over = shutdown.clone().then(|()| sleep(GRACE));
    tokio::select! {
        () = relay_until(shutdown, ledger, publisher) => {}
        () = grace_is_over => {}
    }
}

async fn relay_until(shutdown: Shutdown, ledger: Ledger, publisher: Publisher) {
    let mut relay = Relay {
        ledger,
        publisher,
        shutdown,
        backlog: Backlog::default(),
        metrics: Metrics::register(),
        failing: None,
        failures: Trouble::default(),
        unconfirmed: Trouble::default(),
        refusals: Trouble::default(),
    };
    let mut delays = backoff();
    while !relay.is_stopping() {
        let Err(error) = relay.turn().await else {
            relay.pause(ASK_INTERVAL).await;
            continue;
        };
        let is_unconfirmed = matches!(error, Unpublished::Broker(PublishError::Unconfirmed));
        if relay.failing.is_none() {
            delays = backoff();
        }
        if relay.failing.is_none_or(|failing| failing.is_unconfirmed != is_unconfirmed) {
            relay.failing = Some(Failing { is_unconfirmed, since: Instant::now() });
            relay.tell(&error, is_unconfirmed);
        }
        let delay = delays.next().unwrap_or_default().min(MAX_DELAY);
        if let Some(Failing { is_unconfirmed: true, since }) = relay.failing {
            relay.rest(delay.max(since.elapsed()).min(MAX_REST)).await;
        } else {
            // The changes that were seen waiting still wait.
            relay.metrics.show_age(&relay.backlog);
            relay.pause(delay).await;
        }
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

/// How publishing fails.
#[derive(Clone, Copy)]
struct Failing {
    /// Whether the broker has a message and does not confirm it.
    is_unconfirmed: bool,
    since: Instant,
}

/// What to do after a step.
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
    shutdown: Shutdown,
    backlog: Backlog,
    metrics: Metrics,
    /// Whether the last try failed, and how.
    failing: Option<Failing>,
    failures: Trouble,
    unconfirmed: Trouble,
    /// Queues that refuse changes.
    refusals: Trouble,
}

impl Relay {
    fn is_stopping(&self) -> bool {
        self.shutdown.peek().is_some()
    }

    /// Sleeps, but not beyond the shutdown.
    async fn pause(&self, duration: Duration) {
        let _ = timeout(duration, self.shutdown.clone()).await;
    }

    /// Publishes until the turn is over, if there is one.
    async fn turn(&mut self) -> Result<(), Unpublished> {
        let Some(turn) = self.ledger.take_relay(TURN).await? else {
            // The worker that has the turn shows what waits. Until now it was not known whether one has it.
            (self.failing, self.backlog) = (None, Backlog::default());
            self.metrics.unpublished.set(0.0);
            self.metrics.show_age(&self.backlog);
            return Ok(());
        };
        let mut place = turn.place;
        let mut next_look = Instant::now();
        loop {
            if next_look <= Instant::now() {
                // An operator may have moved the place: `catchall-admin reclassify` does so after a dump was
                // restored.
                let Some(turn) = self.ledger.take_relay(TURN).await? else { return Ok(()) };
                place = turn.place;
                self.look(&place).await?;
                next_look = Instant::now() + LOOK_INTERVAL;
            }
            match self.step(&mut place).await? {
                Step::Full => {}
                Step::Rest => self.pause(REST).await,
                Step::Over => return Ok(()),
            }
            if self.is_stopping() {
                // No message is under way that could overtake what the next worker publishes. After a failure
                // one may be, so then the turn is kept until its time is over.
                return Ok(self.ledger.end_relay().await?);
            }
        }
    }

    /// Rests, and keeps the turn: another worker would begin with a whole step. A rest lasts as long as
    /// publishing has failed so far, so after a repair it resumes within about that time.
    async fn rest(&mut self, delay: Duration) {
        let end = Instant::now() + delay;
        while Instant::now() < end && !self.is_stopping() {
            self.metrics.show_age(&self.backlog);
            self.pause(LOOK_INTERVAL.min(end.saturating_duration_since(Instant::now()))).await;
            let Ok(Some(turn)) = self.ledger.take_relay(TURN).await else { return };
            // The next step reports what is wrong with the database.
            let _ = self.look(&turn.place).await;
        }
    }

    /// Logs a failure once while it lasts, however long a try takes, and once if it comes and goes.
    fn tell(&mut self, error: &Unpublished, is_unconfirmed: bool) {
        let trouble = if is_unconfirmed { &mut self.unconfirmed } else { &mut self.failures };
        if !trouble.is_news() {
            return;
        }
        if is_unconfirmed {
            tracing::warn!(
                reason = %error,
                "changes are not published, trying again: a queue that is bound to catchall.changes does not \
                 confirm (it may have lost its majority), or the broker is slow: {error}"
            );
        } else {
            tracing::warn!(reason = %error, "changes are not published, trying again: {error}");
        }
    }

    /// Brings the metrics up to date.
    async fn look(&mut self, published: &Place) -> Result<(), DatabaseError> {
        let Relayed { waiting, last } = self.ledger.relayed(published).await?;
        self.backlog.look(published, last, Instant::now());
        #[expect(clippy::cast_precision_loss, reason = "it has few digits")]
        self.metrics.unpublished.set(waiting as f64);
        self.metrics.show_age(&self.backlog);
        Ok(())
    }

    /// Publishes the next changes, and records how far it got.
    async fn step(&mut self, place: &mut Place) -> Result<Step, Unpublished> {
        // While one queue does not confirm, the others get the same changes again with each try. So publish
        // only one change then, not hundreds.
        let limit = if self.failing.is_some() { 1 } else { STEP };
        let Portion { changes, end, is_full, .. } = self.ledger.changes(place, limit).await?;
        let outcomes = self.publish(&changes).await;
        let (mut done, mut unheard, mut refused, mut failed) = (0, 0, 0, None);
        for outcome in outcomes {
            match outcome {
                Ok(()) => {}
                Err(PublishError::Unroutable) => unheard += 1,
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
        // After the last change there may be invalid names, which are not published.
        let through =
            if failed.is_none() { Some(&end) } else { changes[..done].last().map(|last| &last.place) };
        if let Some(through) = through.filter(|through| *through > place) {
            if !self.ledger.move_relay(through, TURN).await? {
                return Ok(Step::Over);
            }
            place.clone_from(through);
            self.metrics.published.increment(done as u64);
            self.metrics.unheard.increment(unheard);
            self.note_refused(refused);
        }
        if let Some(error) = failed {
            // Some changes after it may have been published. They are published again, if need be by the
            // worker with the next turn.
            return Err(error.into());
        }
        self.failing = None;
        Ok(if is_full { Step::Full } else { Step::Rest })
    }

    /// Publishes these changes, and returns the outcome of each. The first one of each status asks whether a
    /// queue takes it. If none does, the others are not sent: the broker would drop each of them, at a higher
    /// cost than counting the events behind it.
    async fn publish(&self, changes: &[Change]) -> Vec<Result<(), PublishError>> {
        let deadline = Instant::now() + RELAY_TIMEOUT;
        let (mut asked, mut outcomes) = (BTreeMap::new(), Vec::with_capacity(changes.len()));
        for change in changes {
            let Entry::Vacant(entry) = asked.entry(change.report.status) else {
                outcomes.push(None);
                continue;
            };
            let question = vec![Message::change(change).mandatory()];
            let outcome = self.publisher.publish(question, deadline).await;
            entry.insert(outcome.clone());
            outcomes.push(Some(outcome));
        }
        let is_unsent = |place: &usize| {
            outcomes[*place].is_none()
                && asked[&changes[*place].report.status] != Err(PublishError::Unroutable)
        };
        let unsent: Vec<usize> = (0..changes.len()).filter(is_unsent).collect();
        let messages = unsent.iter().map(|place| Message::change(&changes[*place])).collect();
        let sent = self.publisher.publish_each(messages, deadline).await;
        for (place, outcome) in unsent.into_iter().zip(sent) {
            outcomes[place] = Some(outcome);
        }
        outcomes.into_iter().map(|outcome| outcome.unwrap_or(Err(PublishError::Unroutable))).collect()
    }

    fn note_refused(&mut self, changes: u64) {
        if changes == 0 {
            return;
        }
        self.metrics.refused.increment(changes);
        if self.refusals.is_news() {
            tracing::warn!(
                "a queue that is bound to catchall.changes refuses changes, as a full queue does, \
                 and does not get them later"
            );
        }
    }
}

struct Metrics {
    published: Counter,
    unheard: Counter,
    refused: Counter,
    unpublished: Gauge,
    oldest: Gauge,
}

impl Metrics {
    fn register() -> Self {
        Self {
            published: metrics::counter!("catchall_worker_changes_published_total"),
            unheard: metrics::counter!("catchall_worker_changes_unheard_total"),
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
