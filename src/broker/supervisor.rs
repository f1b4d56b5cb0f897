//! The task that owns a connection for publishing.

use std::collections::{BTreeMap, HashSet};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use lapin::options::ConfirmSelectOptions;
use lapin::types::ShortString;
use lapin::{Channel, Confirmation, Connection, Event};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};

use super::publisher::{Message, Outcomes, PublishError, Request, confirmed};
use super::{Config, Error, backoff, check_topology, connect, describe, next_event};
use crate::health::Dependency;

/// Opens a connection, publishes over it, watches it, and drops it whole when anything is wrong with it.
///
/// Everything that happens on the channel happens in this one task: tags and frames are assigned in the order of the
/// publishes, so that no two of them can swap their confirms, and no confirm is dropped before it has come. What was
/// not confirmed when a connection ends is published again over the next one, under the same ids.
#[derive(Debug)]
pub(super) struct Supervisor {
    config: Config,
    name: String,
    broker: Dependency,
    /// How long a connection may owe confirms without sending any.
    silence: Duration,
    queue: mpsc::UnboundedReceiver<Request>,
    pending: Pending,
}

/// The publisher was dropped, and nobody waits for an answer any more.
struct Gone;

impl Supervisor {
    pub(super) fn new(
        config: Config,
        name: String,
        broker: Dependency,
        silence: Duration,
        queue: mpsc::UnboundedReceiver<Request>,
    ) -> Self {
        Self { config, name, broker, silence, queue, pending: Pending::default() }
    }

    /// One connection after the other, until the publisher is gone.
    pub(super) async fn run(mut self) {
        // It returns nothing but that.
        let Gone = self.supervise().await;
    }

    async fn supervise(&mut self) -> Gone {
        let mut delays = backoff();
        loop {
            let opening = open(self.config.clone(), self.name.clone());
            let reason = match self.meanwhile(opening).await {
                Err(gone) => return gone,
                Ok(Ok((connection, channel))) => {
                    delays = backoff();
                    match self.serve(&connection, &channel).await {
                        Ok(reason) => reason,
                        Err(gone) => return gone,
                    }
                }
                Ok(Err(error)) => error.to_string(),
            };
            self.broker.down(&reason);
            self.pending.reason = reason.into();
            self.pending.unsend();
            let delay = tokio::time::sleep(delays.next().unwrap_or_default());
            if let Err(gone) = self.meanwhile(delay).await {
                return gone;
            }
        }
    }

    /// Does something else than publishing, while requests come and their deadlines pass.
    async fn meanwhile<T>(&mut self, work: impl Future<Output = T>) -> Result<T, Gone> {
        let mut work = pin!(work);
        loop {
            let next = self.pending.next_deadline();
            tokio::select! {
                done = &mut work => return Ok(done),
                request = self.queue.recv() => self.pending.add(request.ok_or(Gone)?),
                () = at(next) => self.pending.expire(Instant::now()),
            }
        }
    }

    /// Publishes over one connection until it is of no more use, and returns why.
    async fn serve(&mut self, connection: &Connection, channel: &Channel) -> Result<String, Gone> {
        let mut events = pin!(connection.events_listener());
        let mut confirms = FuturesUnordered::new();
        let mut pulse = Pulse::new(Instant::now());
        let mut blocked = false;
        self.broker.up();
        loop {
            let now = Instant::now();
            self.pending.expire(now);
            if !blocked {
                for Publish { request, number, messages } in self.pending.send(now, pulse.expected()) {
                    let channel = channel.clone();
                    pulse.published(now);
                    confirms.push(async move {
                        let confirmed = confirmed(&channel, &messages[number]).await;
                        Confirm { request, number, published: now, confirmed }
                    });
                }
            }
            // Lapin writes nothing while the broker blocks the connection, so no confirm is owed.
            let silent = pulse.silent_since().filter(|_| !blocked).map(|since| since + self.silence);
            if silent.is_some_and(|end| end <= now) {
                return Ok(format!("it has confirmed nothing for {:?}", self.silence));
            }
            let next = self.pending.next_deadline().into_iter().chain(silent).min();
            tokio::select! {
                biased;
                event = next_event(&mut events) => match event {
                    Event::ConnectionBlocked(reason) => {
                        let reason = format!("it blocks publishers ({reason})");
                        self.broker.down(&reason);
                        self.pending.reason = reason.into();
                        blocked = true;
                    }
                    Event::ConnectionUnblocked => {
                        self.broker.up();
                        pulse.goes_on(Instant::now());
                        blocked = false;
                    }
                    Event::Error(error) => return Ok(describe(&error, &self.config.amqp_url)),
                    _ => {}
                },
                Some(first) = confirms.next(), if !confirms.is_empty() => {
                    let mut confirmed = vec![first];
                    // All that have come, before any of them is believed: see `Pending::settle`.
                    while let Some(Some(confirm)) = confirms.next().now_or_never() {
                        confirmed.push(confirm);
                    }
                    let now = Instant::now();
                    confirmed.iter().for_each(|confirm| pulse.confirmed(confirm.published, now));
                    match self.pending.settle(confirmed) {
                        Ok(()) => {}
                        Err(Broken::Returned) => return Ok("it has no queue for a message".into()),
                        Err(Broken::Lost(error)) => return Ok(describe(&error, &self.config.amqp_url)),
                    }
                }
                request = self.queue.recv() => self.pending.add(request.ok_or(Gone)?),
                () = at(next) => {}
            }
        }
    }
}

/// Waits for a moment that may never come.
async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

async fn open(config: Config, name: String) -> Result<(Connection, Channel), Error> {
    let url = &config.amqp_url;
    let failed = |error: lapin::Error| Error::connection(url, describe(&error, url));
    let connection = connect(&config, &name).await?;
    check_topology(&connection, url).await?;
    let channel = connection.create_channel().await.map_err(failed)?;
    channel.confirm_select(ConfirmSelectOptions::default()).await.map_err(failed)?;
    Ok((connection, channel))
}

/// How quickly the broker confirms, and whether it does.
#[derive(Debug)]
struct Pulse {
    /// Confirms it owes.
    owed: usize,
    /// When it last confirmed anything, or began to owe.
    sign_of_life: Instant,
    /// How long the last confirm took.
    took: Duration,
}

impl Pulse {
    fn new(now: Instant) -> Self {
        Self { owed: 0, sign_of_life: now, took: Duration::ZERO }
    }

    fn published(&mut self, now: Instant) {
        if self.owed == 0 {
            self.sign_of_life = now;
        }
        self.owed += 1;
    }

    fn confirmed(&mut self, published: Instant, now: Instant) {
        self.owed = self.owed.saturating_sub(1);
        self.took = now.duration_since(published);
        self.sign_of_life = now;
    }

    fn goes_on(&mut self, now: Instant) {
        self.sign_of_life = now;
    }

    /// Since when it owes confirms and has sent none.
    fn silent_since(&self) -> Option<Instant> {
        (self.owed > 0).then_some(self.sign_of_life)
    }

    /// How long the next confirm can be expected to take; nothing where only the next message will tell.
    fn expected(&self) -> Option<Duration> {
        (self.owed > 0).then_some(self.took)
    }
}

/// A message that is to be published.
struct Publish {
    request: u64,
    number: usize,
    messages: Arc<[Message]>,
}

/// What came of one message.
struct Confirm {
    request: u64,
    number: usize,
    published: Instant,
    confirmed: lapin::Result<Confirmation>,
}

/// Why a connection cannot be used further.
enum Broken {
    /// A message came back, because no queue takes it.
    Returned,
    /// It, or its channel, is gone.
    Lost(lapin::Error),
}

/// The requests that have no answer yet, by number.
#[derive(Debug)]
struct Pending {
    requests: BTreeMap<u64, Unanswered>,
    next: u64,
    /// Why nothing can be published, when nothing can.
    reason: Arc<str>,
}

#[derive(Debug)]
struct Unanswered {
    messages: Arc<[Message]>,
    /// What became of each message, once that is known.
    outcomes: Vec<Option<Result<(), PublishError>>>,
    deadline: Instant,
    answer: oneshot::Sender<Outcomes>,
    /// Whether it was published over the present connection.
    sent: bool,
    /// Whether it was ever published.
    published: bool,
}

impl Default for Pending {
    fn default() -> Self {
        Self { requests: BTreeMap::new(), next: 0, reason: "not connected yet".into() }
    }
}

impl Pending {
    fn add(&mut self, Request { messages, deadline, answer }: Request) {
        let outcomes = vec![None; messages.len()];
        let messages = messages.into();
        let request = Unanswered { messages, outcomes, deadline, answer, sent: false, published: false };
        self.requests.insert(self.next, request);
        self.next += 1;
        self.answer_complete(self.next - 1);
    }

    fn next_deadline(&self) -> Option<Instant> {
        self.requests.values().map(|request| request.deadline).min()
    }

    /// What is to be published now. A request that cannot be confirmed before its deadline, as confirms go, is refused
    /// instead: it is certain then that nothing of it was counted.
    fn send(&mut self, now: Instant, expected: Option<Duration>) -> Vec<Publish> {
        let mut publishes = Vec::new();
        let mut too_late = Vec::new();
        for (&number, unsent) in self.requests.iter_mut().filter(|(_, request)| !request.sent) {
            match expected {
                Some(expected) if !unsent.published && now + expected > unsent.deadline => {
                    too_late.push((number, expected));
                }
                _ => {
                    (unsent.sent, unsent.published) = (true, true);
                    let unknown = unsent.outcomes.iter().enumerate().filter(|(_, outcome)| outcome.is_none());
                    publishes.extend(unknown.map(|(message, _)| Publish {
                        request: number,
                        number: message,
                        messages: Arc::clone(&unsent.messages),
                    }));
                }
            }
        }
        for (number, expected) in too_late {
            let reason = format!("it takes {expected:.1?} to confirm, longer than this may wait");
            self.answer(number, &PublishError::Unavailable(reason.into()));
        }
        publishes
    }

    /// The connection is gone: what has no answer is published over the next one.
    fn unsend(&mut self) {
        self.requests.values_mut().for_each(|request| request.sent = false);
    }

    /// Answers those whose time is over.
    fn expire(&mut self, now: Instant) {
        let late = self.requests.iter().filter(|(_, request)| request.deadline <= now);
        let late: Vec<(u64, bool)> = late.map(|(&number, request)| (number, request.published)).collect();
        for (number, published) in late {
            let error = if published {
                PublishError::Unconfirmed
            } else {
                PublishError::Unavailable(Arc::clone(&self.reason))
            };
            self.answer(number, &error);
        }
    }

    /// Takes confirms that have come.
    ///
    /// Lapin hands a returned message to the confirm that comes next, whosever that is, and its own confirm then looks
    /// like any other. It never comes earlier, though: among the confirms that have come by then, or have come before,
    /// is the one with the returned message. So all are looked at before one is believed, and with the first returned
    /// message the connection ends.
    fn settle(&mut self, confirms: Vec<Confirm>) -> Result<(), Broken> {
        let returned: HashSet<Option<ShortString>> = confirms
            .iter()
            .filter_map(|confirm| match &confirm.confirmed {
                Ok(Confirmation::Ack(Some(message)) | Confirmation::Nack(Some(message))) => {
                    Some(message.properties.message_id().clone())
                }
                _ => None,
            })
            .collect();
        if !returned.is_empty() {
            self.give_up(&returned);
            return Err(Broken::Returned);
        }
        let mut lost = None;
        for Confirm { request, number, confirmed, .. } in confirms {
            let outcome = match confirmed {
                Ok(Confirmation::Ack(_)) => Ok(()),
                Ok(Confirmation::Nack(_)) => Err(PublishError::Refused),
                Ok(Confirmation::NotRequested) => Err(PublishError::Unconfirmed),
                Err(error) => {
                    lost = Some(error);
                    continue;
                }
            };
            // It is not there if its time was over before.
            if let Some(unanswered) = self.requests.get_mut(&request) {
                unanswered.outcomes[number] = Some(outcome);
                self.answer_complete(request);
            }
        }
        lost.map_or(Ok(()), |error| Err(Broken::Lost(error)))
    }

    /// Answers all that was published over a connection on which messages with these ids were returned. Of the others
    /// nothing is known.
    fn give_up(&mut self, returned: &HashSet<Option<ShortString>>) {
        let sent: Vec<u64> =
            self.requests.iter().filter(|(_, request)| request.sent).map(|(&number, _)| number).collect();
        for number in sent {
            let Some(request) = self.requests.get_mut(&number) else { continue };
            for (message, outcome) in request.messages.iter().zip(&mut request.outcomes) {
                if message.id().is_some_and(|id| returned.contains(&Some(id.clone()))) {
                    *outcome = Some(Err(PublishError::Unroutable));
                }
            }
            self.answer(number, &PublishError::Unconfirmed);
        }
    }

    fn answer_complete(&mut self, number: u64) {
        if self.requests.get(&number).is_some_and(|request| request.outcomes.iter().all(Option::is_some)) {
            self.answer(number, &PublishError::Unconfirmed);
        }
    }

    /// Answers a request; `unknown` becomes of the messages that have no outcome.
    fn answer(&mut self, number: u64, unknown: &PublishError) {
        if let Some(Unanswered { outcomes, answer, .. }) = self.requests.remove(&number) {
            let outcomes = outcomes.into_iter().map(|outcome| outcome.unwrap_or(Err(unknown.clone())));
            // Nobody is left to hear it when its maker has gone.
            let _ = answer.send(outcomes.collect());
        }
    }
}
