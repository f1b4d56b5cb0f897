//! Why the broker cannot be used.

use std::fmt;

use super::url::Url;

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
    pub(super) fn connection(url: &Url, reason: impl fmt::Display) -> Self {
        Self::Connection { url: url.to_string(), reason: reason.to_string() }
    }
}
