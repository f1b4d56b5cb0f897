//! The task that owns a connection for publishing.

use std::pin::pin;
use std::time::Duration;

use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use lapin::options::ConfirmSelectOptions;
use lapin::{Channel, Connection, Event};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::connect::{connect, describe, next_event};
use super::error::BrokerError;
use super::pending::{Broken, Confirm, Pending, Publish};
use super::publish_request::PublishRequest;
use super::topology::check_topology;
use super::url::BrokerConfig;
use crate::backoff::backoff;
use crate::health::Dependency;

/// Opens a connection, publishes over it, watches it, and drops it whole on any error.
///
/// Only this task uses the channel. So tags and frames are assigned in the order of the publishes, no two
/// messages can swap their confirms, and no confirm is dropped before it arrives. When a connection ends,
/// unconfirmed messages are published again over the next one, under the same ids.
#[derive(Debug)]
pub(super) struct Supervisor {
    config: BrokerConfig,
    name: String,
    broker: Dependency,
    /// How long a connection may have outstanding confirms and send none.
    silence: Duration,
    queue: mpsc::UnboundedReceiver<PublishRequest>,
    pending: Pending,
}

/// The publisher was dropped, and no caller waits for an answer any more.
struct Gone;

impl Supervisor {
    pub(super) fn new(
        config: BrokerConfig,
        name: String,
        broker: Dependency,
        silence: Duration,
        queue: mpsc::UnboundedReceiver<PublishRequest>,
    ) -> Self {
        Self { config, name, broker, silence, queue, pending: Pending::default() }
    }

    /// Keeps opening connections until the publisher is dropped.
    pub(super) async fn run(mut self) {
        // Only a dropped publisher ends the loop.
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

    /// Runs `work` while no message is published; accepts requests and answers those past their deadlines
    /// meanwhile.
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

    /// Publishes over one connection until it fails, and returns the reason.
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
                        let reply = messages[number].publish(&channel).await.into();
                        Confirm { request, number, published: now, reply }
                    });
                }
            }
            // Lapin writes nothing while the broker blocks the connection, so no confirm can be expected.
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
                    Event::Error(error) => return Ok(describe(&error)),
                    _ => {}
                },
                Some(first) = confirms.next(), if !confirms.is_empty() => {
                    let mut confirmed = vec![first];
                    // Collect all confirms that have arrived before trusting any: see `Pending::settle`.
                    while let Some(Some(confirm)) = confirms.next().now_or_never() {
                        confirmed.push(confirm);
                    }
                    let now = Instant::now();
                    for confirm in &confirmed {
                        pulse.confirmed(confirm.published, now);
                    }
                    match self.pending.settle(confirmed, confirms.is_empty()) {
                        Ok(()) => {}
                        Err(Broken::Returned) => return Ok("it has no queue for a message".into()),
                        Err(Broken::Lost(error)) => return Ok(describe(&error)),
                    }
                }
                request = self.queue.recv() => self.pending.add(request.ok_or(Gone)?),
                () = at(next) => {}
            }
        }
    }
}

/// Waits until a time; forever without one.
async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

async fn open(config: BrokerConfig, name: String) -> Result<(Connection, Channel), BrokerError> {
    let url = &config.amqp_url;
    let failed = |error: lapin::Error| BrokerError::of(url, describe(&error), &error);
    let connection = connect(&config, &name).await?;
    check_topology(&connection, url).await?;
    let channel = connection.create_channel().await.map_err(failed)?;
    channel.confirm_select(ConfirmSelectOptions::default()).await.map_err(failed)?;
    Ok((connection, channel))
}

/// How quickly the broker confirms, and how long it has been silent.
#[derive(Debug)]
struct Pulse {
    /// Confirms that are outstanding.
    owed: usize,
    /// When it last confirmed anything, or when the first outstanding message was sent.
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

    /// Since when confirms are outstanding and none has come.
    fn silent_since(&self) -> Option<Instant> {
        (self.owed > 0).then_some(self.sign_of_life)
    }

    /// How long the next confirm is expected to take. `None` while none is outstanding: only a new message
    /// can tell.
    fn expected(&self) -> Option<Duration> {
        (self.owed > 0).then_some(self.took)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_connection_that_owes_confirms_can_be_silent() {
        let begin = Instant::now();
        let at = |secs| begin + Duration::from_secs(secs);
        let mut pulse = Pulse::new(begin);
        assert_eq!((pulse.silent_since(), pulse.expected()), (None, None));
        pulse.published(at(10));
        pulse.published(at(12));
        assert_eq!(pulse.silent_since(), Some(at(10)), "what waits does not make it older");
        pulse.confirmed(at(10), at(13));
        assert_eq!(pulse.silent_since(), Some(at(13)));
        assert_eq!(pulse.expected(), Some(Duration::from_secs(3)));
        pulse.confirmed(at(12), at(15));
        assert_eq!((pulse.silent_since(), pulse.expected()), (None, None), "only the next message will tell");
        pulse.published(at(20));
        pulse.goes_on(at(30));
        assert_eq!(pulse.silent_since(), Some(at(30)), "it could not confirm while it was blocked");
    }
}
