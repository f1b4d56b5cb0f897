//! The ack deadline: how long a worker may hold a message.

use std::time::Duration;

/// How long a worker may hold a message.
#[derive(Clone, Copy, Debug, clap::Args)]
#[group(skip)]
#[expect(clippy::doc_markdown, reason = "the help is plain text")]
pub struct AckDeadline {
    /// How long a worker may hold a message, in seconds. Then it returns what it could not count. Must be at
    /// least the broker's consumer_timeout, and the same for all workers and for catchall-dead. Claims are
    /// kept for this much longer
    #[arg(
        long,
        env = "CATCHALL_ACK_DEADLINE_SECS",
        value_name = "SECONDS",
        default_value_t = 86_400,
        value_parser = clap::value_parser!(u32).range(1..)
    )]
    ack_deadline_secs: u32,
}

impl AckDeadline {
    /// How long a worker may hold a message.
    #[must_use]
    pub fn ack_deadline(self) -> Duration {
        Duration::from_secs(self.ack_deadline_secs.into())
    }
}
