//! Why the broker cannot be used.

use std::fmt;

use super::url::AmqpUrl;
use crate::cause::Cause;

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
        /// The error of lapin, if there was one.
        source: Option<Cause>,
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
    /// A reason for which there is no error of lapin.
    pub(super) fn connection(url: &AmqpUrl, reason: impl fmt::Display) -> Self {
        Self::Connection { url: url.to_string(), reason: reason.to_string(), source: None }
    }

    /// The error of lapin, and the reason in words an operator can act on.
    pub(super) fn of(url: &AmqpUrl, reason: String, error: &lapin::Error) -> Self {
        Self::Connection { url: url.to_string(), reason, source: Some(Cause::new(error.clone())) }
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error;

    use super::*;

    #[test]
    fn it_leads_to_what_lapin_reported_and_shows_no_more_than_its_sentences() {
        let url: AmqpUrl = "amqp://alice:s3cret@broker/x".parse().unwrap();
        let lapin = lapin::Error::from(std::io::Error::other("os error 104"));
        let error = BrokerError::of(&url, "the connection was cut".into(), &lapin);
        assert_eq!(error.to_string(), "amqp://broker:5672/x: the connection was cut");
        let cause = error.source().unwrap();
        assert!(cause.source().is_some_and(<dyn Error>::is::<lapin::Error>));
        let shown = format!("{error:?}");
        assert!(shown.contains(&format!("Some({lapin})")) && !shown.contains("s3cret"), "{shown}");
        assert!(BrokerError::connection(&url, "no answer").source().is_none());
    }
}
