//! The broker's URL, and the limit of its messages.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;
use std::time::Duration;

use lapin::uri::{AMQPScheme, AMQPUri};

use super::tls::BrokerTlsConfig;
use crate::network::is_local;
use crate::process::ExitError;

/// The default timeout of a connection attempt, in milliseconds, which the URL may override. An attempt only
/// has to cross a network and log in.
const CONNECT_TIMEOUT_MS: u64 = 10_000;

/// Default seconds between heartbeats, which the URL may override. A peer that vanishes silently is noticed
/// after twice this time; RabbitMQ advises against less than 5.
const HEARTBEAT_SECS: u16 = 10;

/// Default largest frame in bytes, which the URL may override; RabbitMQ has the same default. The client
/// library has two buffers of 32 frames per connection.
pub(super) const FRAME_MAX: u32 = 128 << 10;

/// The settings of the connection to the broker.
#[derive(Clone, Debug, clap::Args)]
#[group(skip)]
pub struct BrokerConfig {
    /// URL of RabbitMQ: amqp://USER:PASSWORD@HOST:PORT/VHOST, or amqps:// for TLS; the vhost / is written %2f
    #[arg(long, env = "CATCHALL_AMQP_URL", value_name = "URL", hide_env_values = true)]
    pub amqp_url: AmqpUrl,

    /// TLS to the broker.
    #[command(flatten)]
    pub tls: BrokerTlsConfig,
}

impl BrokerConfig {
    /// A broker whose certificate, if it has one, is signed by an authority of the system.
    #[must_use]
    pub fn new(amqp_url: AmqpUrl) -> Self {
        Self { amqp_url, tls: BrokerTlsConfig::default() }
    }

    /// Checks that settings for TLS come with a URL for TLS.
    ///
    /// # Errors
    ///
    /// When the URL does not use TLS.
    pub fn check(&self) -> Result<(), ExitError> {
        if self.tls.is_set() && self.amqp_url.uri.scheme == AMQPScheme::AMQP {
            let sentence = "CATCHALL_AMQP_CA and CATCHALL_AMQP_CERT are for TLS, and CATCHALL_AMQP_URL begins \
                            with amqp://: write amqps://";
            return Err(ExitError::new(2, sentence));
        }
        Ok(())
    }

    /// The variable of the URL, and what strangers on the network path to the broker can do.
    #[must_use]
    pub fn exposure(&self) -> (&'static str, Option<&'static str>) {
        ("CATCHALL_AMQP_URL", self.amqp_url.exposure())
    }
}

/// An AMQP URL. It is printed without user and password.
#[derive(Clone, PartialEq, Eq)]
pub struct AmqpUrl {
    pub(super) uri: AMQPUri,
    /// Whether it names a user.
    pub(super) names_user: bool,
}

impl FromStr for AmqpUrl {
    type Err = String;

    fn from_str(url: &str) -> Result<Self, Self::Err> {
        // The parser's own error is not repeated: it can hold parts of the URL, and so of the password.
        let mut uri: AMQPUri =
            url.parse().map_err(|_| "not an AMQP URL, as in amqp://user:password@host:5672/%2f")?;
        if let Some(address) = ipv6_host(url) {
            // The parser ignores such a host, and would connect to this machine.
            uri.authority.host = address.to_string();
        }
        uri.query.heartbeat.get_or_insert(HEARTBEAT_SECS);
        uri.query.connection_timeout.get_or_insert(CONNECT_TIMEOUT_MS);
        uri.query.frame_max.get_or_insert(FRAME_MAX);
        let names_user = uri.query.auth_mechanism.is_some() || url.contains('@');
        Ok(Self { uri, names_user })
    }
}

/// The host of a URL, if it is an IPv6 address, in brackets.
fn ipv6_host(url: &str) -> Option<Ipv6Addr> {
    let (_, rest) = url.split_once("://")?;
    let authority = rest.split(['/', '?', '#']).next()?;
    let host = authority.rsplit('@').next()?;
    host.strip_prefix('[')?.split_once(']')?.0.parse().ok()
}

impl AmqpUrl {
    /// What strangers on the network path can do, and how to prevent it.
    #[must_use]
    pub fn exposure(&self) -> Option<&'static str> {
        let open = self.uri.scheme == AMQPScheme::AMQP && !is_local(&self.uri.authority.host);
        open.then_some("anyone on the network path can read the password and the events: use amqps://")
    }

    /// How long an attempt to connect may take.
    pub(super) fn connect_timeout(&self) -> Duration {
        Duration::from_millis(self.uri.query.connection_timeout.unwrap_or(CONNECT_TIMEOUT_MS))
    }
}

impl fmt::Display for AmqpUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let AMQPUri { scheme, authority, vhost, .. } = &self.uri;
        let (host, port, vhost) = (&authority.host, authority.port, vhost.replace('/', "%2f"));
        if host.contains(':') {
            write!(f, "{scheme}://[{host}]:{port}/{vhost}")
        } else {
            write!(f, "{scheme}://{host}:{port}/{vhost}")
        }
    }
}

impl fmt::Debug for AmqpUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The largest message that is read.
#[derive(Clone, Copy, Debug, clap::Args)]
#[group(skip)]
pub struct MessageLimit {
    /// The largest message body that is read, in bytes. A larger body is never in memory, and its message
    /// becomes or stays a dead letter. The broker should refuse larger messages: see `max_message_size` in
    /// rabbitmq/rabbitmq.conf. ingest writes messages of up to 400 kB
    #[arg(
        long,
        env = "CATCHALL_MAX_MESSAGE_BYTES",
        value_name = "BYTES",
        default_value_t = 1 << 20,
        value_parser = clap::value_parser!(u32).range(512 << 10..=512 << 20)
    )]
    pub max_message_bytes: u32,
}

impl MessageLimit {
    /// How many messages may be handed out ahead so that they take at most so much memory, however large they
    /// are: at least one.
    #[must_use]
    pub fn prefetch_within(self, bytes: u64) -> u64 {
        (bytes / u64::from(self.max_message_bytes)).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_prints_without_user_and_password() {
        let url: AmqpUrl = "amqps://alice:s3cret@broker:5671/%2f?heartbeat=30".parse().unwrap();
        assert_eq!(url.to_string(), "amqps://broker:5671/%2f");
        assert_eq!(format!("{url:?}"), "amqps://broker:5671/%2f");
        assert_eq!(url.uri.query.heartbeat, Some(30));
        let error = "http://alice:s3cret@broker".parse::<AmqpUrl>().unwrap_err();
        assert!(!error.contains("s3cret"), "{error}");
    }

    #[test]
    fn an_address_of_ipv6_is_the_host() {
        let url: AmqpUrl = "amqp://alice:s3cret@[2001:db8::1]/%2f".parse().unwrap();
        assert_eq!(url.uri.authority.host, "2001:db8::1");
        assert_eq!(url.to_string(), "amqp://[2001:db8::1]:5672/%2f");
        assert!(url.exposure().is_some(), "it is another machine's");
        let here: AmqpUrl = "amqp://[::1]:5673/x?heartbeat=30".parse().unwrap();
        assert_eq!(here.to_string(), "amqp://[::1]:5673/x");
        assert_eq!(here.exposure(), None);
        // A password may hold brackets.
        let name: AmqpUrl = "amqp://alice:%5B::1%5D@broker/x".parse().unwrap();
        assert_eq!(name.to_string(), "amqp://broker:5672/x");
    }
}
