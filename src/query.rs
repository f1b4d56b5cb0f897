//! Query: answers queries about domains from a replica.

mod lookup;
mod source;
mod parameters;
mod answer;
mod rows;
mod domain;
mod socketmap;
mod names;
mod list;
mod maps;
mod totals;
mod feed;
mod changes;
mod page;

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use axum::Router;
use utoipa_axum::router::{OpenApiRouter, UtoipaMethodRouterExt};
use utoipa_axum::routes;

use crate::health::{Dependency, Health};
use crate::http::{self, Budget};
use crate::network::NetworkConfig;
use crate::process::{self, Process};
use crate::shutdown::Shutdown;
use crate::store::DomainSource;
use crate::store::replica::{self, Replica};
use changes::Changes;
use domain::Domains;
use feed::Feed;
use list::Lists;
use lookup::{Lookups, read, warm_up};
use page::{LastGlance, PageState};
use socketmap::Socketmap;
use source::Source;

pub(crate) use lookup::READS_AT_ONCE;
pub use socketmap::SocketmapConfig;
pub(crate) use socketmap::both;

/// For the fuzzer: see [`socketmap::fuzz`].
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz_socketmap(data: &[u8]) {
    socketmap::fuzz(data);
}

/// The beginning of the document of its requests.
const ABOUT: http::About = http::About {
    title: "catchall-query",
    description: "Tells which e-mail domains are catch-alls.",
    address: "127.0.0.1:8081",
};

/// The configuration of query.
#[derive(Clone, Debug, clap::Args)]
#[group(skip)]
#[command(mut_arg("listen", |listen| listen.required(false).default_value("127.0.0.1:8081")))]
#[command(mut_arg("ops_listen", |listen| listen.required(false).default_value("127.0.0.1:9081")))]
pub struct QueryConfig {
    #[command(flatten)]
    replica: replica::ReplicaConfig,

    #[command(flatten)]
    http: http::HttpConfig,

    #[command(flatten)]
    ops: http::OpsConfig,

    #[command(flatten)]
    network: NetworkConfig,

    #[command(flatten)]
    guard: http::GuardConfig,

    #[command(flatten)]
    lookup: LookupConfig,

    #[command(flatten)]
    socketmap: SocketmapConfig,
}

/// The threshold of the rule, and how many requests may wait for an answer.
#[derive(Clone, Debug, clap::Args)]
#[group(skip)]
pub struct LookupConfig {
    /// Threshold for look-ups only: delivered events that a domain without a bounce must exceed to be a
    /// catch-all. Without it, look-ups use the stored threshold (1000, unless it was changed)
    #[arg(
        long,
        env = "CATCHALL_THRESHOLD",
        value_name = "N",
        value_parser = clap::value_parser!(u64).range(..=i64::MAX.unsigned_abs())
    )]
    threshold: Option<u64>,

    /// Requests that may wait for the database, for each thread. Further requests get a 503 at once
    #[arg(
        long,
        env = "CATCHALL_MAX_WAITING_READS",
        value_name = "N",
        default_value_t = 10_000,
        value_parser = clap::value_parser!(u32).range(1..)
    )]
    max_waiting_reads: u32,
}

impl LookupConfig {
    /// Takes out the threshold; look-ups then use the stored one.
    pub(crate) fn take_threshold(&mut self) -> Option<u64> {
        self.threshold.take()
    }
}

/// The program: see [`process::main`].
#[must_use]
pub fn main() -> ExitCode {
    process::main(
        "catchall-query",
        "Tells over HTTP which domains are catch-alls, reading from a Postgres replica",
        run,
    )
}

/// Binds and serves until the shutdown and the grace period after it.
///
/// # Errors
///
/// When a port cannot be bound or a server fails; never because the replica is unavailable.
pub async fn run(config: QueryConfig, process: Process) -> anyhow::Result<()> {
    config.network.check(&[config.replica.exposure()])?;
    let guard = config.guard.load(Some(&config.http), &config.ops, None)?;
    let (sockets, ops) = (config.http.bind()?, config.ops.bind()?);
    let socketmap = config.socketmap.bind(&config.guard)?;
    let health = Health::default();
    tracing::info!(
        listen = %sockets[0].local_addr()?,
        ops_listen = %ops.local_addr()?,
        replica = %config.replica.replica_url,
        "answering queries"
    );
    let watched = Replica::new(&config.replica, READS_AT_ONCE);
    let mail = socketmap.map(|socketmap| {
        let replica = config.replica.clone();
        let replica = move || Replica::new(&replica, READS_AT_ONCE);
        let dependency = health.dependency("replica");
        serve_socketmap(socketmap, &config.lookup, replica, dependency, process.shutdown.clone())
    });
    let router = {
        let (config, health, stop) = (config.clone(), health.clone(), process.shutdown.clone());
        let shared = SharedByThreads::default();
        move || router(&config, &health, &shared, stop.clone())
    };
    let stop = process.shutdown.clone();
    let serving = http::serve_per_thread(sockets, &config.http, &guard, router, &health, stop);
    tokio::select! {
        served = both(serving, mail) => served,
        served = http::serve_ops(ops, &guard, health.clone(), process.metrics, process.shutdown) => {
            served.context("the operations routes")
        }
        () = watched.watch(health.dependency("replica"), config.lookup.threshold) => Ok(()),
    }
}

/// The routes of one thread, with the replica behind them. Must be called on the thread's event loop.
fn router(config: &QueryConfig, health: &Health, shared: &SharedByThreads, shutdown: Shutdown) -> Router {
    let replica = Replica::new(&config.replica, READS_AT_ONCE);
    let routes = routes(&config.lookup, replica, health.dependency("replica"), shared, shutdown);
    http::documented(ABOUT, routes)
}

/// Shared by the threads of a process.
#[derive(Clone)]
pub(crate) struct SharedByThreads {
    /// Memory for look-ups and large answers.
    budget: Budget,
    glance: LastGlance,
}

impl Default for SharedByThreads {
    fn default() -> Self {
        Self { budget: Budget::new(names::BUDGET), glance: LastGlance::default() }
    }
}

/// The routes of one thread, with their own readers. Must be called on the thread's event loop. Endless
/// answers end with the shutdown.
pub(crate) fn routes<S: DomainSource>(
    config: &LookupConfig,
    source: S,
    dependency: Dependency,
    shared: &SharedByThreads,
    shutdown: Shutdown,
) -> OpenApiRouter {
    let source = Arc::new(source);
    let domains = domains(config, Arc::clone(&source), dependency);
    let source = Source::new(source);
    let changes = Changes::new(Feed::new(source.clone()), shared.budget.clone(), shutdown);
    let lists = Lists::new(source.clone(), shared.budget.clone());
    OpenApiRouter::default()
        .routes(routes!(domain::get_domain).with_state(domains.clone()))
        .routes(names::route(source.clone(), config.threshold, shared.budget.clone()))
        .routes(routes!(list::list_domains).with_state(lists.clone()))
        .routes(routes!(maps::get_map).with_state(lists))
        .routes(routes!(totals::get_totals).with_state(source.clone()))
        .routes(routes!(changes::get_changes).with_state(changes))
        .merge(page::routes(PageState::new(domains, source, shared.budget.clone(), shared.glance.clone())))
}

/// Serves a socketmap on a separate thread, with its own readers, until the shutdown and the grace period
/// after it. `source` is called on the event loop of that thread.
pub(crate) fn serve_socketmap<S: DomainSource>(
    socketmap: Socketmap,
    config: &LookupConfig,
    source: impl FnOnce() -> S + Send + 'static,
    dependency: Dependency,
    shutdown: Shutdown,
) -> impl Future<Output = anyhow::Result<()>> {
    let config = config.clone();
    let domains = move || domains(&config, Arc::new(source()), dependency);
    socketmap::serve(socketmap, domains, shutdown)
}

/// The look-ups of one thread, with their own readers. Must be called on the thread's event loop. The
/// dependency is up once each of the [`READS_AT_ONCE`] readers has read.
fn domains<S: DomainSource>(config: &LookupConfig, source: Arc<S>, dependency: Dependency) -> Domains {
    let lookups = Arc::new(Lookups::new(config.max_waiting_reads as usize));
    for _ in 0..READS_AT_ONCE {
        tokio::spawn(read(Arc::clone(&lookups), Arc::clone(&source)));
    }
    tokio::spawn(warm_up(source, dependency));
    Domains { lookups, threshold: config.threshold }
}
