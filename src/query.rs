//! Query: tells what is known of a domain, from a replica.

mod lookup;
mod domain;
mod socketmap;

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use axum::Router;
use utoipa_axum::router::{OpenApiRouter, UtoipaMethodRouterExt};
use utoipa_axum::routes;

use crate::health::{Dependency, Health};
use crate::http;
use crate::network::NetworkConfig;
use crate::process::{self, Process};
use crate::shutdown::Shutdown;
use crate::store::CounterSource;
use crate::store::replica::{self, Replica};
use domain::Domains;
use lookup::{Lookups, read, warm_up};
use socketmap::Socketmap;

pub(crate) use lookup::READS_AT_ONCE;
pub use socketmap::SocketmapConfig;
pub(crate) use socketmap::both;

/// For the fuzzer: see [`socketmap::fuzz`].
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz_socketmap(data: &[u8]) {
    socketmap::fuzz(data);
}

/// What the document of its requests says first.
const ABOUT: http::About = http::About {
    title: "catchall-query",
    description: "Tells which e-mail domains are catch-alls.",
    address: "127.0.0.1:8081",
};

/// What query needs to know.
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

/// The rule's threshold, and how much may wait for an answer.
#[derive(Clone, Debug, clap::Args)]
#[group(skip)]
pub struct LookupConfig {
    /// Delivered events that a domain without a bounce must exceed to be a catch-all
    #[arg(long, env = "CATCHALL_THRESHOLD", value_name = "N", default_value_t = 1000)]
    threshold: u64,

    /// Requests that may wait for the database, on each thread. Further requests get a 503 at once
    #[arg(
        long,
        env = "CATCHALL_MAX_WAITING_READS",
        value_name = "N",
        default_value_t = 10_000,
        value_parser = clap::value_parser!(u32).range(1..)
    )]
    max_waiting_reads: u32,
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
        let (config, health) = (config.clone(), health.clone());
        move || router(&config, &health)
    };
    let stop = process.shutdown.clone();
    let serving = http::serve_per_thread(sockets, &config.http, &guard, router, &health, stop);
    tokio::select! {
        served = both(serving, mail) => served,
        served = http::serve_ops(ops, &guard, health.clone(), process.metrics, process.shutdown) => {
            served.context("the operations routes")
        }
        () = watched.watch(health.dependency("replica")) => Ok(()),
    }
}

/// The routes of one thread, with the replica behind them. Must be called on the thread's event loop.
fn router(config: &QueryConfig, health: &Health) -> Router {
    let replica = Replica::new(&config.replica, READS_AT_ONCE);
    http::documented(ABOUT, routes(&config.lookup, replica, health.dependency("replica")))
}

/// The routes of one thread, with readers of their own. Must be called on the thread's event loop.
pub(crate) fn routes<S: CounterSource>(
    config: &LookupConfig,
    source: S,
    dependency: Dependency,
) -> OpenApiRouter {
    let domains = domains(config, source, dependency);
    OpenApiRouter::default().routes(routes!(domain::get_domain).with_state(domains))
}

/// Serves a socketmap on a thread of its own, with readers of its own, until the shutdown and the grace period
/// after it. `source` is called on the event loop of that thread.
pub(crate) fn serve_socketmap<S: CounterSource>(
    socketmap: Socketmap,
    config: &LookupConfig,
    source: impl FnOnce() -> S + Send + 'static,
    dependency: Dependency,
    shutdown: Shutdown,
) -> impl Future<Output = anyhow::Result<()>> {
    let config = config.clone();
    socketmap::serve(socketmap, move || domains(&config, source(), dependency), shutdown)
}

/// What the handlers of one thread need, with readers of its own. Must be called on the thread's event loop.
/// The dependency is up once each of the [`READS_AT_ONCE`] readers has read.
fn domains<S: CounterSource>(config: &LookupConfig, source: S, dependency: Dependency) -> Domains {
    let (source, lookups) = (Arc::new(source), Arc::new(Lookups::new(config.max_waiting_reads as usize)));
    for _ in 0..READS_AT_ONCE {
        tokio::spawn(read(Arc::clone(&lookups), Arc::clone(&source)));
    }
    tokio::spawn(warm_up(source, dependency));
    Domains { lookups, threshold: config.threshold }
}
