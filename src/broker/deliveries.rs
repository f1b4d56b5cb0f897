//! Messages handed out by the broker until they are accepted.

use std::collections::VecDeque;

use futures::StreamExt;
use futures::stream::BoxStream;
use lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicQosOptions, BasicRejectOptions,
};
use lapin::types::FieldTable;
use lapin::{Channel, Connection, Consumer, Event};

use super::connect::{connect_limited, describe, next_event};
use super::error::Error;
use super::message::Delivery;
use super::topology::{EVENTS, check_topology};
use super::url::{Config, MessageLimit};

/// A consumer of the events queue on a connection of its own.
///
/// What it has handed out is delivered again, here or elsewhere, unless it is accepted through the same
/// `Deliveries`: a tag means nothing on another connection, and dropping this one hands everything back.
pub struct Deliveries {
    config: Config,
    channel: Channel,
    consumer: Consumer,
    /// What an earlier consumer was handed, which comes first.
    earlier: VecDeque<Delivery>,
    /// The tag of the last message that was taken from here.
    last: u64,
    events: BoxStream<'static, Event>,
    // The connection closes when it is dropped.
    _connection: Connection,
}

impl Deliveries {
    /// Connects under `name` and begins to consume, with at most `prefetch` messages handed out and not yet
    /// accepted.
    ///
    /// # Errors
    ///
    /// When there is no broker, or the queue is missing.
    pub async fn open(
        config: &Config,
        limit: MessageLimit,
        name: &str,
        prefetch: u16,
    ) -> Result<Self, Error> {
        let url = &config.amqp_url;
        let connection = connect_limited(config, name, limit.max_message_bytes).await?;
        let events = connection.events_listener().boxed();
        check_topology(&connection, url).await?;
        let consuming = async {
            let channel = connection.create_channel().await?;
            let consumer = consume(&channel, prefetch).await?;
            Ok((channel, consumer))
        };
        let (channel, consumer) = consuming.await.map_err(|error| failed(config, &error))?;
        let (config, earlier) = (config.clone(), VecDeque::new());
        Ok(Self { config, channel, consumer, earlier, last: 0, events, _connection: connection })
    }

    /// Lets nothing more be handed out until this is [resumed](Self::resume). What the broker has handed out and not sent
    /// goes back to the queue, and counts towards the delivery limit: it is none while all that the prefetch allows is in
    /// our hands, so do this before accepting some of it.
    ///
    /// # Errors
    ///
    /// When the connection, the channel or the queue is gone, and so it is taken to be when this was dropped.
    pub async fn pause(&mut self) -> Result<(), Error> {
        let Self { config, channel, consumer, earlier, .. } = self;
        let pausing = async {
            channel.basic_cancel(consumer.tag(), BasicCancelOptions::default()).await?;
            while let Some(delivery) = consumer.next().await {
                earlier.push_back(Delivery(delivery?));
            }
            Ok(())
        };
        pausing.await.map_err(|error| failed(config, &error))
    }

    /// Lets messages be handed out again, at most `prefetch` beside those that were before the pause. Returns the tag of
    /// the last of those: every later one is handed out after this was called, because its consumer did not exist
    /// before.
    ///
    /// # Errors
    ///
    /// As [`pause`](Self::pause).
    pub async fn resume(&mut self, prefetch: u16) -> Result<u64, Error> {
        self.consumer =
            consume(&self.channel, prefetch).await.map_err(|error| failed(&self.config, &error))?;
        Ok(self.seen())
    }

    /// The tag of the last message that is known to have been handed out; none has 0.
    #[must_use]
    pub fn seen(&self) -> u64 {
        self.earlier.back().map_or(self.last, Delivery::tag)
    }

    /// The next message. It may be dropped while it waits.
    ///
    /// # Errors
    ///
    /// When the connection, the channel or the queue is gone. Everything not accepted is delivered again.
    pub async fn next(&mut self) -> Result<Delivery, Error> {
        let delivery = match self.earlier.pop_front() {
            Some(delivery) => delivery,
            None => match self.consumer.next().await {
                Some(Ok(delivery)) => Delivery(delivery),
                Some(Err(error)) => return Err(failed(&self.config, &error)),
                None => {
                    let reason = "the broker ended the delivery of messages";
                    return Err(Error::connection(&self.config.amqp_url, reason));
                }
            },
        };
        // An acceptance of all up to a tag would take one along that was never seen here.
        if delivery.tag() != self.last + 1 {
            let reason = "a message was lost on its way from the broker";
            return Err(Error::connection(&self.config.amqp_url, reason));
        }
        self.last = delivery.tag();
        Ok(delivery)
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
    pub async fn ack_through(&self, tag: u64) -> Result<(), Error> {
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

async fn consume(channel: &Channel, prefetch: u16) -> lapin::Result<Consumer> {
    // It is for consumers that begin after it.
    channel.basic_qos(prefetch, BasicQosOptions::default()).await?;
    channel
        .basic_consume(EVENTS.into(), "".into(), BasicConsumeOptions::default(), FieldTable::default())
        .await
}

fn failed(config: &Config, error: &lapin::Error) -> Error {
    Error::connection(&config.amqp_url, describe(error, &config.amqp_url))
}
