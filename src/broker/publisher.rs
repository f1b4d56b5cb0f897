//! Publishing that returns after the confirm.

use std::pin::pin;
use std::sync::Arc;

use futures::future;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Confirmation, Connection, Event};
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};
use uuid::Uuid;

use super::letter::{self, Letter};
use super::{Config, DEAD, Delivery, EVENTS, Error, backoff, check_topology, connect, describe, next_event};
use crate::domain_name::DomainName;
use crate::event::IdempotencyKey;
use crate::health::Dependency;

/// AMQP's mark of a message that has to survive a restart of the broker.
pub(super) const PERSISTENT: u8 = 2;

/// The header that makes a message a mark. It is a mark only if the ledger knows its id: nobody else's message
/// can pass for one.
pub(super) const MARK_HEADER: &str = "catchall-mark";

/// One AMQP message, ready to be published.
#[derive(Clone, Debug)]
pub struct Message {
    exchange: &'static str,
    routing_key: ShortString,
    properties: BasicProperties,
    body: Vec<u8>,
}

impl Message {
    /// A message of events. It counts once under `id`, however often it is published or delivered.
    #[must_use]
    pub fn events(body: Vec<u8>, id: Option<IdempotencyKey>) -> Self {
        let properties = BasicProperties::default()
            .with_delivery_mode(PERSISTENT)
            .with_content_type("application/json".into());
        let properties = match id {
            Some(id) => properties.with_message_id(id.to_string().into()),
            None => properties,
        };
        Self { exchange: EVENTS, routing_key: ShortString::default(), properties, body }
    }

    /// The same under the routing key a direct publisher would choose.
    #[must_use]
    pub fn routed_by(mut self, domain: &DomainName) -> Self {
        self.routing_key = domain.as_str().into();
        self
    }

    /// A message without events that shows, when it arrives, that all before it of its class of priorities have been
    /// handed out.
    #[must_use]
    pub fn mark(id: Uuid, priority: Priority) -> Self {
        let mut headers = FieldTable::default();
        headers.insert(MARK_HEADER.into(), AMQPValue::LongString(id.to_string().into()));
        let mut mark = Self::events(b"[]".into(), None);
        mark.properties = mark.properties.with_headers(headers).with_priority(priority as u8);
        mark
    }

    /// A copy of `delivery` for the dead letters: as it came, with the reason why it cannot be read in its
    /// headers, when that was found, and an identity if it has none of its own, so that a replay counts once.
    #[must_use]
    pub fn dead_letter(delivery: &Delivery, reason: &str) -> Self {
        Self {
            exchange: DEAD,
            routing_key: delivery.routing_key().into(),
            properties: letter::buried(delivery.properties(), delivery.message_id(), reason),
            body: delivery.body().to_vec(),
        }
    }

    /// The message that a dead letter was, under its own id or the one it got with its death.
    #[must_use]
    pub fn replay(letter: Letter) -> Self {
        let properties = letter.revived();
        let (routing_key, body) = letter.into_parts();
        Self { exchange: EVENTS, routing_key, properties, body }
    }
}

/// The ends of the scale of priorities, whatever classes the broker makes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Priority {
    /// None is lower. It is not what a message has that names none.
    Lowest = 0,
    /// None is higher: from 4.3 on the broker takes all above 31 for 31.
    Highest = u8::MAX,
}

/// Why messages were not accepted, or are not known to be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// There was no connection that takes messages before the deadline: nothing was published.
    #[error("the broker does not take messages: {0}")]
    Unavailable(Arc<str>),
    /// The confirm did not come before the deadline. The messages may or may not be at the broker.
    #[error("the broker did not confirm in time")]
    Unconfirmed,
    /// The broker refused: the queue is at its length limit. What it did not refuse may be there.
    #[error("the broker refuses messages: the queue is at its limit")]
    Refused,
    /// No queue is bound to the exchange.
    #[error("the broker has no queue bound to the exchange")]
    Unroutable,
}

/// One connection with one confirming channel, kept open by a task of its own.
///
/// Publishing takes `&mut self`, so one task owns the channel: tags and frames are assigned in the order of
/// the calls, and no two publishes can swap their confirms.
#[derive(Debug)]
pub struct Publisher {
    link: watch::Receiver<Link>,
    /// The number of the last connection that was found to be of no more use.
    condemned: watch::Sender<u64>,
}

/// The state of the connection, as its keeper knows it.
#[derive(Clone, Debug)]
enum Link {
    /// There is none, for this reason.
    Down(Arc<str>),
    /// There is one, but the broker reads nothing from it, for this reason.
    Blocked(Arc<str>),
    /// The channel of the connection with this number takes messages.
    Up(Channel, u64),
}

impl Publisher {
    /// Begins to connect under `name` and keeps connected until the publisher is dropped. `broker` is told
    /// whenever messages are taken or not.
    #[must_use]
    pub fn connect(config: Config, name: String, broker: Dependency) -> Self {
        let (state, link) = watch::channel(Link::Down("not connected yet".into()));
        let (condemned, verdicts) = watch::channel(0);
        tokio::spawn(Keeper { config, name, broker, state, verdicts }.keep());
        Self { link, condemned }
    }

    /// Publishes all messages and returns once every one of them is confirmed, on disk on a majority of the
    /// queue's nodes. A message whose fate is lost with a connection is published again under the same id.
    ///
    /// # Errors
    ///
    /// Says why not all are confirmed at the deadline, or sooner when waiting is no use.
    pub async fn publish(&mut self, messages: &[Message], deadline: Instant) -> Result<(), PublishError> {
        self.publish_each(messages, deadline).await.into_iter().collect()
    }

    /// The same, and tells of each message whether it is confirmed, in their order: for messages that stand
    /// each for itself.
    pub async fn publish_each(
        &mut self,
        messages: &[Message],
        deadline: Instant,
    ) -> Vec<Result<(), PublishError>> {
        let mut fates = vec![Err(PublishError::Unconfirmed); messages.len()];
        let mut pending: Vec<usize> = (0..messages.len()).collect();
        let mut published = false;
        while !pending.is_empty() {
            let Some((channel, connection)) = self.channel(deadline).await else {
                if !published {
                    fates.fill(Err(self.unavailable()));
                }
                return fates;
            };
            published = true;
            let confirms = pending.iter().map(|&i| timeout_at(deadline, confirmed(&channel, &messages[i])));
            let confirms = future::join_all(confirms).await;
            if confirms.iter().any(|confirm| matches!(confirm, Ok(Ok(Confirmation::Ack(Some(_)))))) {
                // Lapin may attach what was returned to another message's confirm, so no confirm of them can be
                // believed. Opening the next connection checks the topology and reports what it lacks.
                self.condemned.send_replace(connection);
                for i in pending {
                    fates[i] = Err(PublishError::Unroutable);
                }
                return fates;
            }
            let (mut unknown, mut late, mut refused) = (Vec::new(), false, false);
            for (i, confirm) in pending.into_iter().zip(confirms) {
                match confirm {
                    Ok(Ok(Confirmation::Ack(_))) => fates[i] = Ok(()),
                    Ok(Ok(Confirmation::Nack(_))) => {
                        fates[i] = Err(PublishError::Refused);
                        refused = true;
                    }
                    Ok(Ok(Confirmation::NotRequested) | Err(_)) => unknown.push(i),
                    Err(_) => late = true,
                }
            }
            // A blocked connection goes on when the broker does; any other that is silent is given up, and what
            // lapin still holds of these messages with it.
            if !unknown.is_empty() || late && !matches!(*self.link.borrow(), Link::Blocked(_)) {
                self.condemned.send_replace(connection);
            }
            if late || refused {
                return fates;
            }
            if !unknown.is_empty() {
                // Until the keeper has seen the verdict, the link still shows the channel that has failed.
                let gone = self.link.wait_for(|link| !matches!(link, Link::Up(_, n) if *n == connection));
                if !matches!(timeout_at(deadline, gone).await, Ok(Ok(_))) {
                    return fates;
                }
            }
            pending = unknown;
        }
        fates
    }

    /// Waits until messages are taken, at most until the deadline.
    async fn channel(&mut self, deadline: Instant) -> Option<(Channel, u64)> {
        let up = self.link.wait_for(|link| matches!(link, Link::Up(..)));
        match &*timeout_at(deadline, up).await.ok()?.ok()? {
            Link::Up(channel, connection) => Some((channel.clone(), *connection)),
            Link::Down(_) | Link::Blocked(_) => None,
        }
    }

    fn unavailable(&self) -> PublishError {
        match &*self.link.borrow() {
            Link::Down(reason) | Link::Blocked(reason) => PublishError::Unavailable(Arc::clone(reason)),
            Link::Up(..) => PublishError::Unavailable("it was reached too late".into()),
        }
    }
}

/// The first await writes to the socket, the second is the confirm. `mandatory` makes the broker return
/// what no queue takes instead of confirming that it dropped it.
async fn confirmed(channel: &Channel, message: &Message) -> lapin::Result<Confirmation> {
    let Message { exchange, routing_key, properties, body } = message;
    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    channel
        .basic_publish((*exchange).into(), routing_key.clone(), options, body, properties.clone())
        .await?
        .await
}

/// Keeps a publisher's connection: opens it, watches it, drops it whole when anything is wrong with it.
struct Keeper {
    config: Config,
    name: String,
    broker: Dependency,
    state: watch::Sender<Link>,
    verdicts: watch::Receiver<u64>,
}

impl Keeper {
    async fn keep(self) {
        let mut delays = backoff();
        for number in 1.. {
            let reason = tokio::select! {
                () = self.state.closed() => return,
                opened = self.open() => match opened {
                    Ok((connection, channel)) => {
                        delays = backoff();
                        match self.follow(&connection, &channel, number).await {
                            Some(reason) => reason,
                            None => return,
                        }
                    }
                    Err(error) => error.to_string(),
                }
            };
            self.broker.down(&reason);
            self.state.send_replace(Link::Down(reason.into()));
            tokio::select! {
                () = self.state.closed() => return,
                () = tokio::time::sleep(delays.next().unwrap_or_default()) => {}
            }
        }
    }

    async fn open(&self) -> Result<(Connection, Channel), Error> {
        let url = &self.config.amqp_url;
        let failed = |error: lapin::Error| Error::connection(url, describe(&error, url));
        let connection = connect(&self.config, &self.name).await?;
        check_topology(&connection, url).await?;
        let channel = connection.create_channel().await.map_err(failed)?;
        channel.confirm_select(ConfirmSelectOptions::default()).await.map_err(failed)?;
        Ok((connection, channel))
    }

    /// Reports the state of the connection with this number until it is of no more use, and returns why;
    /// nothing when the publisher itself is gone.
    async fn follow(&self, connection: &Connection, channel: &Channel, number: u64) -> Option<String> {
        let mut events = pin!(connection.events_listener());
        let mut verdicts = self.verdicts.clone();
        self.up(channel, number);
        loop {
            tokio::select! {
                () = self.state.closed() => return None,
                Ok(_) = verdicts.wait_for(|condemned| *condemned >= number) => {
                    return Some("the connection failed, or the broker did not answer in time".into());
                }
                event = next_event(&mut events) => match event {
                    // Lapin writes nothing while blocked: a publish would wait in its buffer for ever.
                    Event::ConnectionBlocked(reason) => {
                        let reason = format!("it blocks publishers ({reason})");
                        self.broker.down(&reason);
                        self.state.send_replace(Link::Blocked(reason.into()));
                    }
                    Event::ConnectionUnblocked => self.up(channel, number),
                    Event::Error(error) => return Some(describe(&error, &self.config.amqp_url)),
                    _ => {}
                }
            }
        }
    }

    fn up(&self, channel: &Channel, number: u64) {
        self.broker.up();
        self.state.send_replace(Link::Up(channel.clone(), number));
    }
}
