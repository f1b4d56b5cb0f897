//! The exchanges and queues that the broker must have, as `rabbitmq/definitions.json` declares them.

use lapin::options::{ExchangeDeclareOptions, QueueDeclareOptions};
use lapin::protocol::{AMQPErrorKind, AMQPSoftError};
use lapin::types::FieldTable;
use lapin::{Channel, Connection, ErrorKind, ExchangeKind};

use super::connect::describe;
use super::error::BrokerError;
use super::message::{CHANGES, DEAD, EVENTS};
use super::url::AmqpUrl;

/// Checks that these exchanges and queues exist, by passive declarations, which need no configure permission.
/// A missing object makes the broker close the channel, so this opens its own.
pub(super) async fn check_topology(connection: &Connection, url: &AmqpUrl) -> Result<(), BrokerError> {
    let failed = |error: &lapin::Error| BrokerError::of(url, describe(error), error);
    let channel = connection.create_channel().await.map_err(|error| failed(&error))?;
    let missing = |kind, name| {
        move |error: lapin::Error| {
            if is_not_found(&error) {
                BrokerError::Missing { url: url.to_string(), kind, name }
            } else {
                failed(&error)
            }
        }
    };
    for name in [EVENTS, DEAD, CHANGES] {
        exchange(&channel, name).await.map_err(missing("exchange", name))?;
    }
    for name in [EVENTS, DEAD] {
        queue(&channel, name).await.map_err(missing("queue", name))?;
    }
    channel.close(200, "checked".into()).await.map_err(|error| failed(&error))
}

async fn exchange(channel: &Channel, name: &str) -> lapin::Result<()> {
    let options = ExchangeDeclareOptions { passive: true, ..ExchangeDeclareOptions::default() };
    channel.exchange_declare(name.into(), ExchangeKind::Fanout, options, FieldTable::default()).await
}

async fn queue(channel: &Channel, name: &str) -> lapin::Result<()> {
    let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    channel.queue_declare(name.into(), options, FieldTable::default()).await.map(drop)
}

fn is_not_found(error: &lapin::Error) -> bool {
    matches!(error.kind(), ErrorKind::ProtocolError(amqp)
        if matches!(amqp.kind(), AMQPErrorKind::Soft(AMQPSoftError::NOTFOUND)))
}
