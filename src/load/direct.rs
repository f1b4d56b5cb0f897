//! Events straight to the broker, as a direct publisher sends them.

use std::time::Duration;

use anyhow::bail;
use tokio::time::Instant;

use super::body;
use super::run::{Fate, Parcel};
use super::sender::Carrier;
use super::workload::Names;
use crate::broker::{Config, Message, PublishError, Publisher};
use crate::domain_name::DomainName;
use crate::health::Health;

/// How long the broker may take until all connections are up at the start.
const START: Duration = Duration::from_secs(5);

/// One connection with a confirming channel; a message to a parcel.
#[derive(Debug)]
pub(super) struct Direct {
    publisher: Publisher,
    names: Names,
    messages_in_flight: usize,
    timeout: Duration,
}

impl Direct {
    /// Opens so many connections.
    ///
    /// # Errors
    ///
    /// When the broker cannot be reached, or the exchange is not there.
    pub(super) async fn connect(
        config: &Config,
        connections: usize,
        messages_in_flight: usize,
        names: Names,
        timeout: Duration,
    ) -> anyhow::Result<Vec<Self>> {
        let health = Health::default();
        let connect = |number| {
            let name = format!("catchall-load {number}");
            let broker = health.dependency("broker");
            let publisher = Publisher::connect(config.clone(), name, broker, timeout);
            Self { publisher, names, messages_in_flight, timeout }
        };
        let connections: Vec<Self> = (0..connections).map(connect).collect();
        let begun = Instant::now();
        loop {
            let missing = health.missing();
            if missing.is_empty() {
                return Ok(connections);
            }
            if begun.elapsed() > START {
                bail!("cannot publish: {}", missing.join(", "));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn message(&self, parcel: &Parcel) -> Message {
        let message = Message::events(body::array(self.names, parcel), parcel.keys.first().copied());
        let domain = DomainName::parse(&self.names.canonical(parcel.draws[0].domain));
        message.routed_by(&domain.expect("a workload's names are domain names"))
    }
}

impl Carrier for Direct {
    fn capacity(&self) -> usize {
        self.messages_in_flight
    }

    async fn carry(&mut self, parcels: &[Parcel]) -> Fate {
        let messages: Vec<Message> = parcels.iter().map(|parcel| self.message(parcel)).collect();
        match self.publisher.publish(messages, Instant::now() + self.timeout).await {
            Ok(()) => Fate::Acknowledged,
            Err(error @ PublishError::Unavailable(_)) => Fate::Unsent(error.to_string()),
            // Of several messages, those that were not refused or returned may be at the broker.
            Err(error @ (PublishError::Unconfirmed | PublishError::Refused | PublishError::Unroutable)) => {
                Fate::Unknown(error.to_string())
            }
        }
    }
}
