//! Query: what is known of a domain, from a replica.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::routing::get;
use axum::{Json, Router};
use futures::future::try_join_all;
use serde::Serialize;

use crate::batcher::Batcher;
use crate::counters::{Counters, Status};
use crate::domain_name::DomainName;
use crate::excerpt::excerpt;
use crate::health::{Dependency, Health};
use crate::http::{self, Problem};
use crate::process::{self, Process};
use crate::store::replica::{self, Replica};

/// Reads each thread has under way at a time. One would leave the replica idle while rows are decoded; more
/// make the groups smaller and the cost of a read higher.
const READS_AT_ONCE: u32 = 2;

/// How long after a failure a thread tries again to open its connections.
const WARM_UP_INTERVAL: Duration = Duration::from_secs(1);

/// What query needs to know.
#[derive(Clone, Debug, clap::Args)]
#[group(skip)]
#[command(mut_arg("listen", |listen| listen.required(false).default_value("127.0.0.1:8081")))]
#[command(mut_arg("ops_listen", |listen| listen.required(false).default_value("127.0.0.1:9081")))]
pub struct Config {
    #[command(flatten)]
    replica: replica::Config,

    #[command(flatten)]
    http: http::Config,

    #[command(flatten)]
    ops: http::OpsConfig,

    /// Delivered events, without a bounce, that a domain must exceed to be a catch-all
    #[arg(long, env = "CATCHALL_THRESHOLD", value_name = "N", default_value_t = 1000)]
    threshold: u64,

    /// Requests that may wait for the replica, on each thread, before further ones get a 503 at once
    #[arg(long, env = "CATCHALL_MAX_WAITING_READS", value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..))]
    max_waiting_reads: u32,
}

/// What one read found, in the order of the names, for all who wait for it; nothing when the replica did not answer.
type Found = Option<Arc<[Counters]>>;

/// Where the handlers of one thread leave names, and its readers take them.
type Questions = Batcher<Vec<DomainName>, Found>;

/// The program: see [`process::main`].
#[must_use]
pub fn main() -> ExitCode {
    process::main(
        "catchall-query",
        "Tells over HTTP which domains are catch-alls, reading from a Postgres replica",
        run,
    )
}

/// Binds and serves until the shutdown and the grace after it.
///
/// # Errors
///
/// When a port cannot be had or a server fails; never for a replica that is away.
pub async fn run(config: Config, process: Process) -> anyhow::Result<()> {
    let (sockets, ops) = (config.http.bind()?, config.ops.bind()?);
    let health = Health::default();
    tracing::info!(
        listen = %sockets[0].local_addr()?, ops_listen = %ops.local_addr()?, replica = %config.replica.replica_url,
        "answering queries"
    );
    let watched = Replica::new(&config.replica, READS_AT_ONCE);
    let router = {
        let (config, health) = (config.clone(), health.clone());
        move || router(&config, &health)
    };
    tokio::select! {
        served = http::serve_per_thread(sockets, &config.http, router, &health, process.shutdown.clone()) => served,
        served = http::serve_ops(ops, health.clone(), process.metrics, process.shutdown) => served.context("the operations routes"),
        () = watched.watch(health.dependency("replica")) => Ok(()),
    }
}

/// The routes of one thread, with the readers behind them. To be called on the thread's event loop.
fn router(config: &Config, health: &Health) -> Router {
    let questions = Arc::new(Questions::new(config.max_waiting_reads as usize));
    let replica = Replica::new(&config.replica, READS_AT_ONCE);
    for _ in 0..READS_AT_ONCE {
        tokio::spawn(read(Arc::clone(&questions), replica.clone()));
    }
    tokio::spawn(warm_up(replica, health.dependency("replica")));
    let threshold = config.threshold;
    let get_domain = async move |State(questions): State<Arc<Questions>>,
                                 path: Result<Path<String>, PathRejection>| {
        get_domain(&questions, path, threshold).await
    };
    http::with_problems(Router::new().route("/domains/{domain}", get(get_domain)).with_state(questions))
}

/// Opens the connections of a thread before the process is ready: whoever asks first would wait for them, and in
/// vain when they take too long.
async fn warm_up(replica: Replica, dependency: Dependency) {
    // At once: one after the other would use one connection.
    while try_join_all((0..READS_AT_ONCE).map(|_| replica.counters(&[]))).await.is_err() {
        // What is wrong is found and told by the watch over the replica.
        tokio::time::sleep(WARM_UP_INTERVAL).await;
    }
    dependency.up();
}

/// Takes the names that have gathered, reads them in one query and answers everyone, for ever.
async fn read(questions: Arc<Questions>, replica: Replica) {
    let reads = metrics::counter!("catchall_query_reads_total");
    let failed = metrics::counter!("catchall_query_failed_reads_total");
    let read_seconds = metrics::histogram!("catchall_query_read_seconds");
    let mut away = false;
    loop {
        let flush = questions.take().await;
        let begun = Instant::now();
        let found = match replica.counters(&flush.items).await {
            Ok(found) => {
                reads.increment(flush.answer.weight() as u64);
                read_seconds.record(begun.elapsed());
                away = false;
                Some(found.into())
            }
            Err(error) => {
                failed.increment(flush.answer.weight() as u64);
                // Once per outage: the next thousand reads have nothing new to say.
                if !std::mem::replace(&mut away, true) {
                    tracing::warn!(reason = %error, "cannot read: {error}");
                }
                None
            }
        };
        flush.answer.send(found);
    }
}

/// What is known of a domain.
#[derive(Debug, Serialize)]
struct Answer {
    domain: DomainName,
    status: Status,
    delivered: u64,
    bounced: u64,
}

/// The domain of a path.
fn domain(path: Result<Path<String>, PathRejection>) -> Result<DomainName, Problem> {
    let Path(domain) = path.map_err(|error| Problem::BadRequest(excerpt(error.body_text())))?;
    DomainName::parse(&domain).map_err(|error| {
        let domain = excerpt(format_args!("{domain:?}"));
        Problem::BadRequest(format!("the domain {domain} is not valid: {error}"))
    })
}

/// `GET /domains/{domain}`. A domain that was never seen has had no events, which is an answer like any other.
async fn get_domain(
    questions: &Questions,
    path: Result<Path<String>, PathRejection>,
    threshold: u64,
) -> Result<Json<Answer>, Problem> {
    let domain = domain(path)?;
    let mut place = 0;
    let ticket = questions.submit(1, |names| {
        place = names.len();
        names.push(domain.clone());
    });
    let ticket =
        ticket.map_err(|_| Problem::Unavailable("too many requests are waiting for the database".into()))?;
    let Ok(Some(found)) = ticket.await else {
        return Err(Problem::Unavailable("the database cannot be read".into()));
    };
    let counters = found.get(place).copied().unwrap_or_default();
    let Counters { delivered, bounced } = counters;
    Ok(Json(Answer { domain, status: counters.status(threshold), delivered, bounced }))
}
