//! The whole system, on wires that can be cut: one ingest, two workers, one query.

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

/// How long an event waits for the confirm before its client gets a 503, unless it is said otherwise.
pub(crate) const PUBLISH_DEADLINE: Duration = Duration::from_secs(5);

/// In the URL of the broker: a peer that is gone without a word is noticed after four to six seconds. With
/// less, a busy machine takes live peers for dead ones.
const HEARTBEAT: &str = "heartbeat=2";

/// How long the primary works on one statement. After half as long again a silent one is given up.
const STATEMENT_TIMEOUT_SECS: &str = "6";

/// Messages handed to a worker ahead: few, so that neighbours in the queue are with both.
const PREFETCH: &str = "100";

/// Lines of each log that are printed after a failure.
const LOG_LINES: usize = 15;

/// How long the primary and the replica may take to be what they have to be.
const SERVERS: Duration = Duration::from_secs(30);

/// A process of a service, and who looks at it.
pub(crate) struct ClusterProcess {
    pub(crate) service: Service,
    name: &'static str,
    watcher: Option<Watcher>,
}

/// Everything one round needs; the next goes on with it.
pub(crate) struct Cluster {
    /// The servers themselves.
    pub(crate) servers: Servers,
    /// The server that has the counters at present.
    pub(crate) primary: String,
    pub(crate) ingest_url: String,
    pub(crate) query_url: String,
    /// From ingest and the workers to the broker.
    pub(crate) broker_wire: Proxy,
    /// From the workers to the primary.
    pub(crate) database_wire: Proxy,
    pub(crate) watch: Watch,
    pub(crate) ingest: Vec<ClusterProcess>,
    pub(crate) workers: Vec<ClusterProcess>,
    pub(crate) query: Vec<ClusterProcess>,
    /// The servers as the services see them.
    behind: Servers,
    _ports: [Socket; 2],
}

impl Cluster {
    /// Starts whatever does not run, and all services on a fresh vhost and a fresh database.
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
        // A port that is shared and never given to others: the address stays while processes come and go.
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

    /// Starts what is missing, and returns once all of it is ready.
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

    /// A worker with settings of its own: each round that wants one replaces it.
    async fn start_worker_with(&mut self, more: &[(&str, &str)]) {
        let usual =
            [("CATCHALL_STATEMENT_TIMEOUT_SECS", STATEMENT_TIMEOUT_SECS), ("CATCHALL_PREFETCH", PREFETCH)];
        let process = self.start("worker", &[&usual, more].concat()).await;
        self.workers.push(process);
    }

    /// Ends the workers in order.
    pub(crate) async fn stop_workers(&mut self) -> Result<()> {
        try_join_all(self.workers.drain(..).map(ClusterProcess::stop)).await.map(drop)
    }

    /// Starts two workers with these settings beside the usual ones.
    pub(crate) async fn start_workers_with(&mut self, more: &[(&str, &str)]) {
        for _ in 0..2 {
            self.start_worker_with(more).await;
        }
    }

    /// Puts usual workers in the place of others.
    pub(crate) async fn usual_workers(&mut self) -> Result<()> {
        self.stop_workers().await?;
        self.fill().await;
        Ok(())
    }

    /// Forgets what was seen until now, and how much memory was taken.
    pub(crate) fn begin_anew(&self) {
        for process in self.processes() {
            usage::forget_peak(process.service.pid());
        }
        self.watch.take();
    }

    /// What was seen since then.
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

    /// The end of the log of every process, for whoever wonders what went wrong.
    pub(crate) fn print_logs(&self) {
        for process in self.processes() {
            let log = process.service.log();
            for line in &log[log.len().saturating_sub(LOG_LINES)..] {
                println!("chaos: {}: {line}", process.name);
            }
        }
    }

    /// What keeps a service from being ready.
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

/// Whether the replica is one, and follows the primary.
async fn replica_follows() -> bool {
    let [primary, replica] = ["DATABASE", "REPLICA"]
        .map(|name| std::env::var(format!("CATCHALL_TEST_{name}_URL")).expect("./dev chaos sets it"));
    let streams = "select state from pg_stat_replication where state = 'streaming'";
    let replays = "select 'yes' where pg_is_in_recovery()";
    sql::column(&replica, replays).await.is_ok_and(|rows| !rows.is_empty())
        && sql::until_row(&primary, streams, SERVERS).await.is_ok()
}

/// Makes a new primary and a new replica in the place of what there is.
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
    /// Has somebody look at it.
    pub(crate) fn look(&mut self, watch: &Watch) {
        let ops_url = format!("http://{}", self.service.ops_address());
        self.watcher = Some(watch.over(self.name, self.service.pid(), ops_url));
    }

    /// What comes next is our doing: nobody looks at it any more.
    pub(crate) fn look_away(&mut self) {
        self.watcher = None;
    }

    /// Kills it, as a crash of its machine would.
    pub(crate) async fn kill(mut self) {
        self.look_away();
        self.service.signal("KILL");
        self.service.ended().await;
    }

    /// Ends it in order.
    pub(crate) async fn stop(mut self) -> Result<()> {
        self.look_away();
        self.service.signal("TERM");
        let status = self.service.ended().await;
        if status.success() { Ok(()) } else { Err(anyhow!("{} ended with {status} on SIGTERM", self.name)) }
    }
}
