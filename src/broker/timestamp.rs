//! The time in a message's properties.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// An AMQP timestamp, in whole seconds since 1970. It is printed as in RFC 3339.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp(u64);

impl Timestamp {
    pub(super) fn now() -> Self {
        Self(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs())
    }

    /// A timestamp of `seconds` whole seconds since the beginning of 1970.
    pub(super) fn of(seconds: u64) -> Self {
        Self(seconds)
    }

    /// Whole seconds since the beginning of 1970.
    pub(super) fn seconds(self) -> u64 {
        self.0
    }

    /// The time since the beginning of 1970.
    #[must_use]
    pub fn since_epoch(self) -> Duration {
        Duration::from_secs(self.0)
    }
}

impl From<SystemTime> for Timestamp {
    fn from(time: SystemTime) -> Self {
        Self(time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs())
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = i64::try_from(self.0).ok().and_then(|secs| OffsetDateTime::from_unix_timestamp(secs).ok());
        match time.and_then(|time| time.format(&Rfc3339).ok()) {
            Some(time) => f.write_str(&time),
            // Some clients send milliseconds.
            None => write!(f, "{} s after 1970", self.0),
        }
    }
}
