//! RabbitMQ, the only place that knows it: where it is, what has to exist there, and how to connect.
//!
//! [`Publisher`] returns after the confirm, [`Deliveries`] hands out what has to be accepted. Each holds a
//! connection of its own: a broker that is short of memory or disk stops reading from connections that
//! publish, and must not stop the acknowledgements that would relieve it. Lapin's automatic recovery stays
//! off (it does not cover channel errors and has lost acknowledgements); what breaks is dropped whole and
//! opened again under this module's own supervision.

mod content;
mod frames;
mod stream;
mod dead_letters;
mod deliveries;
mod letter;
mod pending;
mod publisher;
mod supervisor;

use std::fmt;
use std::net::Shutdown;
use std::str::FromStr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use futures::{Stream, StreamExt, future};
use lapin::options::{ExchangeDeclareOptions, QueueDeclareOptions};
use lapin::protocol::{AMQPErrorKind, AMQPSoftError};
use lapin::tcp::TLSConfig;
use lapin::types::FieldTable;
use lapin::uri::{AMQPScheme, AMQPUri};
use lapin::{AsyncTcpStream, Channel, Connection, ConnectionProperties, ErrorKind, Event, ExchangeKind};
use socket2::SockRef;
use tokio::time::timeout;

use frames::FrameFilter;
use stream::{Filtered, Wire};

pub use dead_letters::{DeadLetters, Place};
pub use deliveries::{Deliveries, Delivery};
pub use letter::{Letter, Timestamp};
pub use publisher::{Message, Priority, PublishError, Publisher};

/// The exchange events are published to, and the queue they wait in.
pub const EVENTS: &str = "catchall.events";

/// The exchange unreadable messages go to, and the queue they are kept in.
pub const DEAD: &str = "catchall.dead";

/// A connection attempt that takes longer, in milliseconds, has failed unless the URL says otherwise: it only has
/// to cross a network and log in.
const CONNECT_TIMEOUT_MS: u64 = 10_000;

/// Seconds between heartbeats unless the URL says otherwise. A peer that is gone without a word is noticed
/// after twice that; RabbitMQ advises against less than 5.
const HEARTBEAT_SECS: u16 = 10;

/// Most bytes of a frame unless the URL says otherwise, which is also what RabbitMQ takes. The client library's two
/// buffers for a connection hold 32 frames each.
const FRAME_MAX: u32 = 128 << 10;

/// How soon a lost connection is tried again, and how seldom at most. The jitter keeps a fleet of services
/// from coming back in step.
pub(crate) fn backoff() -> impl Iterator<Item = Duration> + use<> {
    ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(100))
        .with_max_delay(Duration::from_secs(3))
        .with_jitter()
        .without_max_times()
        .build()
}

/// Where the broker is.
#[derive(Clone, Debug, clap::Args)]
#[group(skip)]
pub struct Config {
    /// Where RabbitMQ is: amqp://USER:PASSWORD@HOST:PORT/VHOST, or amqps:// for TLS; the vhost / is written %2f
    #[arg(long, env = "CATCHALL_AMQP_URL", value_name = "URL", hide_env_values = true)]
    pub amqp_url: Url,
}

/// An AMQP URL. It prints without user and password.
#[derive(Clone, PartialEq, Eq)]
pub struct Url(AMQPUri);

impl FromStr for Url {
    type Err = String;

    fn from_str(url: &str) -> Result<Self, Self::Err> {
        // The parser's own error is not repeated: it can hold parts of the URL, and so of the password.
        let mut uri: AMQPUri =
            url.parse().map_err(|_| "not an AMQP URL, as in amqp://user:password@host:5672/%2f")?;
        uri.query.heartbeat.get_or_insert(HEARTBEAT_SECS);
        uri.query.connection_timeout.get_or_insert(CONNECT_TIMEOUT_MS);
        uri.query.frame_max.get_or_insert(FRAME_MAX);
        Ok(Self(uri))
    }
}

impl Url {
    /// How long an attempt to connect may take.
    fn patience(&self) -> Duration {
        Duration::from_millis(self.0.query.connection_timeout.unwrap_or(CONNECT_TIMEOUT_MS))
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let AMQPUri { scheme, authority, vhost, .. } = &self.0;
        write!(f, "{scheme}://{}:{}/{}", authority.host, authority.port, vhost.replace('/', "%2f"))
    }
}

impl fmt::Debug for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// How large a message may be that is read.
#[derive(Clone, Copy, Debug, clap::Args)]
#[group(skip)]
pub struct MessageLimit {
    /// Most bytes a message's body may have to be read. A larger one is never in memory, and becomes or stays a dead
    /// letter. The broker should refuse what is larger: see `max_message_size` in rabbitmq/rabbitmq.conf. ingest writes
    /// messages of up to 400 kB
    #[arg(long, env = "CATCHALL_MAX_MESSAGE_BYTES", value_name = "BYTES", default_value_t = 1 << 20, value_parser = clap::value_parser!(u32).range(512 << 10..=512 << 20))]
    pub max_message_bytes: u32,
}

/// Why the broker cannot be used.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// There is no connection, or it was lost.
    #[error("{url}: {reason}")]
    Connection {
        /// Where the broker was looked for, without the password.
        url: String,
        /// What lapin said.
        reason: String,
    },
    /// The broker is there, but the topology is not.
    #[error(
        "{url} has no {kind} {name:?}: create it with \
         `rabbitmqctl import_definitions rabbitmq/definitions.json`"
    )]
    Missing {
        /// Where it was looked for, without the password.
        url: String,
        /// `exchange` or `queue`.
        kind: &'static str,
        /// Its name.
        name: &'static str,
    },
}

impl Error {
    fn connection(url: &Url, reason: impl fmt::Display) -> Self {
        Self::Connection { url: url.to_string(), reason: reason.to_string() }
    }
}

/// Opens a connection under `name`, which the broker's management pages show.
async fn connect(config: &Config, name: &str) -> Result<Connection, Error> {
    // What is returned to a publisher is not looked at.
    connect_limited(config, name, 0).await
}

/// The same, where bodies of messages are read that are no larger than this.
///
/// Lapin runs the attempt on a thread of its own and goes on with it when it is dropped: a peer that takes
/// connections and then says nothing would collect threads. So the socket is kept at hand, to be shut when the
/// attempt is given up.
async fn connect_limited(config: &Config, name: &str, largest_body: u32) -> Result<Connection, Error> {
    let url = &config.amqp_url;
    let properties = ConnectionProperties::default().with_connection_name(name.into());
    let socket = Arc::new(OnceLock::new());
    let opened = Arc::clone(&socket);
    let attempt = Connection::connector(
        url.0.clone(),
        stream::runtime(),
        async move |uri, runtime| {
            let AMQPUri { scheme, authority, query, .. } = uri;
            let address = runtime.to_socket_addrs((authority.host.clone(), authority.port));
            let wire = Wire::connect(&stream::reactor(), address).await?;
            if let AsyncTcpStream::Plain(wire) = &wire {
                // Set once: there is one attempt.
                let _ = opened.set(SockRef::from(wire.get_ref()).try_clone()?);
            }
            let wire = match scheme {
                AMQPScheme::AMQP => wire,
                AMQPScheme::AMQPS => wire.into_tls(&authority.host, TLSConfig::default()).await?,
            };
            let frame_max = query.frame_max.unwrap_or(FRAME_MAX);
            let filter = FrameFilter::new(largest_body.into(), frame_max as usize);
            // Without TLS as far as the library is concerned: it is inside.
            Ok(AsyncTcpStream::Plain(Filtered::new(wire, filter)))
        },
        properties,
    );
    let patience = url.patience();
    match timeout(patience, attempt).await {
        Ok(Ok(connection)) => Ok(connection),
        Ok(Err(error)) => Err(Error::connection(url, describe(&error, url))),
        Err(_) => {
            if let Some(socket) = socket.get() {
                // It may be shut already.
                let _ = socket.shutdown(Shutdown::Both);
            }
            Err(Error::connection(url, format!("no answer within {patience:?}")))
        }
    }
}

/// What went wrong in words an operator can act on; lapin's own where there are no better ones.
fn describe(error: &lapin::Error, url: &Url) -> String {
    match error.kind() {
        ErrorKind::IOError(io) => match io.kind() {
            std::io::ErrorKind::ConnectionRefused => "connection refused".into(),
            std::io::ErrorKind::ConnectionAborted => {
                let mut likely =
                    "the connection was closed during the handshake: behind a balancer the broker it \
                                  chose is down, or the broker is starting or stopping"
                        .to_owned();
                if url.0.scheme == AMQPScheme::AMQP {
                    likely += ", or the port expects TLS (amqps) or another protocol";
                }
                likely
            }
            _ => io.to_string(),
        },
        ErrorKind::ProtocolError(amqp) => amqp.get_message().to_string(),
        _ => error.to_string(),
    }
}

/// The next event of a connection. The stream does not end with the connection: both ends of its queue outlive
/// it.
async fn next_event(events: &mut (impl Stream<Item = Event> + Unpin)) -> Event {
    match events.next().await {
        Some(event) => event,
        None => future::pending().await,
    }
}

/// Checks that what `rabbitmq/definitions.json` declares is there, by passive declarations, which need no
/// permission to configure anything. A missing object closes the channel it was asked for on, so this
/// takes one of its own.
async fn check_topology(connection: &Connection, url: &Url) -> Result<(), Error> {
    let failed = |error: &lapin::Error| Error::connection(url, describe(error, url));
    let channel = connection.create_channel().await.map_err(|error| failed(&error))?;
    for name in [EVENTS, DEAD] {
        for (kind, answer) in
            [("exchange", exchange(&channel, name).await), ("queue", queue(&channel, name).await)]
        {
            match answer {
                Ok(()) => {}
                Err(error) if is_not_found(&error) => {
                    return Err(Error::Missing { url: url.to_string(), kind, name });
                }
                Err(error) => return Err(failed(&error)),
            }
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_prints_without_user_and_password() {
        let url: Url = "amqps://alice:s3cret@broker:5671/%2f?heartbeat=30".parse().unwrap();
        assert_eq!(url.to_string(), "amqps://broker:5671/%2f");
        assert_eq!(format!("{url:?}"), "amqps://broker:5671/%2f");
        assert_eq!(url.0.query.heartbeat, Some(30));
        let error = "http://alice:s3cret@broker".parse::<Url>().unwrap_err();
        assert!(!error.contains("s3cret"), "{error}");
    }
}
