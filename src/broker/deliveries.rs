//! Messages that the broker has handed out and that are not acknowledged yet.

use std::collections::VecDeque;

use futures::StreamExt;
use futures::stream::BoxStream;
use lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicQosOptions, BasicRejectOptions,
};
use lapin::types::FieldTable;
use lapin::{Channel, Connection, Consumer, Event};

use super::connect::{connect_limited, describe, next_event};
use super::error::BrokerError;
use super::message::{Delivery, EVENTS};
use super::topology::check_topology;
use super::url::{BrokerConfig, MessageLimit};

/// A consumer of the events queue, on its own connection.
///
/// Each message is delivered again, here or elsewhere, unless it is acknowledged through the same
/// `Deliveries`: a tag means nothing on another connection, and dropping this connection returns every
/// unacknowledged message.
pub struct Deliveries {
    config: BrokerConfig,
    channel: Channel,
    consumer: Consumer,
    /// Deliveries to the earlier consumer, which come first.
    earlier: VecDeque<Delivery>,
    /// The tag of the last message that [`next`](Self::next) returned.
    last: u64,
    events: BoxStream<'static, Event>,
    // The connection closes when it is dropped.
    _connection: Connection,
}

impl Deliveries {
    /// Connects under `name` and begins to consume, with at most `prefetch` unacknowledged messages.
    ///
    /// # Errors
    ///
    /// When the broker is not available, or the topology is incomplete.
    pub async fn open(
        config: &BrokerConfig,
        limit: MessageLimit,
        name: &str,
        prefetch: u16,
    ) -> Result<Self, BrokerError> {
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

    /// Stops the delivery of messages until it is [resumed](Self::resume). Messages that the broker has
    /// handed out but not sent return to the queue, and this counts towards the delivery limit. While the
    /// prefetch is used up there are none, so pause before acknowledging.
    ///
    /// # Errors
    ///
    /// When the connection, the channel or the queue is gone. Drop the `Deliveries` too if this future was
    /// dropped.
    pub async fn pause(&mut self) -> Result<(), BrokerError> {
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

    /// Resumes the delivery, with at most `prefetch` messages beside those from before the pause. Returns the
    /// tag of the last one from before: every later message is handed out after this call, because its
    /// consumer did not exist before.
    ///
    /// # Errors
    ///
    /// As [`pause`](Self::pause).
    pub async fn resume(&mut self, prefetch: u16) -> Result<u64, BrokerError> {
        self.consumer =
            consume(&self.channel, prefetch).await.map_err(|error| failed(&self.config, &error))?;
        Ok(self.seen())
    }

    /// The tag of the last message known to have been handed out; 0 if there is none.
    #[must_use]
    pub fn seen(&self) -> u64 {
        self.earlier.back().map_or(self.last, Delivery::tag)
    }

    /// The next message. Cancel-safe.
    ///
    /// # Errors
    ///
    /// When the connection, the channel or the queue is gone. Every unacknowledged message is delivered
    /// again.
    pub async fn next(&mut self) -> Result<Delivery, BrokerError> {
        let delivery = match self.earlier.pop_front() {
            Some(delivery) => delivery,
            None => match self.consumer.next().await {
                Some(Ok(delivery)) => Delivery(delivery),
                Some(Err(error)) => return Err(failed(&self.config, &error)),
                None => {
                    let reason = "the broker ended the delivery of messages";
                    return Err(BrokerError::connection(&self.config.amqp_url, reason));
                }
            },
        };
        // Acknowledging all up to a tag would include a message that never arrived here.
        if delivery.tag() != self.last + 1 {
            let reason = "a message was lost on its way from the broker";
            return Err(BrokerError::connection(&self.config.amqp_url, reason));
        }
        self.last = delivery.tag();
        Ok(delivery)
    }

    /// Waits until the connection is lost. Use it while [`next`](Self::next), which would return the error,
    /// is not polled.
    pub async fn lost(&mut self) -> BrokerError {
        loop {
            if let Event::Error(error) = next_event(&mut self.events).await {
                return failed(&self.config, &error);
            }
        }
    }

    /// Acknowledges every unsettled message up to and including `tag`: the broker deletes them.
    ///
    /// # Errors
    ///
    /// When the connection is gone. The messages are delivered again.
    pub async fn ack_through(&self, tag: u64) -> Result<(), BrokerError> {
        let options = BasicAckOptions { multiple: true };
        self.channel.basic_ack(tag, options).await.map_err(|error| failed(&self.config, &error))
    }

    /// Rejects one message into the queue's own dead-letter exchange, which keeps it without catchall's
    /// reason header.
    ///
    /// # Errors
    ///
    /// When the connection is gone. The message is delivered again.
    pub async fn reject(&self, tag: u64) -> Result<(), BrokerError> {
        let options = BasicRejectOptions { requeue: false };
        self.channel.basic_reject(tag, options).await.map_err(|error| failed(&self.config, &error))
    }
}

async fn consume(channel: &Channel, prefetch: u16) -> lapin::Result<Consumer> {
    // The prefetch applies to consumers that begin after it.
    channel.basic_qos(prefetch, BasicQosOptions::default()).await?;
    channel
        .basic_consume(EVENTS.into(), "".into(), BasicConsumeOptions::default(), FieldTable::default())
        .await
}

fn failed(config: &BrokerConfig, error: &lapin::Error) -> BrokerError {
    BrokerError::of(&config.amqp_url, describe(error), error)
}
