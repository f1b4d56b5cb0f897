//! Publishes events directly to the broker.

use std::fmt;
use std::io::ErrorKind as IoErrorKind;
use std::str::FromStr;
use std::time::Duration;

use futures::future::join_all;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions};
use lapin::types::FieldTable;
use lapin::uri::AMQPUri;
use lapin::{
    BasicProperties, Channel, Confirmation, Connection, ConnectionProperties, ErrorKind, Event, ExchangeKind,
};
use tokio::time::timeout;

use crate::body;
use crate::run::{Request, RequestOutcome};
use crate::sender::Transport;
use crate::workload::Names;

/// The exchange events are published to.
const EXCHANGE: &str = "catchall.events";

/// A connection attempt that takes longer has failed.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Seconds between heartbeats, unless the URL says otherwise.
const HEARTBEAT_SECS: u16 = 10;

/// AMQP's number for a message that survives a restart of the broker.
const PERSISTENT: u8 = 2;

/// Where a broker is. It prints without user and password.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct AmqpUrl(AMQPUri);

impl FromStr for AmqpUrl {
    type Err = &'static str;

    fn from_str(url: &str) -> Result<Self, Self::Err> {
        // The parser's own error can hold parts of the URL, and so of the password.
        let mut uri: AMQPUri =
            url.parse().map_err(|_| "not an AMQP URL, as in amqp://user:password@host:5672/%2f")?;
        uri.query.heartbeat.get_or_insert(HEARTBEAT_SECS);
        Ok(Self(uri))
    }
}

impl fmt::Display for AmqpUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let AMQPUri { scheme, authority, vhost, .. } = &self.0;
        write!(f, "{scheme}://{}:{}/{}", authority.host, authority.port, vhost.replace('/', "%2f"))
    }
}

impl fmt::Debug for AmqpUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One connection with one confirming channel, used by one task. Each request is a message.
///
/// After any failure the connection is dropped, and the next requests open another. The sender then publishes
/// messages with an id again, under the same id.
pub(crate) struct DirectPublisher {
    url: AmqpUrl,
    name: String,
    names: Names,
    messages_in_flight: usize,
    timeout: Duration,
    open: Option<Open>,
}

/// An open connection.
struct Open {
    channel: Channel,
    connection: Connection,
    events: BoxStream<'static, Event>,
    blocked: bool,
}

/// Why messages were not all confirmed.
enum NotConfirmed {
    /// The queue is at its limit. The connection can be used further.
    Refused,
    /// The connection cannot be used further.
    Broken(String),
}

impl DirectPublisher {
    /// Opens a connection.
    ///
    /// # Errors
    ///
    /// When the broker cannot be reached, or has no exchange for events.
    pub(crate) async fn connect(
        url: &AmqpUrl,
        number: usize,
        messages_in_flight: usize,
        names: Names,
        timeout: Duration,
    ) -> anyhow::Result<Self> {
        let (url, name) = (url.clone(), format!("catchall-load {number}"));
        let mut publisher = Self { url, name, names, messages_in_flight, timeout, open: None };
        publisher.ready().await.map_err(anyhow::Error::msg)?;
        Ok(publisher)
    }

    /// The open connection, or a new one, once it takes messages.
    async fn ready(&mut self) -> Result<&Channel, String> {
        let lost = self.open.as_mut().is_some_and(Open::is_lost);
        if lost {
            self.open = None;
        }
        let open = match &mut self.open {
            Some(open) => open,
            closed => {
                let opened = timeout(CONNECT_TIMEOUT, Open::new(&self.url, &self.name)).await;
                let opened = opened.unwrap_or_else(|_| Err(format!("no answer within {CONNECT_TIMEOUT:?}")));
                closed.insert(opened.map_err(|reason| format!("{}: {reason}", self.url))?)
            }
        };
        // On a blocked connection a message would be written later, after its outcome has been reported.
        while open.blocked {
            let event = open.events.next().await;
            open.note(event.as_ref());
        }
        Ok(&open.channel)
    }

    async fn publish(&mut self, requests: &[Request], written: &mut bool) -> Result<(), NotConfirmed> {
        let messages: Vec<_> = requests.iter().map(|request| Publication::new(self.names, request)).collect();
        let channel = self.ready().await.map_err(NotConfirmed::Broken)?;
        *written = true;
        // All are polled once, in order, before any is polled again. So no two can swap their confirms.
        let confirms = join_all(messages.into_iter().map(|message| message.publish(channel))).await;
        let mut refused = false;
        // A returned message can be attached to the confirm of another message, so all confirms are checked
        // first.
        for confirm in confirms {
            match confirm {
                Ok(Confirmation::Ack(None)) => {}
                Ok(Confirmation::Nack(None)) => refused = true,
                Ok(Confirmation::Ack(Some(_)) | Confirmation::Nack(Some(_))) => {
                    return Err(NotConfirmed::Broken("the broker has no queue for a message".into()));
                }
                Ok(Confirmation::NotRequested) => {
                    return Err(NotConfirmed::Broken("the broker does not confirm".into()));
                }
                Err(error) => return Err(NotConfirmed::Broken(describe(&error))),
            }
        }
        if refused { Err(NotConfirmed::Refused) } else { Ok(()) }
    }
}

impl Open {
    async fn new(url: &AmqpUrl, name: &str) -> Result<Self, String> {
        let failed = |error: lapin::Error| describe(&error);
        let properties = ConnectionProperties::default().with_connection_name(name.into());
        let connection = Connection::connect_uri(url.0.clone(), properties).await.map_err(failed)?;
        let events = connection.events_listener().boxed();
        let channel = connection.create_channel().await.map_err(failed)?;
        // A passive declaration needs no permission: it only checks that the exchange exists.
        let options = ExchangeDeclareOptions { passive: true, ..ExchangeDeclareOptions::default() };
        let kind = ExchangeKind::Fanout;
        channel
            .exchange_declare(EXCHANGE.into(), kind, options, FieldTable::default())
            .await
            .map_err(failed)?;
        channel.confirm_select(ConfirmSelectOptions::default()).await.map_err(failed)?;
        Ok(Self { channel, connection, events, blocked: false })
    }

    /// Whether the connection was lost since it was last used.
    fn is_lost(&mut self) -> bool {
        while let Some(event) = self.events.next().now_or_never() {
            if matches!(event, None | Some(Event::Error(_))) {
                return true;
            }
            self.note(event.as_ref());
        }
        !self.connection.status().connected() || !self.channel.status().connected()
    }

    fn note(&mut self, event: Option<&Event>) {
        match event {
            Some(Event::ConnectionBlocked(_)) => self.blocked = true,
            // If the connection is lost, publishing fails and says so.
            None | Some(Event::ConnectionUnblocked | Event::Error(_)) => self.blocked = false,
            Some(_) => {}
        }
    }
}

/// One AMQP message, ready to be published.
struct Publication {
    routing_key: String,
    properties: BasicProperties,
    body: Vec<u8>,
}

impl Publication {
    fn new(names: Names, request: &Request) -> Self {
        let properties = BasicProperties::default()
            .with_delivery_mode(PERSISTENT)
            .with_content_type("application/json".into());
        let properties = match request.keys.first() {
            Some(key) => properties.with_message_id(key.to_string().into()),
            None => properties,
        };
        let routing_key = names.canonical(request.draws[0].domain);
        Self { routing_key, properties, body: body::array(names, request) }
    }

    /// The first await writes to the socket, the second is the confirm. With `mandatory` the broker returns a
    /// message that no queue takes, instead of dropping and confirming it.
    async fn publish(self, channel: &Channel) -> lapin::Result<Confirmation> {
        let Self { routing_key, properties, body } = self;
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        channel.basic_publish(EXCHANGE.into(), routing_key.into(), options, &body, properties).await?.await
    }
}

impl Transport for DirectPublisher {
    fn capacity(&self) -> usize {
        self.messages_in_flight
    }

    async fn send(&mut self, requests: &[Request]) -> RequestOutcome {
        let mut written = false;
        let reason = match timeout(self.timeout, self.publish(requests, &mut written)).await {
            Ok(Ok(())) => return RequestOutcome::Acknowledged,
            // The messages that were not refused are at the broker.
            Ok(Err(NotConfirmed::Refused)) => {
                return RequestOutcome::Unknown(
                    "the broker refuses messages: the queue is at its limit".into(),
                );
            }
            Ok(Err(NotConfirmed::Broken(reason))) => reason,
            Err(_) if written => "the broker did not confirm in time".into(),
            Err(_) => "the broker does not take messages".into(),
        };
        self.open = None;
        if written { RequestOutcome::Unknown(reason) } else { RequestOutcome::Unsent(reason) }
    }
}

/// A short description of an error.
fn describe(error: &lapin::Error) -> String {
    match error.kind() {
        ErrorKind::IOError(io) if io.kind() == IoErrorKind::ConnectionRefused => "connection refused".into(),
        ErrorKind::IOError(io) => io.to_string(),
        ErrorKind::ProtocolError(amqp) => amqp.get_message().to_string(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_prints_without_user_and_password() {
        let url: AmqpUrl = "amqps://alice:s3cret@broker:5671/%2f?heartbeat=30".parse().unwrap();
        assert_eq!(
            (url.to_string(), format!("{url:?}")),
            (format!("{url}"), "amqps://broker:5671/%2f".into())
        );
        assert_eq!(url.0.query.heartbeat, Some(30));
        let error = "http://alice:s3cret@broker".parse::<AmqpUrl>().unwrap_err();
        assert!(!error.contains("s3cret"), "{error}");
    }

    #[test]
    fn the_exchange_is_the_products() {
        assert_eq!(EXCHANGE, catchall::broker::EVENTS);
    }
}
