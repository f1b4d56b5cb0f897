//! Publishing that returns after the confirm.

use std::pin::pin;
use std::sync::Arc;

use futures::future;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::{AMQPValue, FieldTable, LongString, ShortString};
use lapin::{BasicProperties, Channel, Confirmation, Connection, Event};
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};
use uuid::Uuid;

use super::{Config, DEAD, Delivery, EVENTS, Error, backoff, check_topology, connect, describe, next_event};
use crate::domain_name::DomainName;
use crate::event::IdempotencyKey;
use crate::health::Dependency;

/// AMQP's mark of a message that has to survive a restart of the broker.
const PERSISTENT: u8 = 2;

/// The header of a dead letter that says why it is one.
const REASON_HEADER: &str = "catchall-reason";

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

    /// A message without events that shows, when it arrives, that all before it have been handed out.
    #[must_use]
    pub fn mark(id: Uuid) -> Self {
        let mut headers = FieldTable::default();
        headers.insert(MARK_HEADER.into(), AMQPValue::LongString(id.to_string().into()));
        let mut mark = Self::events(b"[]".into(), None);
        mark.properties = mark.properties.with_headers(headers);
        mark
    }

    /// `delivery` as it came, with the reason why it cannot be read in its headers.
    #[must_use]
    pub fn dead_letter(delivery: &Delivery, reason: &str) -> Self {
        let properties = delivery.properties().clone();
        let mut headers = properties.headers().clone().unwrap_or_default();
        headers.insert(REASON_HEADER.into(), AMQPValue::LongString(LongString::from(reason)));
        Self {
            exchange: DEAD,
            routing_key: delivery.routing_key().into(),
            properties: properties.with_headers(headers).with_delivery_mode(PERSISTENT),
            body: delivery.body().to_vec(),
        }
    }
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
        let mut pending: Vec<&Message> = messages.iter().collect();
        let mut published = false;
        while !pending.is_empty() {
            let Some((channel, connection)) = self.channel(deadline).await else {
                return Err(if published { PublishError::Unconfirmed } else { self.unavailable() });
            };
            published = true;
            let confirms = future::join_all(pending.iter().map(|message| confirmed(&channel, message)));
            let Ok(confirms) = timeout_at(deadline, confirms).await else {
                // A blocked connection goes on when the broker does; any other that is silent is given up,
                // and what lapin still holds of these messages with it.
                if !matches!(*self.link.borrow(), Link::Blocked(_)) {
                    self.condemned.send_replace(connection);
                }
                return Err(PublishError::Unconfirmed);
            };
            let mut unknown = Vec::new();
            for (message, confirm) in pending.into_iter().zip(confirms) {
                match confirm {
                    Ok(Confirmation::Ack(None)) => {}
                    Ok(Confirmation::Nack(_)) => return Err(PublishError::Refused),
                    Ok(Confirmation::Ack(Some(_))) => {
                        // Opening the next connection checks the topology and reports what it lacks.
                        self.condemned.send_replace(connection);
                        return Err(PublishError::Unroutable);
                    }
                    Ok(Confirmation::NotRequested) | Err(_) => unknown.push(message),
                }
            }
            if !unknown.is_empty() {
                self.condemned.send_replace(connection);
                // Until the keeper has seen the verdict, the link still shows the channel that has failed.
                let gone = self.link.wait_for(|link| !matches!(link, Link::Up(_, n) if *n == connection));
                if !matches!(timeout_at(deadline, gone).await, Ok(Ok(_))) {
                    return Err(PublishError::Unconfirmed);
                }
            }
            pending = unknown;
        }
        Ok(())
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
