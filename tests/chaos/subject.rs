//! What a round sends events to, reads counters from, and breaks.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::{Result, bail};
use catchall_load::counts::Counts;
use harness::http::HttpClient;
use harness::sql;
use harness::usage;
use hyper::StatusCode;

use crate::cluster::Cluster;
use crate::process::WatchedProcess;
use crate::standalone::Standalone;
use crate::watch::{Seen, Watch};

/// How many lines of each log are printed after a failure.
const LOG_LINES: usize = 15;

/// How the system is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// Services on one broker and two databases.
    Cluster,
    /// One process with its data in one file.
    Standalone,
    /// The same, on a small file system of its own.
    StandaloneOnSmallDisk,
    /// The same, with some data and a cluster beside it, to which its clients can be led.
    StandaloneBeforeMove,
}

/// A running system. The next round uses it too, if its fault breaks the same form.
#[expect(clippy::large_enum_variant, reason = "there is one of it at a time")]
pub(crate) enum Subject {
    /// The services.
    Cluster(Cluster),
    /// The one process, and the cluster that takes its place in one of the rounds.
    Standalone(Standalone),
}

impl Subject {
    /// Starts the system in this form, with no data of a former round.
    pub(crate) async fn ready(form: Form) -> Result<Self> {
        Ok(match form {
            Form::Cluster => Self::Cluster(Cluster::ready().await?),
            Form::Standalone => Self::Standalone(Standalone::ready().await),
            Form::StandaloneOnSmallDisk => Self::Standalone(Standalone::on_small_disk().await),
            Form::StandaloneBeforeMove => Self::Standalone(Standalone::before_move().await?),
        })
    }

    /// The cluster, for the faults that break one.
    pub(crate) fn cluster(&mut self) -> Result<&mut Cluster> {
        match self {
            Self::Cluster(cluster) => Ok(cluster),
            Self::Standalone(_) => bail!("this fault needs a cluster: see Fault::form"),
        }
    }

    /// The standalone, for the faults that break one.
    pub(crate) fn standalone(&mut self) -> Result<&mut Standalone> {
        match self {
            Self::Standalone(standalone) => Ok(standalone),
            Self::Cluster(_) => bail!("this fault needs a standalone: see Fault::form"),
        }
    }

    /// Where events are sent by HTTP.
    pub(crate) fn events_url(&self) -> &str {
        match self {
            Self::Cluster(cluster) => &cluster.ingest_url,
            Self::Standalone(standalone) => &standalone.events_url,
        }
    }

    /// Where domains are read.
    pub(crate) fn domains_url(&self) -> &str {
        match self {
            Self::Cluster(cluster) => &cluster.query_url,
            Self::Standalone(standalone) => &standalone.domains_url,
        }
    }

    /// Where events are published directly, if that is a way into it.
    pub(crate) fn amqp_url(&self) -> Option<&str> {
        match self {
            Self::Cluster(cluster) => Some(&cluster.servers.amqp_url),
            Self::Standalone(_) => None,
        }
    }

    /// The counters of the domains that have any, wherever they are kept now.
    pub(crate) async fn counts(&self, domains: &[String]) -> Result<HashMap<String, Counts>> {
        match self {
            Self::Cluster(cluster) => sql::counts(&cluster.primary, domains).await,
            Self::Standalone(standalone) => standalone.counts(domains).await,
        }
    }

    /// The text that a query returns, wherever the counters are kept now.
    pub(crate) async fn text(&self, query: &str) -> Result<String> {
        match self {
            Self::Cluster(cluster) => sql::text(&cluster.primary, query).await,
            Self::Standalone(standalone) => standalone.text(query).await,
        }
    }

    /// Discards what the watchers have seen, and resets the peak memory of all processes.
    pub(crate) fn begin_anew(&self) {
        for process in self.processes() {
            usage::forget_peak(process.service.pid());
        }
        self.watch().take();
    }

    /// What was seen since [`Self::begin_anew`].
    pub(crate) fn seen(&self) -> Seen {
        let mut seen = self.watch().take();
        for process in self.processes() {
            seen.remember(process.name, process.service.pid());
        }
        seen
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

    /// The first process that is not ready, with its answer.
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

    fn processes(&self) -> Vec<&WatchedProcess> {
        match self {
            Self::Cluster(cluster) => cluster.processes().collect(),
            Self::Standalone(standalone) => standalone.processes().collect(),
        }
    }

    fn watch(&self) -> &Watch {
        match self {
            Self::Cluster(cluster) => &cluster.watch,
            Self::Standalone(standalone) => &standalone.watch,
        }
    }
}
