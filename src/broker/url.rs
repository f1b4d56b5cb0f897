//! Where the broker is.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use lapin::uri::AMQPUri;

/// A connection attempt that takes longer, in milliseconds, has failed unless the URL says otherwise: it only has
/// to cross a network and log in.
const CONNECT_TIMEOUT_MS: u64 = 10_000;

/// Seconds between heartbeats unless the URL says otherwise. A peer that is gone without a word is noticed
/// after twice that; RabbitMQ advises against less than 5.
const HEARTBEAT_SECS: u16 = 10;

/// Most bytes of a frame unless the URL says otherwise, which is also what RabbitMQ takes. The client library's two
/// buffers for a connection hold 32 frames each.
pub(super) const FRAME_MAX: u32 = 128 << 10;

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
pub struct Url(pub(super) AMQPUri);

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
    pub(super) fn connect_timeout(&self) -> Duration {
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
    /// dead letter. The broker should refuse what is larger: see `max_message_size` in rabbitmq/rabbitmq.conf. ingest writes
    /// messages of up to 400 kB
    #[arg(long, env = "CATCHALL_MAX_MESSAGE_BYTES", value_name = "BYTES", default_value_t = 1 << 20, value_parser = clap::value_parser!(u32).range(512 << 10..=512 << 20))]
    pub max_message_bytes: u32,
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
