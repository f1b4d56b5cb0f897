//! Ingest: HTTP events in, confirmed messages out.

mod spacing;
mod accept;
mod key;
mod put;
mod bulk;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzed;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use tokio::time::sleep;
use utoipa_axum::router::{OpenApiRouter, UtoipaMethodRouterExt};
use utoipa_axum::routes;

use crate::broker::{self, Publisher};
use crate::health::Health;
use crate::http::{self, Budget};
use crate::network::NetworkConfig;
use crate::process::{self, Process};
use crate::store::BatchSink;
use accept::{Intake, flush};

/// How often the metric of the body budget is updated.
const SHOW_INTERVAL: Duration = Duration::from_secs(1);

/// The beginning of the document of its requests.
const ABOUT: http::About = http::About {
    title: "catchall-ingest",
    description: "Takes delivery events, and answers when they are on disk.",
    address: "127.0.0.1:8080",
};

/// The configuration of ingest.
#[derive(Clone, Debug, clap::Args)]
#[group(skip)]
#[command(mut_arg("listen", |listen| listen.required(false).default_value("127.0.0.1:8080")))]
#[command(mut_arg("ops_listen", |listen| listen.required(false).default_value("127.0.0.1:9080")))]
pub struct IngestConfig {
    #[command(flatten)]
    broker: broker::BrokerConfig,

    #[command(flatten)]
    http: http::HttpConfig,

    #[command(flatten)]
    ops: http::OpsConfig,

    #[command(flatten)]
    network: NetworkConfig,

    #[command(flatten)]
    guard: http::GuardConfig,

    #[command(flatten)]
    intake: IntakeConfig,
}

/// How many events may wait to be counted, and how long.
#[derive(Clone, Debug, clap::Args)]
#[group(skip)]
pub struct IntakeConfig {
    /// How long an event may wait to be durable, in milliseconds, before its client gets a 503. Must be
    /// shorter than the clients' own timeout, or they never see the response
    #[arg(
        long,
        env = "CATCHALL_PUBLISH_DEADLINE_MS",
        value_name = "MS",
        default_value_t = 5_000,
        value_parser = clap::value_parser!(u64).range(1..=600_000)
    )]
    publish_deadline_ms: u64,

    /// Events that may wait to be durable, for each thread. Further events get a 503 at once. Each takes 100
    /// to 400 bytes
    #[arg(
        long,
        env = "CATCHALL_MAX_WAITING_EVENTS",
        value_name = "N",
        default_value_t = 100_000,
        value_parser = clap::value_parser!(u32).range(1..)
    )]
    max_waiting_events: u32,

    /// Memory, in MiB, for the bodies of all bulk requests and their parsed events. If none is left, a body
    /// waits 3 s, then gets a 503; slow clients lose their memory to faster ones
    #[arg(
        long,
        env = "CATCHALL_BODY_BUDGET_MIB",
        value_name = "MIB",
        default_value_t = 256,
        value_parser = clap::value_parser!(u32).range(32..=1_048_576)
    )]
    body_budget_mib: u32,

    #[command(flatten)]
    pub(crate) rates: http::EventRates,
}

/// The program: see [`process::main`].
#[must_use]
pub fn main() -> ExitCode {
    process::main(
        "catchall-ingest",
        "Takes delivery events over HTTP and answers when RabbitMQ has confirmed them",
        run,
    )
}

/// Binds, serves and publishes until the shutdown and the grace period after it.
///
/// # Errors
///
/// When a port cannot be bound or a server fails; never because the broker is unavailable.
pub async fn run(config: IngestConfig, process: Process) -> anyhow::Result<()> {
    config.broker.check()?;
    config.network.check(&[config.broker.exposure()])?;
    let guard = config.guard.load(Some(&config.http), &config.ops, Some(&config.intake.rates))?;
    let (sockets, ops) = (config.http.bind()?, config.ops.bind()?);
    let health = Health::default();
    tracing::info!(
        listen = %sockets[0].local_addr()?, ops_listen = %ops.local_addr()?, broker = %config.broker.amqp_url,
        "taking events"
    );
    let budget = config.intake.budget();
    let router = {
        let (config, health) = (config.clone(), health.clone());
        move || router(&config, &health, &budget)
    };
    let stop = process.shutdown.clone();
    let serving = http::serve_per_thread(sockets, &config.http, &guard, router, &health, stop);
    tokio::select! {
        served = serving => served,
        served = http::serve_ops(ops, &guard, health.clone(), process.metrics, process.shutdown) => {
            served.context("the operations routes")
        }
    }
}

impl IntakeConfig {
    /// The budget for bodies, with a metric of its use. All threads share it: their clients are not spread
    /// evenly, and its size is a limit for the process.
    pub(crate) fn budget(&self) -> Budget {
        let budget = Budget::new(self.body_budget_mib as usize * 1024 * 1024);
        tokio::spawn(show(budget.clone()));
        budget
    }

    /// Events that may wait to be durable, for each thread.
    pub(crate) fn max_waiting_events(&self) -> usize {
        self.max_waiting_events as usize
    }

    fn timeout(&self) -> Duration {
        Duration::from_millis(self.publish_deadline_ms)
    }
}

/// Reports how much of the budget is held, forever.
async fn show(budget: Budget) {
    let body_bytes = metrics::gauge!("catchall_ingest_body_bytes");
    loop {
        #[expect(clippy::cast_precision_loss, reason = "a figure of so many digits is exact enough")]
        body_bytes.set(budget.held() as f64);
        sleep(SHOW_INTERVAL).await;
    }
}

/// The routes of one thread, with the publisher behind them. Must be called on the thread's event loop.
fn router(config: &IngestConfig, health: &Health, budget: &Budget) -> Router {
    let broker = health.dependency("broker");
    let timeout = config.intake.timeout();
    let publisher = Publisher::connect(config.broker.clone(), "catchall-ingest".into(), broker, timeout);
    http::documented(ABOUT, routes(&config.intake, budget, publisher))
}

/// The routes of one thread. Their events go to the sink, and their bodies take memory from the budget. Must
/// be called on the thread's event loop.
pub(crate) fn routes<S: BatchSink>(config: &IntakeConfig, budget: &Budget, sink: S) -> OpenApiRouter {
    let intake = Arc::new(Intake::new(config.max_waiting_events()));
    tokio::spawn(flush(Arc::clone(&intake), sink, config.timeout()));
    OpenApiRouter::default()
        .routes(routes!(put::put_event).with_state(Arc::clone(&intake)))
        .routes(bulk::route(intake, budget.clone()))
}
