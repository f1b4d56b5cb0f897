//! The processes of a row. They are started for it, so that no row affects another.

use std::path::{Path, PathBuf};

use anyhow::Context;
use catchall::broker::EVENTS;
use harness::access::Access;
use harness::instance::pid;
use harness::processes::{Service, metric};
use harness::servers::Servers;
use harness::stats::real;
use harness::usage;
use lapin::options::{QueueDeclareOptions, QueuePurgeOptions};
use lapin::types::FieldTable;
use lapin::{Channel, Connection, ConnectionProperties};

use crate::baseline::{Baseline, BaselineProcess, THREADS};
use crate::stats::{Micros, Peaks};

/// Which processes run in addition to the servers.
#[derive(Clone, Debug)]
pub(crate) enum Processes {
    /// One of the baselines.
    Baseline(Baseline),
    /// Ingest, query and so many workers.
    Whole { workers: usize },
    /// Only query.
    Readers,
    /// The standalone with this data file, which is created if it does not exist.
    Standalone(PathBuf),
    /// The same, which asks for something.
    Guarded(PathBuf, Guarding),
}

/// What a standalone asks for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Guarding {
    /// A token.
    Token,
    /// A token, and TLS.
    Tls,
}

/// Starts a standalone with this data file and returns once it is ready.
pub(crate) async fn standalone(data: &Path) -> anyhow::Result<Service> {
    guarded(data, Access::default()).await
}

async fn guarded(data: &Path, access: Access) -> anyhow::Result<Service> {
    let data = data.to_str().context("the path of a data file is not UTF-8")?;
    let threads = THREADS.to_string();
    let variables = [("CATCHALL_DATA", data), ("CATCHALL_THREADS", &threads)];
    Ok(Service::guarded("standalone", &Servers::none(), &variables, access).await)
}

/// Ends services with SIGTERM and waits for them.
pub(crate) async fn end(services: impl IntoIterator<Item = Service>) {
    let mut services: Vec<Service> = services.into_iter().collect();
    for service in &services {
        service.signal("TERM");
    }
    for service in &mut services {
        service.ended().await;
    }
}

/// The processes of one row.
pub(crate) struct RunningSystem {
    pub(crate) servers: Servers,
    baseline: Option<BaselineProcess>,
    ingest: Option<Service>,
    workers: Vec<Service>,
    query: Option<Service>,
    standalone: Option<(Service, PathBuf)>,
    broker_pid: u32,
    primary_pid: u32,
    replica_pid: u32,
    queue: Channel,
    _connection: Connection,
}

/// What is observed at one time.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Observation {
    /// Events that ingest or the standalone has accepted since its start.
    pub(crate) accepted: u64,
    /// Events that the workers or the standalone have counted since their start.
    pub(crate) counted: u64,
    /// Messages in the queue.
    pub(crate) messages: u64,
    /// How many seconds the replica is behind, if query runs.
    pub(crate) lag_seconds: Option<f64>,
    /// Memory of all services together.
    pub(crate) megabytes: u64,
    /// Memory of ingest and of query, if they run.
    pub(crate) ingest_megabytes: Option<f64>,
    pub(crate) query_megabytes: Option<f64>,
    /// Size of the WAL beside the data file, if the standalone runs.
    pub(crate) wal_megabytes: Option<f64>,
}

/// Whether `/metrics` is read during a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scraping {
    /// It is read every second.
    EverySecond,
    /// It is never read. This shows what accumulates in a process until it is read.
    Never,
}

impl RunningSystem {
    /// Starts the processes and returns once all are ready.
    pub(crate) async fn ready(processes: Processes, servers: &Servers) -> anyhow::Result<Self> {
        let connection = Connection::connect(&servers.amqp_url, ConnectionProperties::default()).await?;
        let queue = connection.create_channel().await?;
        // Messages that are left from a failed row would be counted in this one.
        queue.queue_purge(EVENTS.into(), QueuePurgeOptions::default()).await?;
        let mut system = Self {
            servers: servers.clone(),
            baseline: None,
            ingest: None,
            workers: Vec::new(),
            query: None,
            standalone: None,
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
            Processes::Standalone(data) => system.standalone = Some((standalone(&data).await?, data)),
            Processes::Guarded(data, guarding) => {
                let access = match guarding {
                    Guarding::Token => Access::by_token(),
                    Guarding::Tls => Access::by_tls(),
                };
                system.standalone = Some((guarded(&data, access).await?, data));
            }
        }
        Ok(system)
    }

    /// The URL to which events are sent.
    pub(crate) fn ingest_url(&self) -> String {
        let ingest = self.ingest.as_ref().or(self.alone()).map(Service::url);
        ingest.or_else(|| self.baseline.as_ref().map(BaselineProcess::url)).unwrap_or_default()
    }

    /// The variables of the load tool.
    pub(crate) fn client_variables(&self) -> Vec<(&str, &str)> {
        let mut variables = self.alone().map(|service| service.access().of_client()).unwrap_or_default();
        variables.push(("CATCHALL_AMQP_URL", &self.servers.amqp_url));
        variables
    }

    /// The address at which counters are read.
    pub(crate) fn query_address(&self) -> anyhow::Result<std::net::SocketAddr> {
        let address =
            self.query.as_ref().or(self.alone()).map(Service::address).context("there is no query")?;
        Ok(address.parse()?)
    }

    /// The standalone, if it is the system.
    fn alone(&self) -> Option<&Service> {
        self.standalone.as_ref().map(|(service, _)| service)
    }

    /// Whether there are workers.
    pub(crate) fn has_workers(&self) -> bool {
        !self.workers.is_empty()
    }

    /// Whether a process says how many events it has counted.
    pub(crate) fn says_what_is_counted(&self) -> bool {
        self.has_workers() || self.standalone.is_some()
    }

    /// Processor time until now, of all processes but the load tool.
    pub(crate) fn micros(&self) -> Micros {
        let service = |service: &Service| usage::micros(service.pid());
        let baseline = self.baseline.as_ref().map(|baseline| usage::micros(baseline.pid()));
        Micros {
            ingest: self.ingest.as_ref().or(self.alone()).map(service).or(baseline),
            broker: usage::tree_micros(self.broker_pid),
            worker: self.has_workers().then(|| self.workers.iter().map(service).sum()),
            primary: usage::tree_micros(self.primary_pid),
            replica: usage::tree_micros(self.replica_pid),
            query: self.query.as_ref().map(service),
            load: 0.0,
        }
    }

    /// The peak memory until now.
    pub(crate) fn peaks(&self) -> Peaks {
        let service = |service: &Service| usage::peak_megabytes(service.pid());
        let baseline = self.baseline.as_ref().and_then(|baseline| usage::peak_megabytes(baseline.pid()));
        Peaks {
            ingest: self.ingest.as_ref().and_then(service).or(baseline),
            worker: self.workers.iter().filter_map(service).max(),
            query: self.query.as_ref().and_then(service),
            standalone: self.alone().and_then(service),
        }
    }

    /// How many events the workers, or the standalone, have counted since their start.
    pub(crate) async fn counted(&self) -> u64 {
        let mut counted = 0;
        for counting in self.workers.iter().chain(self.alone()) {
            let (_, metrics) = counting.ops("/metrics").await;
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
            wal_megabytes: self.standalone.as_ref().map(|(_, data)| wal_megabytes(data)),
            ..Observation::default()
        };
        if scraping == Scraping::EverySecond {
            look.counted = self.counted().await;
            if let Some(ingest) = self.ingest.as_ref().or(self.alone()) {
                let (_, metrics) = ingest.ops("/metrics").await;
                look.accepted = whole(metric(&metrics, "catchall_ingest_accepted_events_total"));
            }
            if let Some(query) = &self.query {
                let (_, metrics) = query.ops("/metrics").await;
                look.lag_seconds = Some(metric(&metrics, "catchall_replica_lag_seconds"));
            }
        }
        let services = self.ingest.iter().chain(&self.workers).chain(&self.query).chain(self.alone());
        look.megabytes = services.filter_map(|service| usage::megabytes(service.pid())).sum();
        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let declared = self.queue.queue_declare(EVENTS.into(), passive, FieldTable::default()).await;
        look.messages = declared.context("the queue")?.message_count().into();
        Ok(look)
    }

    /// Stops all processes with SIGTERM, so that nothing is left for the next row.
    pub(crate) async fn clear(self) {
        let services = self.ingest.into_iter().chain(self.workers).chain(self.query);
        end(services.chain(self.standalone.map(|(service, _)| service))).await;
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "counters are neither")]
fn whole(counter: f64) -> u64 {
    counter as u64
}

/// The size of the WAL beside a data file; 0 if there is none.
pub(crate) fn wal_megabytes(data: &Path) -> f64 {
    let mut log = data.as_os_str().to_owned();
    log.push("-wal");
    std::fs::metadata(log).map_or(0.0, |log| real(log.len()) / 1e6)
}
