//! The standalone: one process with its data in one file, and what may take its place.

use std::collections::HashMap;
use std::fmt::Write;
use std::fs;
use std::net::SocketAddr;
use std::ops::Range;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use catchall_load::counts::Counts;
use futures::{StreamExt, TryStreamExt, stream};
use harness::expected::ExpectedCounts;
use harness::http::HttpClient;
use harness::processes::{Service, binary, command};
use harness::proxy::{Proxy, Wire, address, reserve};
use harness::servers::Servers;
use harness::small_disk::{on_small_disk, seen_by};
use harness::sql;
use harness::system::data_file;
use hyper::{Request, StatusCode};
use socket2::Socket;

use crate::cluster::Cluster;
use crate::process::WatchedProcess;
use crate::watch::Watch;

/// Room for a WAL that is as long as it gets and for the file, in MiB.
const SMALL_DISK: u32 = 192;

/// Events of a request that fills the file.
const POST: usize = 10_000;

/// So many keyed events, for so many domains, are in the file before a move: some steps of each kind.
const BEFORE_MOVE: u32 = 50_000;
const DOMAINS: u32 = 25_000;

/// How long a request of the round itself may take.
const TIMEOUT: Duration = Duration::from_secs(30);

/// By then a process that is stopped does nothing any more.
const STOPPED: Duration = Duration::from_millis(100);

/// How many domains are read at a time.
const READS: usize = 16;

/// What a round with the standalone needs.
pub(crate) struct Standalone {
    pub(crate) data: PathBuf,
    /// Where the process listens, whenever it is started.
    pub(crate) listen: SocketAddr,
    /// Where clients reach it.
    pub(crate) events_url: String,
    pub(crate) domains_url: String,
    /// None while it is killed, and once its data has been moved.
    pub(crate) process: Option<WatchedProcess>,
    pub(crate) watch: Watch,
    /// What takes its place in a move.
    pub(crate) cluster: Option<Cluster>,
    /// The counts expected for what was put into the file before the round.
    pub(crate) filled: ExpectedCounts,
    /// The connections of the clients that send events, and of those that read domains.
    events: Proxy,
    domains: Proxy,
    has_small_disk: bool,
    _port: Socket,
}

impl Standalone {
    /// Starts one on a new file.
    pub(crate) async fn ready() -> Self {
        let mut standalone = Self::new().await;
        standalone.start().await;
        standalone
    }

    /// Starts one on a small file system, which this user may mount.
    pub(crate) async fn on_small_disk() -> Self {
        let mut standalone = Self { has_small_disk: true, ..Self::new().await };
        standalone.start().await;
        standalone
    }

    /// Starts one with some data, and a cluster without services, to which its clients can be led.
    pub(crate) async fn before_move() -> Result<Self> {
        let mut standalone = Self::ready().await;
        let mut filled = ExpectedCounts::default();
        standalone.post("before-move", 0..BEFORE_MOVE, DOMAINS, &mut filled).await?;
        standalone.filled = filled;
        standalone.cluster = Some(Cluster::without_services(standalone.watch.clone()).await?);
        Ok(standalone)
    }

    async fn new() -> Self {
        let port = reserve();
        let listen = address(&port);
        let wire = async || Proxy::to(&listen.to_string(), true).await;
        let (events, domains) = (wire().await, wire().await);
        Self {
            data: data_file(),
            listen,
            events_url: format!("http://{}", events.address),
            domains_url: format!("http://{}", domains.address),
            process: None,
            watch: Watch::default(),
            cluster: None,
            filled: ExpectedCounts::default(),
            events,
            domains,
            has_small_disk: false,
            _port: port,
        }
    }

    /// Changes the state of the wires of all clients.
    pub(crate) fn wires(&self, wire: Wire) {
        self.events.be(wire);
        self.domains.be(wire);
    }

    /// New connections of all clients go to the services of the cluster.
    pub(crate) fn lead_up(&self, cluster: &Cluster) {
        self.events.lead_to(cluster.ingest_url.trim_start_matches("http://"));
        self.domains.lead_to(cluster.query_url.trim_start_matches("http://"));
    }

    /// Starts the process, and returns once it is ready.
    pub(crate) async fn start(&mut self) {
        let small = if self.has_small_disk { self.command_on_small_disk() } else { None };
        let listen = self.listen.to_string();
        let variables = [("CATCHALL_LISTEN", &*listen), ("CATCHALL_DATA", self.data())];
        let program = small.unwrap_or_else(|| command("standalone"));
        let service = Service::ready_by(program, "standalone", &Servers::none(), &variables).await;
        self.process = Some(WatchedProcess::new("standalone", service, &self.watch));
    }

    fn command_on_small_disk(&self) -> Option<Command> {
        let directory = self.data.parent().expect("a file is in a directory");
        on_small_disk(directory, SMALL_DISK, &format!("'{}'", binary("standalone")))
    }

    /// The path of the data file as an argument.
    pub(crate) fn data(&self) -> &str {
        self.data.to_str().expect("a path in UTF-8")
    }

    /// The directory of the data file, as the process sees it.
    pub(crate) fn directory(&self) -> Result<PathBuf> {
        let directory = self.data.parent().context("a file is in a directory")?;
        Ok(seen_by(self.running()?.service.pid(), directory))
    }

    /// The process, which has to run.
    pub(crate) fn running(&self) -> Result<&WatchedProcess> {
        self.process.as_ref().context("the standalone does not run")
    }

    pub(crate) fn processes(&self) -> impl Iterator<Item = &WatchedProcess> {
        self.process.iter().chain(self.cluster.iter().flat_map(Cluster::processes))
    }

    /// Sends keyed events with these numbers to so many domains, and expects each to be counted once.
    pub(crate) async fn post(
        &self,
        label: &str,
        numbers: Range<u32>,
        domains: u32,
        expected: &mut ExpectedCounts,
    ) -> Result<()> {
        let client = HttpClient::with_keep_alive();
        for begin in numbers.clone().step_by(POST) {
            let mut lines = String::new();
            for number in (begin..numbers.end).take(POST) {
                let domain = format!("d{}.{label}.test", number % domains);
                let event = r#""event":"delivered""#;
                writeln!(lines, r#"{{"domain":"{domain}",{event},"id":"{label}-{number}"}}"#)?;
                expected.expect(domain, 1, 1);
            }
            let begun = Instant::now();
            loop {
                let request = Request::post(format!("http://{}/events", self.listen))
                    .header("content-type", "application/x-ndjson")
                    .body(lines.clone().into())?;
                match client.send(request, TIMEOUT).await {
                    Ok((StatusCode::ACCEPTED, _)) => break,
                    // Each has an id, so it counts once however often it is sent.
                    Ok((StatusCode::SERVICE_UNAVAILABLE, _)) if begun.elapsed() < TIMEOUT => {}
                    other => bail!("{POST} events were answered with {other:?}"),
                }
            }
        }
        Ok(())
    }

    /// The text that a query of the data file returns, or of the cluster once it has taken over.
    pub(crate) async fn text(&self, query: &str) -> Result<String> {
        if let (None, Some(cluster)) = (&self.process, &self.cluster) {
            return sql::text(&cluster.primary, query).await;
        }
        if self.has_small_disk {
            return sql::text_in(&self.copy().await?, query).await;
        }
        sql::text_in(&self.data, query).await
    }

    /// A copy of the data file, as a kill at this moment would leave it. SQLite looks for a file by the end of
    /// all links, and so not where the process sees it.
    async fn copy(&self) -> Result<PathBuf> {
        let (copy, directory, service) = (data_file(), self.directory()?, &self.running()?.service);
        service.signal("STOP");
        // No thread of it writes any more.
        tokio::time::sleep(STOPPED).await;
        let copied = ["catchall.db", "catchall.db-wal"]
            .iter()
            .try_for_each(|name| fs::copy(directory.join(name), copy.with_file_name(name)).map(drop));
        service.signal("CONT");
        copied.context("a copy of the data file")?;
        Ok(copy)
    }

    /// The counters of the domains that have any: in the cluster once it has taken over.
    pub(crate) async fn counts(&self, domains: &[String]) -> Result<HashMap<String, Counts>> {
        if let (None, Some(cluster)) = (&self.process, &self.cluster) {
            return sql::counts(&cluster.primary, domains).await;
        }
        let client = HttpClient::with_keep_alive();
        let reads = domains.iter().map(async |domain| {
            let url = format!("http://{}/domains/{domain}", self.listen);
            let (status, body) = client.get(&url, TIMEOUT).await.map_err(|reason| anyhow!("{reason}"))?;
            let answer: serde_json::Value =
                serde_json::from_str(&body).with_context(|| format!("{status} {body}"))?;
            let count = |name: &str| answer[name].as_u64().with_context(|| format!("{status} {body}"));
            let counts = Counts { delivered: count("delivered")?, bounced: count("bounced")? };
            anyhow::Ok((domain.clone(), counts))
        });
        let counts: HashMap<String, Counts> = stream::iter(reads).buffered(READS).try_collect().await?;
        Ok(counts.into_iter().filter(|(_, counts)| counts.delivered + counts.bounced > 0).collect())
    }
}
