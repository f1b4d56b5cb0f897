//! Ingest: HTTP events in, confirmed messages out.

mod body;
mod bulk;
mod spacing;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use axum::extract::rejection::PathRejection;
use axum::extract::{FromRequestParts, Path, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::put;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use metrics::{Counter, Histogram};
use tokio::time::{Instant, sleep, sleep_until};

use crate::batch::Batch;
use crate::batcher::{Batcher, Flush, Ticket};
use crate::broker::{self, Message, PublishError, Publisher};
use crate::domain_name::DomainName;
use crate::event::{Event, IdempotencyKey, Outcome};
use crate::excerpt::excerpt;
use crate::health::Health;
use crate::http::{self, Budget, Problem};
use crate::process::{self, Process};
use spacing::Spacing;

/// How often the metric of the budget is brought up to date.
const SHOW_INTERVAL: Duration = Duration::from_secs(1);

/// The clients' name for the key under which a request counts once (draft-ietf-httpapi-idempotency-key-header).
const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// What ingest needs to know.
#[derive(Clone, Debug, clap::Args)]
#[group(skip)]
#[command(mut_arg("listen", |listen| listen.required(false).default_value("127.0.0.1:8080")))]
#[command(mut_arg("ops_listen", |listen| listen.required(false).default_value("127.0.0.1:9080")))]
pub struct Config {
    #[command(flatten)]
    broker: broker::Config,

    #[command(flatten)]
    http: http::Config,

    #[command(flatten)]
    ops: http::OpsConfig,

    /// How long an event waits for the broker's confirm, in milliseconds, before its client gets a 503. Shorter
    /// than the clients' own timeout, or they never see the answer
    #[arg(long, env = "CATCHALL_PUBLISH_DEADLINE_MS", value_name = "MS", default_value_t = 5_000, value_parser = clap::value_parser!(u64).range(1..=600_000))]
    publish_deadline_ms: u64,

    /// Events that may wait for the broker's confirm, on each thread, before further ones get a 503 at once. Each
    /// takes 100 to 400 bytes
    #[arg(long, env = "CATCHALL_MAX_WAITING_EVENTS", value_name = "N", default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..))]
    max_waiting_events: u32,

    /// Memory, in MiB, that the bodies of bulk requests and what is made of them may take in all. What finds no room
    /// waits 3 s, then gets a 503; slow clients lose theirs to quick ones
    #[arg(long, env = "CATCHALL_BODY_BUDGET_MIB", value_name = "MIB", default_value_t = 256, value_parser = clap::value_parser!(u32).range(32..=1_048_576))]
    body_budget_mib: u32,
}

/// What became of a group of events.
type Published = Result<(), PublishError>;

/// Where the handlers of one thread leave events, and its publisher takes them.
type Intake = Batcher<Batch, Published>;

/// The program: see [`process::main`].
#[must_use]
pub fn main() -> ExitCode {
    process::main(
        "catchall-ingest",
        "Takes delivery events over HTTP and answers once RabbitMQ has confirmed them",
        run,
    )
}

/// Binds, serves, publishes, until the shutdown and the grace after it.
///
/// # Errors
///
/// When a port cannot be had or a server fails; never for a broker that is away.
pub async fn run(config: Config, process: Process) -> anyhow::Result<()> {
    let (sockets, ops) = (config.http.bind()?, config.ops.bind()?);
    let health = Health::default();
    tracing::info!(
        listen = %sockets[0].local_addr()?, ops_listen = %ops.local_addr()?, broker = %config.broker.amqp_url,
        "taking events"
    );
    // One for all threads: their clients are not spread evenly, and its size is a limit of the process.
    let budget = Budget::new(config.body_budget_mib as usize * 1024 * 1024);
    tokio::spawn(show(budget.clone()));
    let router = {
        let (config, health) = (config.clone(), health.clone());
        move || router(&config, &health, &budget)
    };
    tokio::select! {
        served = http::serve_per_thread(sockets, &config.http, router, &health, process.shutdown.clone()) => served,
        served = http::serve_ops(ops, health.clone(), process.metrics, process.shutdown) => served.context("the operations routes"),
    }
}

/// Shows what is held of the budget, for ever.
async fn show(budget: Budget) {
    let body_bytes = metrics::gauge!("catchall_ingest_body_bytes");
    loop {
        #[expect(clippy::cast_precision_loss, reason = "a figure of so many digits is exact enough")]
        body_bytes.set(budget.held() as f64);
        sleep(SHOW_INTERVAL).await;
    }
}

/// The routes of one thread, with the publisher behind them. To be called on the thread's event loop.
fn router(config: &Config, health: &Health, budget: &Budget) -> Router {
    let intake = Arc::new(Intake::new(config.max_waiting_events as usize));
    let timeout = Duration::from_millis(config.publish_deadline_ms);
    let broker = health.dependency("broker");
    let publisher = Publisher::connect(config.broker.clone(), "catchall-ingest".into(), broker, timeout);
    tokio::spawn(publish(Arc::clone(&intake), publisher, timeout));
    let routes = Router::new()
        .route("/events/{domain}/{outcome}", put(put_event))
        .with_state(Arc::clone(&intake))
        .route("/events", bulk::route(intake, budget.clone()));
    http::with_problems(routes)
}

/// Takes what has gathered whenever the next message is worth sending, publishes it and answers everyone in it, for ever.
async fn publish(intake: Arc<Intake>, publisher: Publisher, timeout: Duration) {
    let metrics = Metrics::register();
    let mut spacing = Spacing::default();
    let mut under_way = FuturesUnordered::new();
    loop {
        let next = async {
            tokio::select! {
                () = sleep_until(spacing.due()) => {}
                () = intake.reaches(spacing.enough()) => {}
            }
            intake.take().await
        };
        tokio::select! {
            biased;
            Some((events, took)) = under_way.next(), if !under_way.is_empty() => spacing.confirmed(events, took),
            flush = next => {
                spacing.published(flush.answer.weight(), Instant::now());
                under_way.push(publish_flush(flush, &publisher, timeout, &metrics));
            }
        }
    }
}

/// Publishes what was gathered and answers everyone in it. Returns how many events that were, and how long it took.
async fn publish_flush(
    flush: Flush<'_, Batch, Published>,
    publisher: &Publisher,
    timeout: Duration,
    metrics: &Metrics,
) -> (usize, Duration) {
    let Flush { items, since, answer } = flush;
    let (events, begun) = (answer.weight(), Instant::now());
    let message = |body| Message::events(body, Some(IdempotencyKey::fresh()));
    let messages = items.to_json().into_iter().map(message).collect();
    let published = publisher.publish(messages, Instant::from_std(since) + timeout).await;
    match &published {
        Ok(()) => {
            metrics.accepted_events.increment(events as u64);
            metrics.confirm_seconds.record(since.elapsed());
        }
        Err(_) => metrics.refused_events.increment(events as u64),
    }
    answer.send(published);
    (events, begun.elapsed())
}

struct Metrics {
    accepted_events: Counter,
    refused_events: Counter,
    confirm_seconds: Histogram,
}

impl Metrics {
    fn register() -> Self {
        Self {
            accepted_events: metrics::counter!("catchall_ingest_accepted_events_total"),
            refused_events: metrics::counter!("catchall_ingest_refused_events_total"),
            confirm_seconds: metrics::histogram!("catchall_ingest_confirm_seconds"),
        }
    }
}

/// Waits for the answer to the group an event is in.
async fn confirmed(ticket: Ticket<Published>) -> Result<(), Problem> {
    match ticket.await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(Problem::from(&error)),
        Err(_) => Err(Problem::Unavailable("the event may or may not be counted".into())),
    }
}

impl From<&PublishError> for Problem {
    fn from(error: &PublishError) -> Self {
        Self::Unavailable(match error {
            // Where the broker is and what is wrong with it is for the operators, who find it at /readyz.
            PublishError::Unavailable(_) => "the broker does not take events now, nothing was counted".into(),
            PublishError::Unconfirmed => {
                "the broker did not confirm in time: the event may or may not be counted".into()
            }
            PublishError::Refused => "the broker refuses events, its queue is at the limit".into(),
            PublishError::Unroutable => "the broker has no queue for events, nothing was counted".into(),
        })
    }
}

fn waiting_limit() -> Problem {
    Problem::Unavailable("too many events are waiting for the broker, nothing was counted".into())
}

/// `PUT /events/{domain}/delivered|bounced`
async fn put_event(
    State(intake): State<Arc<Intake>>,
    path: Result<Path<(String, String)>, PathRejection>,
    key: Result<RequestKey, Problem>,
) -> Result<StatusCode, Problem> {
    let event = event(path, key)?;
    let ticket = intake.submit(1, |batch| batch.record(event)).map_err(|_| waiting_limit())?;
    confirmed(ticket).await?;
    Ok(StatusCode::ACCEPTED)
}

/// The event of a path. What it was read from goes with this call: a request waits for its answer with nothing but that.
fn event(
    path: Result<Path<(String, String)>, PathRejection>,
    key: Result<RequestKey, Problem>,
) -> Result<Event, Problem> {
    let Path((domain, outcome)) = path.map_err(|error| Problem::BadRequest(excerpt(error.body_text())))?;
    let outcome: Outcome = outcome
        .parse()
        .map_err(|error: crate::event::UnknownOutcome| Problem::NotFound(error.to_string()))?;
    let domain = DomainName::parse(&domain).map_err(|error| {
        let domain = excerpt(format_args!("{domain:?}"));
        Problem::BadRequest(format!("the domain {domain} is not valid: {error}"))
    })?;
    Ok(Event { domain, outcome, count: 1, key: key?.0 })
}

/// The key of a request, if it has one. (To extract all headers would copy them.)
struct RequestKey(Option<IdempotencyKey>);

impl<S: Sync> FromRequestParts<S> for RequestKey {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        idempotency_key(&parts.headers).map(Self)
    }
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<IdempotencyKey>, Problem> {
    let invalid = |reason: &dyn std::fmt::Display| {
        Problem::BadRequest(format!("the header Idempotency-Key is not valid: {reason}"))
    };
    let mut values = headers.get_all(IDEMPOTENCY_KEY).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(invalid(&"it is there more than once"));
    }
    let key = std::str::from_utf8(value.as_bytes()).map_err(|error| invalid(&error))?;
    key.parse().map(Some).map_err(|error: crate::event::IdempotencyKeyError| invalid(&error))
}
