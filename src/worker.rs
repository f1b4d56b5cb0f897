//! The worker: messages in, counters out, each message accepted after the commit that counted it.

use std::mem;
use std::pin::pin;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use futures::FutureExt;
use tokio::time::Instant;

use crate::batch::Batch;
use crate::broker::{self, Deliveries, Delivery, Message, Publisher};
use crate::event::IdempotencyKey;
use crate::health::{Dependency, Health};
use crate::http;
use crate::ledger::{self, Applied, Ledger};
use crate::process::{self, Process};
use crate::shutdown::{GRACE, Shutdown};

/// How long a dead letter waits for the broker's confirm before the message is left to the queue's own
/// dead-lettering, which keeps it as safely but without the reason.
const DEAD_LETTER_PATIENCE: Duration = Duration::from_secs(5);

/// Messages that are read without a pause for whatever else this thread has to do: at up to a thousand
/// events each, some ten milliseconds.
const READS_AT_A_STRETCH: usize = 32;

/// What the worker needs to know.
#[derive(Clone, Debug, clap::Args)]
#[group(skip)]
#[command(mut_arg("ops_listen", |listen| listen.required(false).default_value("127.0.0.1:9082")))]
pub struct Config {
    #[command(flatten)]
    broker: broker::Config,

    #[command(flatten)]
    ledger: ledger::Config,

    #[command(flatten)]
    ops: http::OpsConfig,

    /// Messages the broker hands out ahead of their acceptance. Below 100 the queue runs dry while a transaction
    /// commits; each message in hand takes memory, up to the broker's limit for one message
    #[arg(long, env = "CATCHALL_PREFETCH", value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u16).range(1..))]
    prefetch: u16,

    /// Rows one transaction may write. Larger ones cost less per row, hold their locks longer and take more
    /// memory, some 200 bytes a row; only a loaded worker fills them
    #[arg(long, env = "CATCHALL_MAX_ROWS", value_name = "N", default_value_t = 200_000, value_parser = clap::value_parser!(u32).range(1..=5_000_000))]
    max_rows: u32,
}

/// The program: see [`process::main`].
#[must_use]
pub fn main() -> ExitCode {
    process::main(
        "catchall-worker",
        "Counts the delivery events that wait in RabbitMQ into Postgres, each exactly once",
        run,
    )
}

/// Consumes, counts and accepts until the shutdown, then finishes what is gathered, within the grace.
///
/// # Errors
///
/// When the operations port cannot be had or its server fails; never for a broker or a database that is away.
pub async fn run(config: Config, process: Process) -> anyhow::Result<()> {
    let ops = config.ops.bind()?;
    let health = Health::default();
    let ledger = Ledger::new(&config.ledger);
    tracing::info!(
        ops_listen = %ops.local_addr()?, broker = %config.broker.amqp_url, database = %config.ledger.database_url,
        "counting events"
    );
    let watching = ledger.clone();
    let worker = Worker {
        dead_letters: Publisher::connect(
            config.broker.clone(),
            "catchall-worker dead letters".into(),
            health.dependency("broker"),
        ),
        broker: health.dependency("broker"),
        commits: health.dependency("database"),
        config,
        ledger,
    };
    tokio::select! {
        () = worker.work(process.shutdown.clone()) => Ok(()),
        served = http::serve_ops(ops, health.clone(), process.figures, process.shutdown) => served.context("the operations routes"),
        () = watching.watch(health.dependency("database")) => Ok(()),
    }
}

struct Worker {
    config: Config,
    ledger: Ledger,
    dead_letters: Publisher,
    /// The connection that consumes.
    broker: Dependency,
    /// The primary as seen by the commits, which can fail where a look at it succeeds.
    commits: Dependency,
}

impl Worker {
    /// One session after the other: whatever ends a session, everything it had not accepted is delivered
    /// again, to the next one or to another worker.
    async fn work(mut self, shutdown: Shutdown) {
        let mut delays = broker::backoff();
        loop {
            let opened = tokio::select! {
                () = shutdown.clone() => return,
                opened = self.open() => opened,
            };
            let ended = match opened {
                Ok(deliveries) => {
                    delays = broker::backoff();
                    self.session(deliveries, shutdown.clone()).await
                }
                Err(error) => Err(error),
            };
            match ended {
                Ok(()) => return,
                Err(error) => self.broker.down(error),
            }
            tokio::select! {
                () = shutdown.clone() => return,
                () = tokio::time::sleep(delays.next().unwrap_or_default()) => {}
            }
        }
    }

    /// Consumes only once there is a ledger to count in: what is handed out meanwhile would only wait here,
    /// out of reach of other workers.
    async fn open(&self) -> Result<Deliveries, broker::Error> {
        self.ledger.ready().await;
        self.commits.up();
        let deliveries =
            Deliveries::open(&self.config.broker, "catchall-worker", self.config.prefetch).await?;
        self.broker.up();
        Ok(deliveries)
    }

    /// The loop: while one window is being settled the next one gathers. It returns when the shutdown is
    /// done, or the connection to the broker is lost.
    async fn session(&mut self, mut deliveries: Deliveries, shutdown: Shutdown) -> Result<(), broker::Error> {
        let max_rows = self.config.max_rows as usize;
        let mut gathering = Window::default();
        let mut stopping = false;
        let mut grace = pin!(async {
            shutdown.clone().await;
            tokio::time::sleep(GRACE).await;
        });
        loop {
            if gathering.is_empty() {
                tokio::select! {
                    () = shutdown.clone() => return Ok(()),
                    gathered = gathering.gather(&mut deliveries, max_rows) => gathered?,
                }
            }
            let window = mem::take(&mut gathering);
            let mut settling = pin!(settle(&self.ledger, &mut self.dead_letters, &self.commits, window));
            let settled = loop {
                tokio::select! {
                    biased;
                    settled = &mut settling => break settled,
                    () = &mut grace => return Ok(()),
                    () = shutdown.clone(), if !stopping => stopping = true,
                    gathered = gathering.gather(&mut deliveries, max_rows), if !stopping && gathering.rows < max_rows => {
                        gathered?;
                    }
                }
            };
            accept(&deliveries, settled).await?;
        }
    }
}

/// What has been taken from the queue for one transaction.
#[derive(Debug, Default)]
struct Window {
    /// The messages that can be read.
    batches: Vec<(Option<IdempotencyKey>, Batch)>,
    /// The messages that cannot, and why.
    poison: Vec<(Delivery, String)>,
    /// The tag of the last message of either kind. Every message up to it is in this window or in one that
    /// is settled, which is what makes one acceptance for all of them right.
    last: u64,
    rows: usize,
}

impl Window {
    fn is_empty(&self) -> bool {
        self.batches.is_empty() && self.poison.is_empty()
    }

    /// Waits for a message and takes what else has arrived by then. When it is dropped while it waits, no
    /// message goes with it.
    async fn gather(&mut self, deliveries: &mut Deliveries, max_rows: usize) -> Result<(), broker::Error> {
        self.add(deliveries.next().await?);
        for _ in 1..READS_AT_A_STRETCH {
            if self.rows >= max_rows {
                break;
            }
            match deliveries.next().now_or_never() {
                Some(delivery) => self.add(delivery?),
                None => break,
            }
        }
        Ok(())
    }

    fn add(&mut self, delivery: Delivery) {
        self.last = delivery.tag();
        match read(&delivery) {
            Ok((id, batch)) => {
                self.rows += batch.rows();
                self.batches.push((id, batch));
            }
            Err(reason) => self.poison.push((delivery, reason)),
        }
    }
}

/// What a message says, or why it cannot be read now or ever.
fn read(delivery: &Delivery) -> Result<(Option<IdempotencyKey>, Batch), String> {
    if let Some(media_type) = delivery.content_type() {
        let essence = media_type.split(';').next().unwrap_or_default().trim();
        if !essence.eq_ignore_ascii_case("application/json") {
            return Err(format!("the content type {media_type:?} is not read here: send application/json"));
        }
    }
    // Some clients put the character encoding here.
    let plain =
        |encoding: &str| ["identity", "utf-8"].iter().any(|plain| encoding.eq_ignore_ascii_case(plain));
    if let Some(encoding) = delivery.content_encoding().filter(|encoding| !plain(encoding)) {
        return Err(format!("the content encoding {encoding:?} is not read here: send none"));
    }
    let id = delivery.message_id().map(str::parse::<IdempotencyKey>).transpose();
    let id = id.map_err(|error| format!("message_id: {error}"))?;
    let batch = Batch::from_json(delivery.body()).map_err(|error| error.to_string())?;
    Ok((id, batch))
}

/// Messages that are counted or kept as dead letters, all but the rejected ones.
#[derive(Debug)]
struct Settled {
    through: u64,
    rejected: Vec<u64>,
}

/// Counts what can be read and keeps what cannot, however long it takes: a failure of the database holds the
/// window, without giving anything back that would only come again. It may be dropped: what the ledger has
/// begun it ends by itself, and what is delivered again is known by its id.
async fn settle(
    ledger: &Ledger,
    dead_letters: &mut Publisher,
    commits: &Dependency,
    window: Window,
) -> Settled {
    let Window { batches, poison, last, .. } = window;
    let (rejected, ()) = tokio::join!(keep(dead_letters, poison), count(ledger, commits, batches));
    Settled { through: last, rejected }
}

/// Publishes the poison as dead letters with their reasons. Returns the tags of all if not every one could
/// be: those are for the queue's own dead-lettering.
async fn keep(dead_letters: &mut Publisher, poison: Vec<(Delivery, String)>) -> Vec<u64> {
    if poison.is_empty() {
        return Vec::new();
    }
    for (_, reason) in &poison {
        tracing::warn!(reason, "a message cannot be read and is kept as a dead letter: {reason}");
    }
    metrics::counter!("catchall_worker_dead_letters_total").increment(poison.len() as u64);
    let messages: Vec<Message> =
        poison.iter().map(|(delivery, reason)| Message::dead_letter(delivery, reason)).collect();
    match dead_letters.publish(&messages, Instant::now() + DEAD_LETTER_PATIENCE).await {
        Ok(()) => Vec::new(),
        Err(error) => {
            tracing::warn!(reason = %error, "cannot keep dead letters with their reasons: {error}");
            poison.iter().map(|(delivery, _)| delivery.tag()).collect()
        }
    }
}

/// Counts the batches, trying until it is done.
async fn count(ledger: &Ledger, commits: &Dependency, batches: Vec<(Option<IdempotencyKey>, Batch)>) {
    if batches.is_empty() {
        return;
    }
    let batches = Arc::new(batches);
    let mut delays = broker::backoff();
    loop {
        let begun = Instant::now();
        match ledger.apply(Arc::clone(&batches)).await {
            Ok(applied) => {
                commits.up();
                return record(batches.len(), applied, begun.elapsed());
            }
            Err(error) => {
                commits.down(format_args!("{error}, holding {} messages", batches.len()));
                tokio::time::sleep(delays.next().unwrap_or_default()).await;
            }
        }
    }
}

fn record(messages: usize, applied: Applied, took: Duration) {
    metrics::counter!("catchall_worker_messages_total").increment(messages as u64);
    metrics::counter!("catchall_worker_duplicates_total").increment(applied.duplicates as u64);
    metrics::counter!("catchall_worker_rows_total").increment(applied.rows as u64);
    metrics::counter!("catchall_worker_delivered_total").increment(applied.added.delivered);
    metrics::counter!("catchall_worker_bounced_total").increment(applied.added.bounced);
    metrics::histogram!("catchall_worker_commit_seconds").record(took);
}

/// Accepts what is settled. The rejections go first: an acceptance of all up to a tag would drop them.
async fn accept(deliveries: &Deliveries, settled: Settled) -> Result<(), broker::Error> {
    for tag in settled.rejected {
        deliveries.reject(tag).await?;
    }
    deliveries.accept_through(settled.through).await
}
