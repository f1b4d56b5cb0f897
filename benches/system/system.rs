//! The processes of one row, each started for it: what one row leaves in a process is not measured in
//! another.

use anyhow::Context;
use catchall::broker::EVENTS;
use harness::instance::pid;
use harness::processes::{Service, metric};
use harness::servers::Servers;
use harness::usage;
use lapin::options::{QueueDeclareOptions, QueuePurgeOptions};
use lapin::types::FieldTable;
use lapin::{Channel, Connection, ConnectionProperties};

use crate::baseline::{Baseline, BaselineProcess};
use crate::stats::{Micros, Peaks};

/// Serving threads of ingest, query and what they are compared with: the cores are everybody's here, and the
/// fewer threads, the more events or names share a confirm or a query.
pub(crate) const THREADS: u16 = 1;

/// Which processes there are beside the servers.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Processes {
    /// One of the two servers the system is compared with.
    Baseline(Baseline),
    /// Ingest, query and so many workers.
    Whole { workers: usize },
    /// Query alone.
    Readers,
}

/// The processes of one row.
pub(crate) struct RunningSystem {
    pub(crate) servers: Servers,
    baseline: Option<BaselineProcess>,
    ingest: Option<Service>,
    workers: Vec<Service>,
    query: Option<Service>,
    broker_pid: u32,
    primary_pid: u32,
    replica_pid: u32,
    queue: Channel,
    _connection: Connection,
}

/// What a look at the processes shows.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Observation {
    /// Events that ingest has accepted since it was started.
    pub(crate) accepted: u64,
    /// Events that the workers have counted since they were started.
    pub(crate) counted: u64,
    /// Messages that wait in the queue.
    pub(crate) messages: u64,
    /// How far the replica is behind, where query is there to tell.
    pub(crate) lag_seconds: Option<f64>,
    /// Memory of all services together.
    pub(crate) megabytes: u64,
    /// The same of ingest and of query, where they are there.
    pub(crate) ingest_megabytes: Option<f64>,
    pub(crate) query_megabytes: Option<f64>,
}

/// What a row has to do with `/metrics` while it is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scraping {
    /// It is read every second.
    EverySecond,
    /// Nobody reads it: what piles up in a process until somebody does is seen.
    Never,
}

impl RunningSystem {
    /// Starts the processes and returns once all are ready.
    pub(crate) async fn ready(processes: Processes, servers: &Servers) -> anyhow::Result<Self> {
        let connection = Connection::connect(&servers.amqp_url, ConnectionProperties::default()).await?;
        let queue = connection.create_channel().await?;
        // What a row that failed has left would be counted in this one.
        queue.queue_purge(EVENTS.into(), QueuePurgeOptions::default()).await?;
        let mut system = Self {
            servers: servers.clone(),
            baseline: None,
            ingest: None,
            workers: Vec::new(),
            query: None,
            broker_pid: pid("rabbitmq")?,
            primary_pid: pid("primary")?,
            replica_pid: pid("replica")?,
            queue,
            _connection: connection,
        };
        let threads = THREADS.to_string();
        let threads = [("CATCHALL_THREADS", &*threads)];
        match processes {
            Processes::Baseline(baseline) => {
                system.baseline = Some(BaselineProcess::start(baseline, &servers.database_url)?);
            }
            Processes::Whole { workers } => {
                system.ingest = Some(Service::ready("ingest", servers, &threads).await);
                for _ in 0..workers {
                    system.workers.push(Service::ready("worker", servers, &[]).await);
                }
                system.query = Some(Service::ready("query", servers, &threads).await);
            }
            Processes::Readers => system.query = Some(Service::ready("query", servers, &threads).await),
        }
        Ok(system)
    }

    /// Where events are sent.
    pub(crate) fn ingest_url(&self) -> String {
        let ingest = self.ingest.as_ref().map(Service::url);
        ingest.or_else(|| self.baseline.as_ref().map(BaselineProcess::url)).unwrap_or_default()
    }

    /// Where counters are read: host and port.
    pub(crate) fn query_address(&self) -> anyhow::Result<std::net::SocketAddr> {
        let address = self.query.as_ref().map(Service::address).context("there is no query")?;
        Ok(address.parse()?)
    }

    /// Whether events go through workers.
    pub(crate) fn has_workers(&self) -> bool {
        !self.workers.is_empty()
    }

    /// Processor time until now, of all but the load generator.
    pub(crate) fn micros(&self) -> Micros {
        let service = |service: &Service| usage::micros(service.pid());
        let baseline = self.baseline.as_ref().map(|baseline| usage::micros(baseline.pid()));
        Micros {
            ingest: self.ingest.as_ref().map(service).or(baseline),
            broker: usage::tree_micros(self.broker_pid),
            worker: self.has_workers().then(|| self.workers.iter().map(service).sum()),
            primary: usage::tree_micros(self.primary_pid),
            replica: usage::tree_micros(self.replica_pid),
            query: self.query.as_ref().map(service),
            load: 0.0,
        }
    }

    /// The most memory until now.
    pub(crate) fn peaks(&self) -> Peaks {
        let service = |service: &Service| usage::peak_megabytes(service.pid());
        let baseline = self.baseline.as_ref().and_then(|baseline| usage::peak_megabytes(baseline.pid()));
        Peaks {
            ingest: self.ingest.as_ref().and_then(service).or(baseline),
            worker: self.workers.iter().filter_map(service).max(),
            query: self.query.as_ref().and_then(service),
        }
    }

    /// How many events the workers have counted since they were started.
    pub(crate) async fn counted(&self) -> u64 {
        let mut counted = 0;
        for worker in &self.workers {
            let (_, metrics) = worker.ops("/metrics").await;
            counted += whole(metric(&metrics, "catchall_worker_delivered_total"));
            counted += whole(metric(&metrics, "catchall_worker_bounced_total"));
        }
        counted
    }

    pub(crate) async fn look(&self, scraping: Scraping) -> anyhow::Result<Observation> {
        let megabytes = |service: &Option<Service>| usage::resident_megabytes(service.as_ref()?.pid());
        let mut look = Observation {
            ingest_megabytes: megabytes(&self.ingest),
            query_megabytes: megabytes(&self.query),
            ..Observation::default()
        };
        if scraping == Scraping::EverySecond {
            look.counted = self.counted().await;
            if let Some(ingest) = &self.ingest {
                let (_, metrics) = ingest.ops("/metrics").await;
                look.accepted = whole(metric(&metrics, "catchall_ingest_accepted_events_total"));
            }
            if let Some(query) = &self.query {
                let (_, metrics) = query.ops("/metrics").await;
                look.lag_seconds = Some(metric(&metrics, "catchall_replica_lag_seconds"));
            }
        }
        let services = self.ingest.iter().chain(&self.workers).chain(&self.query);
        look.megabytes = services.filter_map(|service| usage::megabytes(service.pid())).sum();
        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let declared = self.queue.queue_declare(EVENTS.into(), passive, FieldTable::default()).await;
        look.messages = declared.context("the queue")?.message_count().into();
        Ok(look)
    }

    /// Ends all processes in spec, so that nothing is left unsettled for the next row.
    pub(crate) async fn clear(mut self) {
        let services = self.ingest.iter_mut().chain(&mut self.workers).chain(&mut self.query);
        let services: Vec<&mut Service> = services.collect();
        for service in &services {
            service.signal("TERM");
        }
        for service in services {
            service.ended().await;
        }
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "counters are neither")]
fn whole(counter: f64) -> u64 {
    counter as u64
}
