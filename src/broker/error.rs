//! Why the broker cannot be used.

use std::fmt;

use super::url::AmqpUrl;

/// Why the broker cannot be used.
#[derive(Clone, Debug, thiserror::Error)]
pub enum BrokerError {
    /// The connection failed or was lost.
    #[error("{url}: {reason}")]
    Connection {
        /// The broker's URL, without user and password.
        url: String,
        /// What went wrong.
        reason: String,
    },
    /// The broker is available, but its topology is incomplete.
    #[error(
        "{url} has no {kind} {name:?}: create it with \
         `rabbitmqctl import_definitions rabbitmq/definitions.json`"
    )]
    Missing {
        /// The broker's URL, without user and password.
        url: String,
        /// `exchange` or `queue`.
        kind: &'static str,
        /// Its name.
        name: &'static str,
    },
}

impl BrokerError {
    pub(super) fn connection(url: &AmqpUrl, reason: impl fmt::Display) -> Self {
        Self::Connection { url: url.to_string(), reason: reason.to_string() }
    }
}
