//! How long a repeated key counts nothing.

use std::time::Duration;

/// How long claims of events are kept.
#[derive(Clone, Debug, clap::Args)]
#[group(skip)]
pub struct EventRetention {
    /// How long, in seconds from its last use, an id or Idempotency-Key is remembered, so that a repeat is
    /// not counted. Every keyed event has a claim of some 100 bytes: shorten this before the disk fills
    #[arg(
        long,
        env = "CATCHALL_EVENT_RETENTION_SECS",
        value_name = "SECONDS",
        default_value_t = 259_200,
        value_parser = clap::value_parser!(u32).range(1..)
    )]
    pub event_retention_secs: u32,
}

impl EventRetention {
    /// How long a claim is kept after its last use.
    #[must_use]
    pub fn duration(&self) -> Duration {
        Duration::from_secs(self.event_retention_secs.into())
    }
}
