//! The system as its clients see it, in each of the two ways of running it.

use std::path::PathBuf;
use std::process::ExitStatus;

use crate::processes::{LONG_DEADLINE, Service};
pub use crate::scratch::{data_file, directory};
use crate::servers::{Servers, eventually};

/// A running system.
pub struct System {
    /// Those of the cluster; the standalone has none.
    pub servers: Servers,
    events: Service,
    others: Option<(Service, Service)>,
    /// The data file of the standalone.
    data: Option<PathBuf>,
}

impl System {
    /// The three services, with servers of their own.
    pub async fn cluster(variables: &[(&str, &str)]) -> Self {
        let servers = Servers::fresh().await;
        let with_deadline = [&[LONG_DEADLINE][..], variables].concat();
        let events = Service::ready("ingest", &servers, &with_deadline).await;
        let worker = Service::ready("worker", &servers, &[]).await;
        let query = Service::ready("query", &servers, variables).await;
        Self { servers, events, others: Some((worker, query)), data: None }
    }

    /// The one process, with a data file of its own.
    pub async fn standalone(variables: &[(&str, &str)]) -> Self {
        let data = data_file();
        let data_path = data.to_str().expect("a path in UTF-8");
        let variables = [&[LONG_DEADLINE][..], variables, &[("CATCHALL_DATA", data_path)]].concat();
        let servers = Servers::none();
        let events = Service::ready("standalone", &servers, &variables).await;
        Self { servers, events, others: None, data: Some(data) }
    }

    /// Both, with the same settings.
    pub async fn both(variables: &[(&str, &str)]) -> [Self; 2] {
        [Self::cluster(variables).await, Self::standalone(variables).await]
    }

    /// Whether it is the one process.
    #[must_use]
    pub fn is_standalone(&self) -> bool {
        self.others.is_none()
    }

    /// The variable by which `catchall-admin` finds what is counted, and its value.
    #[must_use]
    pub fn place(&self) -> (&'static str, &str) {
        match &self.data {
            Some(data) => ("CATCHALL_DATA", data.to_str().expect("a path in UTF-8")),
            None => ("CATCHALL_DATABASE_URL", &self.servers.database_url),
        }
    }

    /// The service that takes events.
    #[must_use]
    pub fn events(&self) -> &Service {
        &self.events
    }

    /// The service that answers queries.
    #[must_use]
    pub fn domains(&self) -> &Service {
        self.others.as_ref().map_or(&self.events, |(_, query)| query)
    }

    /// Waits until the service that takes events has ended, and starts it again without further settings.
    pub async fn started_again(&mut self) -> ExitStatus {
        let status = self.events.ended().await;
        let name = if self.is_standalone() { "standalone" } else { "ingest" };
        let events = Service::ready(name, &self.servers, &[LONG_DEADLINE, self.place()]).await;
        self.events = events;
        status
    }

    /// Waits until the counters of a domain have these values, then until a later event has been counted, and
    /// checks that they have not changed.
    pub async fn settle_at(&self, domain: &str, delivered: u64, bounced: u64) {
        if !self.is_standalone() {
            let signed = |count: u64| i64::try_from(count).unwrap();
            return self.servers.settle_at(domain, signed(delivered), signed(bounced)).await;
        }
        let path = format!("/domains/{domain}");
        let counts = async || {
            let (_, answer) = self.events.get(&path).await;
            (answer["delivered"].as_u64(), answer["bounced"].as_u64())
        };
        let expected = (Some(delivered), Some(bounced));
        eventually(
            &format!("{domain} has had {delivered} delivered and {bounced} bounced events"),
            async || (counts().await == expected).then_some(()),
        )
        .await;
        // The one writer counts in turn.
        self.events.put("/events/marker.test/delivered").await;
        assert_eq!(counts().await, expected, "{domain} afterwards");
    }
}
