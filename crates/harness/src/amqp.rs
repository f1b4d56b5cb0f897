//! A client of the broker.

use std::time::{Duration, Instant};

use lapin::options::{
    BasicGetOptions, BasicNackOptions, BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions,
};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties};

/// RabbitMQ says that a quorum queue has no messages when it has not heard from it within 250 ms. A zero that
/// took longer than this is not believed.
const TOO_BUSY: Duration = Duration::from_millis(200);

/// A plain AMQP client: one connection with one confirming channel.
pub struct AmqpClient {
    channel: Channel,
    _connection: Connection,
}

impl AmqpClient {
    /// Connects to the broker.
    ///
    /// # Panics
    ///
    /// When that fails.
    pub async fn connect(url: &str) -> Self {
        let connection = Connection::connect(url, ConnectionProperties::default()).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
        Self { channel, _connection: connection }
    }

    /// Publishes a message of events as the documentation describes, and waits for the confirm.
    pub async fn publish(&self, body: &[u8], message_id: Option<&str>) {
        let properties =
            BasicProperties::default().with_delivery_mode(2).with_content_type("application/json".into());
        let properties = match message_id {
            Some(id) => properties.with_message_id(id.into()),
            None => properties,
        };
        self.publish_with(body, properties).await;
    }

    /// Publishes with any properties.
    pub async fn publish_with(&self, body: &[u8], properties: BasicProperties) {
        self.publish_to(catchall::broker::EVENTS, body, properties).await;
    }

    /// Publishes to any exchange.
    ///
    /// # Panics
    ///
    /// When the broker refuses.
    pub async fn publish_to(&self, exchange: &str, body: &[u8], properties: BasicProperties) {
        let options = BasicPublishOptions { mandatory: true, ..Default::default() };
        let confirm =
            self.channel.basic_publish(exchange.into(), "any.key".into(), options, body, properties);
        assert_eq!(confirm.await.unwrap().await.unwrap(), Confirmation::Ack(None));
    }

    /// How many messages wait in a queue.
    ///
    /// # Panics
    ///
    /// When the broker refuses.
    pub async fn waiting(&self, queue: &str) -> u32 {
        loop {
            let asked = Instant::now();
            let options = QueueDeclareOptions { passive: true, ..Default::default() };
            let declared = self.channel.queue_declare(queue.into(), options, FieldTable::default());
            let count = declared.await.unwrap().message_count();
            if count > 0 || asked.elapsed() < TOO_BUSY {
                return count;
            }
        }
    }

    /// Takes a message from the dead-letter queue: its body, its headers and its properties.
    pub async fn dead_letter(&self) -> Option<(Vec<u8>, FieldTable, BasicProperties)> {
        self.take(catchall::broker::DEAD).await
    }

    /// Takes a message from a queue.
    ///
    /// # Panics
    ///
    /// When the broker refuses.
    pub async fn take(&self, queue: &str) -> Option<(Vec<u8>, FieldTable, BasicProperties)> {
        let options = BasicGetOptions { no_ack: true };
        let message = self.channel.basic_get(queue.into(), options).await.unwrap()?;
        let properties = message.delivery.properties.clone();
        let headers = properties.headers().clone().unwrap_or_default();
        Some((message.delivery.data, headers, properties))
    }

    /// Takes a message from a queue and returns it, as a worker does that ends before it acknowledges.
    ///
    /// # Panics
    ///
    /// When the broker refuses.
    pub async fn give_back(&self, queue: &str) -> bool {
        let taken = self.channel.basic_get(queue.into(), BasicGetOptions::default()).await.unwrap();
        let Some(message) = taken else { return false };
        let options = BasicNackOptions { requeue: true, ..Default::default() };
        self.channel.basic_nack(message.delivery.delivery_tag, options).await.unwrap();
        true
    }
}
