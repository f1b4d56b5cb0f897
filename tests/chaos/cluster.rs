//! The whole system: one ingest, two workers and one query, connected to their servers through proxies.

use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use futures::future::try_join_all;
use harness::http::HttpClient;
use harness::instance::{data, dev};
use harness::processes::Service;
use harness::proxy::{Proxy, host, reserve};
use harness::servers::Servers;
use harness::sql;
use harness::usage;
use hyper::StatusCode;
use socket2::Socket;

use crate::watch::{Seen, Watch, Watcher};

/// How long ingest waits for a confirm before it answers 503: its default.
pub(crate) const PUBLISH_DEADLINE: Duration = Duration::from_secs(5);

/// In the URL of the broker: a silent peer is given up after four to six seconds. With a shorter interval, a
/// busy machine would give up live peers.
const HEARTBEAT: &str = "heartbeat=2";

/// How long a statement may run on the primary. A silent primary is given up after one and a half times that.
const STATEMENT_TIMEOUT_SECS: &str = "6";

/// The prefetch of a worker. It is small, so that neighbouring messages go to different workers.
const PREFETCH: &str = "100";

/// How many lines of each log are printed after a failure.
const LOG_LINES: usize = 15;

/// How long the replica may take until it follows the primary.
const SERVERS: Duration = Duration::from_secs(30);

/// A process of a service, and its watcher.
pub(crate) struct ClusterProcess {
    pub(crate) service: Service,
    name: &'static str,
    watcher: Option<Watcher>,
}

/// Everything that a round needs. The next round uses it too.
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
    pub(crate) ingest: Vec<ClusterProcess>,
    pub(crate) workers: Vec<ClusterProcess>,
    pub(crate) query: Vec<ClusterProcess>,
    /// The servers behind the proxies, as the services see them.
    behind: Servers,
    _ports: [Socket; 2],
}

impl Cluster {
    /// Starts the servers that are not running, and all services on a fresh vhost and a fresh database.
    pub(crate) async fn ready() -> Result<Self> {
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
        let mut cluster = Self {
            primary: servers.database_url.clone(),
            servers,
            ingest_url,
            query_url,
            broker_wire,
            database_wire,
            watch: Watch::default(),
            ingest: Vec::new(),
            workers: Vec::new(),
            query: Vec::new(),
            behind,
            _ports: ports,
        };
        cluster.fill().await;
        Ok(cluster)
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
        try_join_all(self.workers.drain(..).map(ClusterProcess::stop)).await.map(drop)
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

    /// Discards what the watchers have seen, and resets the peak memory of all processes.
    pub(crate) fn begin_anew(&self) {
        for process in self.processes() {
            usage::forget_peak(process.service.pid());
        }
        self.watch.take();
    }

    /// What was seen since [`Self::begin_anew`].
    pub(crate) fn seen(&self) -> Seen {
        let mut seen = self.watch.take();
        for process in self.processes() {
            seen.remember(process.name, usage::peak_megabytes(process.service.pid()).unwrap_or_default());
        }
        seen
    }

    fn processes(&self) -> impl Iterator<Item = &ClusterProcess> {
        self.ingest.iter().chain(&self.workers).chain(&self.query)
    }

    pub(crate) async fn start_query(&mut self) {
        let listen = self.query_url.replace("http://", "");
        let process = self.start("query", &[("CATCHALL_LISTEN", &*listen)]).await;
        self.query.push(process);
    }

    async fn start(&self, name: &'static str, more: &[(&str, &str)]) -> ClusterProcess {
        let service = Service::ready(name, &self.behind, more).await;
        let mut process = ClusterProcess { service, name, watcher: None };
        process.look(&self.watch);
        process
    }

    /// Prints the end of the log of every process.
    pub(crate) fn print_logs(&self) {
        for process in self.processes() {
            let log = process.service.log();
            for line in &log[log.len().saturating_sub(LOG_LINES)..] {
                println!("chaos: {}: {line}", process.name);
            }
        }
    }

    /// The first service that is not ready, with its answer.
    pub(crate) async fn not_ready(&self) -> Option<String> {
        for process in self.processes() {
            let readyz = HttpClient::without_keep_alive()
                .get(&format!("http://{}/readyz", process.service.ops_address()), Duration::from_secs(5))
                .await;
            if !readyz.as_ref().is_ok_and(|(status, _)| *status == StatusCode::OK) {
                return Some(format!("/readyz of {}: {readyz:?}", process.name));
            }
        }
        None
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

fn address(port: &Socket) -> SocketAddr {
    port.local_addr().ok().and_then(|address| address.as_socket()).expect("it is bound")
}

impl ClusterProcess {
    /// Starts a watcher for it.
    pub(crate) fn look(&mut self, watch: &Watch) {
        let ops_url = format!("http://{}", self.service.ops_address());
        self.watcher = Some(watch.over(self.name, self.service.pid(), ops_url));
    }

    /// Stops its watcher, because what follows is intended.
    pub(crate) fn look_away(&mut self) {
        self.watcher = None;
    }

    /// Stops it with SIGKILL.
    pub(crate) async fn kill(mut self) {
        self.look_away();
        self.service.signal("KILL");
        self.service.ended().await;
    }

    /// Stops it with SIGTERM.
    pub(crate) async fn stop(mut self) -> Result<()> {
        self.look_away();
        self.service.signal("TERM");
        let status = self.service.ended().await;
        if status.success() { Ok(()) } else { Err(anyhow!("{} ended with {status} on SIGTERM", self.name)) }
    }
}
