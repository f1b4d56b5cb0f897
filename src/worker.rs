//! The worker: messages in, counters out, each message accepted after the commit that counted it.

mod throttle;
mod row_limit;
mod delivery_batch;
mod counting;
mod upkeep;

use std::collections::BTreeSet;
use std::mem;
use std::pin::pin;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use tokio::time::Instant;

use crate::backoff::backoff;
use crate::broker::{self, Deliveries, Message, MessageLimit, Publisher};
use crate::health::{Dependency, Health};
use crate::http;
use crate::process::{self, Process};
use crate::shutdown::{GRACE, Shutdown};
use crate::store::ledger::{self, Ledger, Moment, RetentionConfig};
use counting::{AckDeadlinePassed, count};
use delivery_batch::{DeliveryBatch, HandedOut, Poison, linger};
use row_limit::RowLimit;
use throttle::PrefetchThrottle;
use upkeep::{WATERMARK_TIMEOUT, upkeep};

/// How long a dead letter waits for the broker's confirm before the message is left to the queue's own
/// dead-lettering, which keeps it as safely but without the reason.
const DEAD_LETTER_TIMEOUT: Duration = Duration::from_secs(5);

/// Unreadable messages of one delivery batch that have a line each in the log: whoever sends a flood of them must not fill it.
const MOST_LOGGED: usize = 10;

/// How often a worker without messages looks whether it should consume anew. The primary's clock is not read more often.
const IDLE_LOOK: Duration = Duration::from_secs(1);

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
    retention: RetentionConfig,

    #[command(flatten)]
    ops: http::OpsConfig,

    #[command(flatten)]
    message_limit: MessageLimit,

    /// Messages the broker hands out ahead of their acceptance. Below 100 the queue runs dry while a transaction
    /// commits; each message in hand takes memory, up to `CATCHALL_MAX_MESSAGE_BYTES`. A worker begins with one message
    /// and doubles that with each transaction
    #[arg(long, env = "CATCHALL_PREFETCH", value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u16).range(1..))]
    prefetch: u16,

    /// Rows one transaction may write: claims, and counters. Larger ones cost less per row, hold their locks longer and
    /// take more memory, some 200 bytes a row; only a loaded worker fills them
    #[arg(long, env = "CATCHALL_MAX_ROWS", value_name = "N", default_value_t = 200_000, value_parser = clap::value_parser!(u32).range(1..=5_000_000))]
    max_rows: u32,

    /// How long a transaction waits for company, in milliseconds from its first message, unless half of what the broker
    /// hands out ahead has come. Each costs worker, primary and replica about a millisecond; counters show that much
    /// later
    #[arg(long, env = "CATCHALL_LINGER_MS", value_name = "MS", default_value_t = 10, value_parser = clap::value_parser!(u32).range(..=10_000))]
    linger_ms: u32,

    /// The same while transactions take long, which they do when many domains come in: then each waits twice as long as
    /// the last one took, but no longer than this. The more rows are written together, the closer they lie and the less
    /// each costs
    #[arg(long, env = "CATCHALL_MAX_LINGER_MS", value_name = "MS", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(..=60_000))]
    max_linger_ms: u32,
}

impl Config {
    /// What a message may wait for before its own transaction must fit into the time it may be held, or delivery batches are too
    /// late whatever they do: the one before, with a statement that is given up and tried again, and then company.
    fn check(&self) -> Result<(), String> {
        let hold = self.retention.ack_deadline();
        let linger_ms = self.linger_ms.max(self.max_linger_ms);
        let statement_secs = self.ledger.statement_timeout_secs;
        let least = Duration::from_millis(linger_ms.into()) + 2 * Duration::from_secs(statement_secs.into());
        if hold >= least {
            return Ok(());
        }
        Err(format!(
            "the value {} of CATCHALL_ACK_DEADLINE_SECS (--ack-deadline-secs <SECONDS>) is not valid: it has to be at least {}, twice \
             CATCHALL_STATEMENT_TIMEOUT_SECS ({statement_secs}) and the longer of CATCHALL_LINGER_MS and \
             CATCHALL_MAX_LINGER_MS ({linger_ms}), or messages would be given back uncounted",
            hold.as_secs(),
            least.as_secs_f64().ceil(),
        ))
    }
}

/// The program: see [`process::main`].
#[must_use]
pub fn main() -> ExitCode {
    process::main_checked(
        "catchall-worker",
        "Counts the delivery events that wait in RabbitMQ into Postgres, each exactly once",
        Config::check,
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
    let ledger = Ledger::new(&config.ledger, "catchall-worker");
    tracing::info!(
        ops_listen = %ops.local_addr()?, broker = %config.broker.amqp_url, database = %config.ledger.primary.database_url,
        "counting events"
    );
    let watching = ledger.clone();
    let watermarks = Publisher::connect(
        config.broker.clone(),
        "catchall-worker watermarks".into(),
        health.dependency("broker"),
        WATERMARK_TIMEOUT,
    );
    let upkeep = upkeep(ledger.clone(), watermarks, config.retention.clone());
    let worker = Worker {
        dead_letters: Publisher::connect(
            config.broker.clone(),
            "catchall-worker dead letters".into(),
            health.dependency("broker"),
            DEAD_LETTER_TIMEOUT,
        ),
        broker: health.dependency("broker"),
        commits: health.dependency("database"),
        row_limit: RowLimit::new(config.max_rows as usize, config.ledger.statement_timeout()),
        config,
        ledger,
    };
    tokio::select! {
        () = worker.work(process.shutdown.clone()) => Ok(()),
        served = http::serve_ops(ops, health.clone(), process.metrics, process.shutdown) => served.context("the operations routes"),
        () = watching.watch(health.dependency("database")) => Ok(()),
        () = upkeep => Ok(()),
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
    row_limit: RowLimit,
}

impl Worker {
    /// One session after the other: whatever ends a session, everything it had not accepted is delivered
    /// again, to the next one or to another worker.
    async fn work(mut self, shutdown: Shutdown) {
        let mut delays = backoff();
        let mut throttle = PrefetchThrottle::new(self.config.prefetch);
        loop {
            let opened = tokio::select! {
                () = shutdown.clone() => return,
                opened = self.open(throttle.prefetch()) => opened,
            };
            let ended = match opened {
                Ok((deliveries, asked)) => {
                    delays = backoff();
                    throttle.session_begins();
                    let ended = self.session(deliveries, asked, &mut throttle, shutdown.clone()).await;
                    throttle.session_ended();
                    ended
                }
                Err(error) => Err(error.into()),
            };
            match ended {
                Ok(()) => return,
                Err(Ended::Lost(error)) => self.broker.down(error),
                Err(Ended::GaveBack(error)) => tracing::warn!(reason = %error, "{error}"),
            }
            tokio::select! {
                () = shutdown.clone() => return,
                () = tokio::time::sleep(delays.next().unwrap_or_default()) => {}
            }
        }
    }

    /// Consumes only once there is a ledger to count in: what is handed out meanwhile would only wait here,
    /// out of reach of other workers. Returns a moment before anything was handed out, too.
    async fn open(&self, prefetch: u16) -> Result<(Deliveries, Moment), broker::Error> {
        self.ledger.ready().await;
        self.commits.up();
        let asked = self.ledger.clock();
        let Config { broker, message_limit, .. } = &self.config;
        let deliveries = Deliveries::open(broker, *message_limit, "catchall-worker", prefetch).await?;
        self.broker.up();
        Ok((deliveries, asked))
    }

    /// The loop: while one delivery batch is being settled the next one gathers. It returns when the shutdown is
    /// done, the connection to the broker is lost, or what is held must be given back.
    async fn session(
        &mut self,
        mut deliveries: Deliveries,
        asked: Moment,
        throttle: &mut PrefetchThrottle,
        shutdown: Shutdown,
    ) -> Result<(), Ended> {
        let milliseconds = |ms: u32| Duration::from_millis(ms.into());
        let least_linger = milliseconds(self.config.linger_ms);
        let most_linger = milliseconds(self.config.max_linger_ms);
        let ack_deadline = self.config.retention.ack_deadline();
        let mut took = Duration::ZERO;
        let mut prefetch = throttle.prefetch();
        let mut handed_out = HandedOut::new(prefetch, asked);
        let mut gathering = DeliveryBatch::default();
        let mut stopping = false;
        let mut grace = pin!(async {
            shutdown.clone().await;
            tokio::time::sleep(GRACE).await;
        });
        loop {
            let max_rows = self.row_limit.now();
            while gathering.is_empty() {
                tokio::select! {
                    () = shutdown.clone() => return Ok(()),
                    gathered = gathering.gather(&mut deliveries, max_rows) => gathered?,
                    () = tokio::time::sleep(IDLE_LOOK.min(ack_deadline / 8)) => {
                        let now = self.ledger.clock();
                        if handed_out.is_stale(deliveries.seen(), now, ack_deadline) {
                            handed_out.renew(prefetch, renew(&mut deliveries, None, prefetch).await?, now);
                        }
                    }
                }
            }
            if !stopping {
                let linger = linger(took, least_linger, most_linger);
                let enough = usize::from(prefetch) / 2;
                tokio::select! {
                    () = shutdown.clone() => stopping = true,
                    grown = gathering.grow(&mut deliveries, max_rows, enough, linger) => grown?,
                }
            }
            let mut batch = mem::take(&mut gathering);
            let held_since = handed_out.since(batch.first);
            batch.request.before = Some(held_since.after(ack_deadline));
            let begun = Instant::now();
            let Self { ledger, dead_letters, commits, row_limit, .. } = self;
            let mut settling = pin!(settle(ledger, dead_letters, commits, row_limit, batch));
            let settled = loop {
                let arriving = async {
                    if stopping || gathering.is_full(max_rows) {
                        return Err(deliveries.lost().await);
                    }
                    gathering.gather(&mut deliveries, max_rows).await
                };
                tokio::select! {
                    biased;
                    settled = &mut settling => break settled?,
                    () = &mut grace => return Ok(()),
                    () = shutdown.clone(), if !stopping => stopping = true,
                    gathered = arriving => gathered?,
                }
            };
            took = begun.elapsed();
            let now = ledger.clock();
            let stale = handed_out.is_stale(deliveries.seen(), now, ack_deadline);
            handed_out.ack(settled.through, now);
            throttle.settled();
            if !stopping && (stale || prefetch < throttle.prefetch()) {
                prefetch = throttle.prefetch();
                tokio::select! {
                    () = &mut grace => return Ok(()),
                    before = renew(&mut deliveries, Some(settled), prefetch) => {
                        handed_out.renew(prefetch, before?, now);
                    }
                }
            } else {
                ack(&deliveries, settled).await?;
            }
        }
    }
}

/// Why a session ended before the shutdown.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error(transparent)]
    Lost(#[from] broker::Error),
    #[error(transparent)]
    GaveBack(#[from] AckDeadlinePassed),
}

/// Messages that are counted or kept as dead letters, all but the rejected ones.
#[derive(Debug)]
struct Settled {
    through: u64,
    /// The last of those that are not rejected, if there is one: the broker breaks the channel of whoever accepts
    /// what they have rejected.
    acked: Option<u64>,
    rejected: BTreeSet<u64>,
}

/// Counts what can be read and keeps what cannot, however long it takes: a failure of the database holds the
/// delivery batch, without giving anything back that would only come again. It may be dropped: what the ledger has
/// begun it ends by itself, and what is delivered again is known by its id.
async fn settle(
    ledger: &Ledger,
    dead_letters: &Publisher,
    commits: &Dependency,
    row_limit: &mut RowLimit,
    batch: DeliveryBatch,
) -> Result<Settled, AckDeadlinePassed> {
    let DeliveryBatch { request, tags, poison, last, .. } = batch;
    let poisoned: Vec<u64> = poison.iter().map(|poison| poison.tag).collect();
    let (mut rejected, refused) =
        tokio::join!(keep(dead_letters, poison), count(ledger, commits, row_limit, request));
    rejected.extend(refused?.into_iter().map(|place| tags[place]));
    let acked = tags.into_iter().chain(poisoned).filter(|tag| !rejected.contains(tag)).max();
    Ok(Settled { through: last, acked, rejected })
}

/// Publishes the poison as dead letters with their reasons. Returns the tags of those that are for the queue's own
/// dead-lettering: what cannot be copied, and what is not known to be kept so.
async fn keep(dead_letters: &Publisher, poison: Vec<Poison>) -> BTreeSet<u64> {
    if poison.is_empty() {
        return BTreeSet::new();
    }
    for Poison { reason, .. } in poison.iter().take(MOST_LOGGED) {
        tracing::warn!(reason, "a message cannot be read and is kept as a dead letter: {reason}");
    }
    if let Some(count) = poison.len().checked_sub(MOST_LOGGED).filter(|more| *more > 0) {
        tracing::warn!(count, "so are {count} more messages, each with its reason");
    }
    metrics::counter!("catchall_worker_dead_letters_total").increment(poison.len() as u64);
    let mut rejected = BTreeSet::new();
    let (mut tags, mut messages) = (Vec::new(), Vec::<Message>::new());
    for Poison { tag, copy, .. } in poison {
        if let Some(copy) = copy {
            tags.push(tag);
            messages.push(copy);
        } else {
            rejected.insert(tag);
        }
    }
    if messages.is_empty() {
        return rejected;
    }
    let fates = dead_letters.publish_each(messages, Instant::now() + DEAD_LETTER_TIMEOUT).await;
    let failed: Vec<_> =
        tags.into_iter().zip(fates).filter_map(|(tag, fate)| Some((tag, fate.err()?))).collect();
    if let Some((_, error)) = failed.first() {
        let count = failed.len();
        tracing::warn!(reason = %error, count, "cannot keep {count} dead letters with their reasons: {error}");
    }
    rejected.extend(failed.into_iter().map(|(tag, _)| tag));
    rejected
}

/// Accepts what is settled, and consumes anew: with another prefetch, or to know that what comes is new. Returns the
/// tag of the last message that came before.
async fn renew(
    deliveries: &mut Deliveries,
    settled: Option<Settled>,
    prefetch: u16,
) -> Result<u64, broker::Error> {
    deliveries.pause().await?;
    // Before more is handed out: otherwise a message that ends the process would bring these back with it.
    if let Some(settled) = settled {
        ack(deliveries, settled).await?;
    }
    deliveries.resume(prefetch).await
}

/// Accepts what is settled. The rejections go first: an acceptance of all up to a tag would drop them.
async fn ack(deliveries: &Deliveries, settled: Settled) -> Result<(), broker::Error> {
    for tag in settled.rejected {
        deliveries.reject(tag).await?;
    }
    match settled.acked {
        Some(tag) => deliveries.ack_through(tag).await,
        None => Ok(()),
    }
}
