//! Messages handed out by the broker until they are accepted.

use futures::StreamExt;
use futures::stream::BoxStream;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions, BasicRejectOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Connection, Consumer, ErrorKind, Event};
use uuid::Uuid;

use super::publisher::MARK_HEADER;
use super::{Config, EVENTS, Error, check_topology, connect, describe, next_event};

/// A consumer of the events queue on a connection of its own.
///
/// What it has handed out is delivered again, here or elsewhere, unless it is accepted through the same
/// `Deliveries`: a tag means nothing on another connection, and dropping this one hands everything back.
pub struct Deliveries {
    config: Config,
    channel: Channel,
    consumer: Consumer,
    events: BoxStream<'static, Event>,
    // The connection closes when it is dropped.
    _connection: Connection,
}

/// One message, not yet accepted.
#[derive(Debug)]
pub struct Delivery(lapin::message::Delivery);

impl Delivery {
    /// The position of the message among those of its [`Deliveries`].
    #[must_use]
    pub fn tag(&self) -> u64 {
        self.0.delivery_tag
    }

    /// The message's body.
    #[must_use]
    pub fn body(&self) -> &[u8] {
        &self.0.data
    }

    /// The publisher's identity of the message. Some clients send an empty one when none is set.
    #[must_use]
    pub fn message_id(&self) -> Option<&str> {
        set(self.0.properties.message_id().as_ref())
    }

    /// What the publisher says the body is, as in `application/json`.
    #[must_use]
    pub fn content_type(&self) -> Option<&str> {
        set(self.0.properties.content_type().as_ref())
    }

    /// How the publisher says the body is packed, as in `gzip`.
    #[must_use]
    pub fn content_encoding(&self) -> Option<&str> {
        set(self.0.properties.content_encoding().as_ref())
    }

    /// The id of the mark, if the message says that it is one.
    #[must_use]
    pub fn mark(&self) -> Option<Uuid> {
        match self.0.properties.headers().as_ref()?.inner().get(MARK_HEADER)? {
            AMQPValue::LongString(id) => Uuid::try_parse_ascii(id.as_bytes()).ok(),
            _ => None,
        }
    }

    pub(super) fn properties(&self) -> &BasicProperties {
        &self.0.properties
    }

    pub(super) fn routing_key(&self) -> &str {
        self.0.routing_key.as_str()
    }
}

fn set(property: Option<&ShortString>) -> Option<&str> {
    property.map(ShortString::as_str).filter(|text| !text.is_empty())
}

impl Deliveries {
    /// Connects under `name` and begins to consume, with at most `prefetch` messages handed out and not yet
    /// accepted.
    ///
    /// # Errors
    ///
    /// When there is no broker, or the queue is missing.
    pub async fn open(config: &Config, name: &str, prefetch: u16) -> Result<Self, Error> {
        let url = &config.amqp_url;
        let connection = connect(config, name).await?;
        let events = connection.events_listener().boxed();
        check_topology(&connection, url).await?;
        let consuming = async {
            let channel = connection.create_channel().await?;
            channel.basic_qos(prefetch, BasicQosOptions::default()).await?;
            let options = BasicConsumeOptions::default();
            let consumer =
                channel.basic_consume(EVENTS.into(), "".into(), options, FieldTable::default()).await?;
            Ok((channel, consumer))
        };
        let (channel, consumer) = consuming.await.map_err(|error| failed(config, &error))?;
        Ok(Self { config: config.clone(), channel, consumer, events, _connection: connection })
    }

    /// The next message. It may be dropped while it waits.
    ///
    /// # Errors
    ///
    /// When the connection, the channel or the queue is gone. Everything not accepted is delivered again.
    pub async fn next(&mut self) -> Result<Delivery, Error> {
        match self.consumer.next().await {
            Some(Ok(delivery)) => Ok(Delivery(delivery)),
            Some(Err(error)) => Err(failed(&self.config, &error)),
            None => {
                Err(Error::connection(&self.config.amqp_url, "the broker ended the delivery of messages"))
            }
        }
    }

    /// Waits until the connection is lost: for when [`next`](Self::next), which would tell, is not asked for.
    pub async fn lost(&mut self) -> Error {
        loop {
            if let Event::Error(error) = next_event(&mut self.events).await {
                return failed(&self.config, &error);
            }
        }
    }

    /// Accepts every message up to and including `tag` that is not settled yet: the broker forgets them.
    ///
    /// # Errors
    ///
    /// When the connection is gone. The messages are delivered again.
    pub async fn accept_through(&self, tag: u64) -> Result<(), Error> {
        let options = BasicAckOptions { multiple: true };
        self.channel.basic_ack(tag, options).await.map_err(|error| failed(&self.config, &error))
    }

    /// Gives one message to the queue's own dead-letter exchange: kept, but without a reason of ours.
    ///
    /// # Errors
    ///
    /// When the connection is gone. The message is delivered again.
    pub async fn reject(&self, tag: u64) -> Result<(), Error> {
        let options = BasicRejectOptions { requeue: false };
        self.channel.basic_reject(tag, options).await.map_err(|error| failed(&self.config, &error))
    }
}

fn failed(config: &Config, error: &lapin::Error) -> Error {
    if matches!(error.kind(), ErrorKind::ParsingError(_)) {
        return Error::Unparsable;
    }
    Error::connection(&config.amqp_url, describe(error, &config.amqp_url))
}
