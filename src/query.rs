//! Query: tells what is known of domains, from a replica.

mod lookup;
mod source;
mod parameters;
mod freshness;
mod rows;
mod domain;
mod names;
mod list;
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
use source::Source;

pub(crate) use lookup::READS_AT_ONCE;

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
}

/// The rule's threshold, and how much may wait for an answer.
#[derive(Clone, Debug, clap::Args)]
#[group(skip)]
pub struct LookupConfig {
    /// Delivered events that a domain without a bounce must exceed to be a catch-all, where look-ups are to
    /// go by another threshold than what is stored (1000, unless it was changed)
    #[arg(long, env = "CATCHALL_THRESHOLD", value_name = "N")]
    threshold: Option<u64>,

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
    let health = Health::default();
    tracing::info!(
        listen = %sockets[0].local_addr()?,
        ops_listen = %ops.local_addr()?,
        replica = %config.replica.replica_url,
        "answering queries"
    );
    let watched = Replica::new(&config.replica, READS_AT_ONCE);
    let router = {
        let (config, health, stop) = (config.clone(), health.clone(), process.shutdown.clone());
        let budget = budget();
        move || router(&config, &health, &budget, stop.clone())
    };
    let stop = process.shutdown.clone();
    let serving = http::serve_per_thread(sockets, &config.http, &guard, router, &health, stop);
    tokio::select! {
        served = serving => served,
        served = http::serve_ops(ops, &guard, health.clone(), process.metrics, process.shutdown) => {
            served.context("the operations routes")
        }
        () = watched.watch(health.dependency("replica")) => Ok(()),
    }
}

/// The routes of one thread, with the replica behind them. Must be called on the thread's event loop.
fn router(config: &QueryConfig, health: &Health, budget: &Budget, shutdown: Shutdown) -> Router {
    let replica = Replica::new(&config.replica, READS_AT_ONCE);
    let routes = routes(&config.lookup, replica, health.dependency("replica"), budget, shutdown);
    http::documented(ABOUT, routes)
}

/// Memory for the bodies of look-ups, of all threads.
pub(crate) fn budget() -> Budget {
    Budget::new(names::BUDGET)
}

/// The routes of one thread, with readers of their own. Must be called on the thread's event loop. The
/// dependency is up once each of the [`READS_AT_ONCE`] readers has read. Answers that have no end of their
/// own end with the shutdown.
pub(crate) fn routes<S: DomainSource>(
    config: &LookupConfig,
    source: S,
    dependency: Dependency,
    budget: &Budget,
    shutdown: Shutdown,
) -> OpenApiRouter {
    let (source, lookups) = (Arc::new(source), Arc::new(Lookups::new(config.max_waiting_reads as usize)));
    for _ in 0..READS_AT_ONCE {
        tokio::spawn(read(Arc::clone(&lookups), Arc::clone(&source)));
    }
    tokio::spawn(warm_up(Arc::clone(&source), dependency));
    let source = Source::new(source);
    let domains = Domains { lookups, threshold: config.threshold };
    let changes = Changes::new(Feed::new(source.clone()), shutdown);
    OpenApiRouter::default()
        .routes(routes!(domain::get_domain).with_state(domains.clone()))
        .routes(names::route(source.clone(), config.threshold, budget.clone()))
        .routes(routes!(list::list_domains).with_state(Lists::new(source.clone())))
        .routes(routes!(totals::get_totals).with_state(source.clone()))
        .routes(routes!(changes::get_changes).with_state(changes))
        .merge(page::routes(domains, source))
}
