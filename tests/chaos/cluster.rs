//! The whole system: one ingest, two workers and one query, connected to their servers through proxies.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use futures::future::try_join_all;
use harness::instance::{data, dev};
use harness::processes::Service;
use harness::proxy::{Proxy, address, host, reserve};
use harness::servers::Servers;
use harness::sql;
use socket2::Socket;

use crate::process::WatchedProcess;
use crate::published::{self, Published};
use crate::watch::Watch;

/// How long ingest waits for a confirm before it answers 503: its default.
pub(crate) const PUBLISH_DEADLINE: Duration = Duration::from_secs(5);

/// In the URL of the broker: a silent peer is given up after four to six seconds. With a shorter interval, a
/// busy machine would give up live peers.
const HEARTBEAT: &str = "heartbeat=2";

/// How long a statement may run on the primary. A silent primary is given up after one and a half times that.
const STATEMENT_TIMEOUT_SECS: &str = "6";

/// The prefetch of a worker. It is small, so that neighbouring messages go to different workers.
const PREFETCH: &str = "100";

/// How long the replica may take until it follows the primary.
const SERVERS: Duration = Duration::from_secs(30);

/// Everything that a round needs.
pub(crate) struct Cluster {
    /// The servers, without proxies.
    pub(crate) servers: Servers,
    /// The URL of the present primary.
    pub(crate) primary: String,
    pub(crate) ingest_url: String,
    pub(crate) query_url: String,
    /// The connections of ingest and the workers to the broker.
    pub(crate) broker_wire: Proxy,
    /// The connections of the workers to the primary.
    pub(crate) database_wire: Proxy,
    pub(crate) watch: Watch,
    pub(crate) ingest: Vec<WatchedProcess>,
    pub(crate) workers: Vec<WatchedProcess>,
    pub(crate) query: Vec<WatchedProcess>,
    /// The changes that were published in all rounds.
    pub(crate) published: Published,
    /// The servers behind the proxies, as the services see them.
    behind: Servers,
    _ports: [Socket; 2],
}

impl Cluster {
    /// Starts the servers that are not running, and all services on a fresh vhost and a fresh database.
    pub(crate) async fn ready() -> Result<Self> {
        let mut cluster = Self::without_services(Watch::default()).await?;
        published::bind(&cluster.servers).await;
        cluster.fill().await;
        Ok(cluster)
    }

    /// Starts the servers that are not running. What its services will show is noted by `watch`.
    pub(crate) async fn without_services(watch: Watch) -> Result<Self> {
        for server in ["rabbitmq", "primary", "replica"] {
            dev(&["start", server]).await?;
        }
        if !replica_follows().await {
            copy_anew().await?;
        }
        let servers = Servers::fresh().await;
        let broker_wire = Proxy::to(host(&servers.amqp_url), true).await;
        let database_wire = Proxy::to(host(&servers.database_url), true).await;
        let behind = Servers {
            amqp_url: format!("{}?{HEARTBEAT}", broker_wire.through(&servers.amqp_url)),
            database_url: database_wire.through(&servers.database_url),
            ..servers.clone()
        };
        // Reserved ports, so that the addresses stay the same when processes are replaced.
        let ports = [reserve(), reserve()];
        let [ingest_url, query_url] = [&ports[0], &ports[1]].map(|port| format!("http://{}", address(port)));
        Ok(Self {
            primary: servers.database_url.clone(),
            servers,
            ingest_url,
            query_url,
            broker_wire,
            database_wire,
            watch,
            ingest: Vec::new(),
            workers: Vec::new(),
            query: Vec::new(),
            published: Published::default(),
            behind,
            _ports: ports,
        })
    }

    /// Starts the missing processes, and returns once they are ready.
    pub(crate) async fn fill(&mut self) {
        if self.ingest.is_empty() {
            self.start_ingest().await;
        }
        while self.workers.len() < 2 {
            self.start_worker().await;
        }
        if self.query.is_empty() {
            self.start_query().await;
        }
    }

    pub(crate) async fn start_ingest(&mut self) {
        let listen = self.ingest_url.replace("http://", "");
        let process = self.start("ingest", &[("CATCHALL_LISTEN", &*listen)]).await;
        self.ingest.push(process);
    }

    pub(crate) async fn start_worker(&mut self) {
        self.start_worker_with(&[]).await;
    }

    /// Starts a worker with further settings.
    async fn start_worker_with(&mut self, more: &[(&str, &str)]) {
        let usual =
            [("CATCHALL_STATEMENT_TIMEOUT_SECS", STATEMENT_TIMEOUT_SECS), ("CATCHALL_PREFETCH", PREFETCH)];
        let process = self.start("worker", &[&usual, more].concat()).await;
        self.workers.push(process);
    }

    /// Stops the workers with SIGTERM.
    pub(crate) async fn stop_workers(&mut self) -> Result<()> {
        try_join_all(self.workers.drain(..).map(WatchedProcess::stop)).await.map(drop)
    }

    /// Starts two workers with these settings in addition to the usual ones.
    pub(crate) async fn start_workers_with(&mut self, more: &[(&str, &str)]) {
        for _ in 0..2 {
            self.start_worker_with(more).await;
        }
    }

    /// Replaces the workers by workers with the usual settings.
    pub(crate) async fn usual_workers(&mut self) -> Result<()> {
        self.stop_workers().await?;
        self.fill().await;
        Ok(())
    }

    pub(crate) fn processes(&self) -> impl Iterator<Item = &WatchedProcess> {
        self.ingest.iter().chain(&self.workers).chain(&self.query)
    }

    pub(crate) async fn start_query(&mut self) {
        let listen = self.query_url.replace("http://", "");
        let process = self.start("query", &[("CATCHALL_LISTEN", &*listen)]).await;
        self.query.push(process);
    }

    async fn start(&self, name: &'static str, more: &[(&str, &str)]) -> WatchedProcess {
        let service = Service::ready(name, &self.behind, more).await;
        WatchedProcess::new(name, service, &self.watch)
    }
}

/// Whether the replica is a standby that follows the primary.
async fn replica_follows() -> bool {
    let [primary, replica] = ["DATABASE", "REPLICA"]
        .map(|name| std::env::var(format!("CATCHALL_TEST_{name}_URL")).expect("./dev chaos sets it"));
    let streams = "select state from pg_stat_replication where state = 'streaming'";
    let replays = "select 'yes' where pg_is_in_recovery()";
    sql::column(&replica, replays).await.is_ok_and(|rows| !rows.is_empty())
        && sql::until_row(&primary, streams, SERVERS).await.is_ok()
}

/// Replaces the primary and the replica by new ones.
async fn copy_anew() -> Result<()> {
    for server in ["replica", "primary"] {
        dev(&["stop", server]).await?;
        fs::remove_dir_all(data(server)?).with_context(|| format!("the data of {server}"))?;
    }
    for server in ["primary", "replica"] {
        dev(&["start", server]).await?;
    }
    Ok(())
}
