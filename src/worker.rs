//! The worker: messages in, counters out, each message accepted after the commit that counted it.

mod caution;
mod counting;
mod upkeep;
mod window;

use std::collections::BTreeSet;
use std::mem;
use std::pin::pin;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use tokio::time::Instant;

use crate::broker::{self, Deliveries, Delivery, Message, Publisher};
use crate::health::{Dependency, Health};
use crate::http;
use crate::ledger::{self, Ledger, RetentionConfig};
use crate::process::{self, Process};
use crate::shutdown::{GRACE, Shutdown};
use caution::{Caution, Trust};
use counting::{HeldTooLong, count};
use upkeep::upkeep;
use window::{HandedOut, Window, linger};

/// How long a dead letter waits for the broker's confirm before the message is left to the queue's own
/// dead-lettering, which keeps it as safely but without the reason.
const DEAD_LETTER_PATIENCE: Duration = Duration::from_secs(5);

/// How long a worker waits after a message that cannot be parsed until it lets it be handed out again.
const UNPARSABLE_PAUSE: Duration = Duration::from_millis(10);

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

    /// Messages the broker hands out ahead of their acceptance. Below 100 the queue runs dry while a transaction
    /// commits; each message in hand takes memory, up to the broker's limit for one message
    #[arg(long, env = "CATCHALL_PREFETCH", value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u16).range(1..))]
    prefetch: u16,

    /// Rows one transaction may write. Larger ones cost less per row, hold their locks longer and take more
    /// memory, some 200 bytes a row; only a loaded worker fills them
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
    /// What a message may wait for before its own transaction must fit into the time it may be held, or windows are too
    /// late whatever they do: the one before, with a statement that is given up and tried again, and then company.
    fn check(&self) -> Result<(), String> {
        let hold = self.retention.max_hold();
        let linger_ms = self.linger_ms.max(self.max_linger_ms);
        let statement_secs = self.ledger.statement_timeout_secs;
        let least = Duration::from_millis(linger_ms.into()) + 2 * Duration::from_secs(statement_secs.into());
        if hold >= least {
            return Ok(());
        }
        Err(format!(
            "the value {} of CATCHALL_MAX_HOLD_SECS (--max-hold-secs <SECONDS>) is not valid: it has to be at least {}, twice \
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
    let marks = Publisher::connect(
        config.broker.clone(),
        "catchall-worker marks".into(),
        health.dependency("broker"),
    );
    let upkeep = upkeep(ledger.clone(), marks, config.retention.clone());
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
}

impl Worker {
    /// One session after the other: whatever ends a session, everything it had not accepted is delivered
    /// again, to the next one or to another worker.
    async fn work(mut self, shutdown: Shutdown) {
        let mut delays = broker::backoff();
        let mut caution = Caution::default();
        loop {
            let prefetch = caution.prefetch(self.config.prefetch);
            let opened = tokio::select! {
                () = shutdown.clone() => return,
                opened = self.open(prefetch) => opened,
            };
            let ended = match opened {
                Ok(deliveries) => {
                    delays = broker::backoff();
                    caution.session_begins();
                    self.session(deliveries, prefetch, &mut caution, shutdown.clone()).await
                }
                Err(error) => Err(error.into()),
            };
            caution.session_ended();
            match ended {
                Ok(()) => return,
                Err(Ended::Trusting) => continue,
                // Nothing is wrong with the broker, and the sooner the message is at the limit the better.
                Err(Ended::Lost(error @ broker::Error::Unparsable)) => {
                    if prefetch > 1 {
                        tracing::warn!("{error}");
                    }
                    tokio::time::sleep(UNPARSABLE_PAUSE).await;
                    continue;
                }
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
    /// out of reach of other workers.
    async fn open(&self, prefetch: u16) -> Result<Deliveries, broker::Error> {
        self.ledger.ready().await;
        self.commits.up();
        let deliveries = Deliveries::open(&self.config.broker, "catchall-worker", prefetch).await?;
        self.broker.up();
        Ok(deliveries)
    }

    /// The loop: while one window is being settled the next one gathers. It returns when the shutdown is
    /// done, the connection to the broker is lost, what is held must be given back, or caution is over.
    async fn session(
        &mut self,
        mut deliveries: Deliveries,
        prefetch: u16,
        caution: &mut Caution,
        shutdown: Shutdown,
    ) -> Result<(), Ended> {
        let max_rows = self.config.max_rows as usize;
        let milliseconds = |ms: u32| Duration::from_millis(ms.into());
        let least_linger = milliseconds(self.config.linger_ms);
        let most_linger = milliseconds(self.config.max_linger_ms);
        let mut took = Duration::ZERO;
        let mut handed_out = HandedOut::new(prefetch, self.ledger.clock());
        let enough = usize::from(prefetch) / 2;
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
            if !stopping {
                let linger = linger(took, least_linger, most_linger);
                tokio::select! {
                    () = shutdown.clone() => stopping = true,
                    grown = gathering.grow(&mut deliveries, max_rows, enough, linger) => grown?,
                }
            }
            let mut window = mem::take(&mut gathering);
            let held_since = handed_out.since(window.first);
            window.portion.before = Some(held_since.after(self.config.retention.max_hold()));
            let begun = Instant::now();
            let mut settling = pin!(settle(&self.ledger, &mut self.dead_letters, &self.commits, window));
            let settled = loop {
                let arriving = async {
                    if stopping || gathering.rows >= max_rows {
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
            handed_out.accept(settled.through, self.ledger.clock());
            accept(&deliveries, settled).await?;
            if caution.accepted() == Trust::Regained {
                return Err(Ended::Trusting);
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
    GaveBack(#[from] HeldTooLong),
    #[error("messages are taken many at a time again")]
    Trusting,
}

/// Messages that are counted or kept as dead letters, all but the rejected ones.
#[derive(Debug)]
struct Settled {
    through: u64,
    /// The last of those that are not rejected, if there is one: the broker breaks the channel of whoever accepts
    /// what they have rejected.
    accepted: Option<u64>,
    rejected: BTreeSet<u64>,
}

/// Counts what can be read and keeps what cannot, however long it takes: a failure of the database holds the
/// window, without giving anything back that would only come again. It may be dropped: what the ledger has
/// begun it ends by itself, and what is delivered again is known by its id.
async fn settle(
    ledger: &Ledger,
    dead_letters: &mut Publisher,
    commits: &Dependency,
    window: Window,
) -> Result<Settled, HeldTooLong> {
    let Window { portion, tags, poison, last, .. } = window;
    let poisoned: Vec<u64> = poison.iter().map(|(delivery, _)| delivery.tag()).collect();
    let (mut rejected, refused) = tokio::join!(keep(dead_letters, poison), count(ledger, commits, portion));
    rejected.extend(refused?.into_iter().map(|place| tags[place]));
    let accepted = tags.into_iter().chain(poisoned).filter(|tag| !rejected.contains(tag)).max();
    Ok(Settled { through: last, accepted, rejected })
}

/// Publishes the poison as dead letters with their reasons. Returns the tags of those that are not known to be
/// kept so: they are for the queue's own dead-lettering.
async fn keep(dead_letters: &mut Publisher, poison: Vec<(Delivery, String)>) -> BTreeSet<u64> {
    if poison.is_empty() {
        return BTreeSet::new();
    }
    for (_, reason) in &poison {
        tracing::warn!(reason, "a message cannot be read and is kept as a dead letter: {reason}");
    }
    metrics::counter!("catchall_worker_dead_letters_total").increment(poison.len() as u64);
    let messages: Vec<Message> =
        poison.iter().map(|(delivery, reason)| Message::dead_letter(delivery, reason)).collect();
    let fates = dead_letters.publish_each(&messages, Instant::now() + DEAD_LETTER_PATIENCE).await;
    let failed: Vec<_> = poison
        .iter()
        .zip(fates)
        .filter_map(|((delivery, _), fate)| fate.err().map(|error| (delivery.tag(), error)))
        .collect();
    if let Some((_, error)) = failed.first() {
        let count = failed.len();
        tracing::warn!(reason = %error, count, "cannot keep {count} dead letters with their reasons: {error}");
    }
    failed.into_iter().map(|(tag, _)| tag).collect()
}

/// Accepts what is settled. The rejections go first: an acceptance of all up to a tag would drop them.
async fn accept(deliveries: &Deliveries, settled: Settled) -> Result<(), broker::Error> {
    for tag in settled.rejected {
        deliveries.reject(tag).await?;
    }
    match settled.accepted {
        Some(tag) => deliveries.accept_through(tag).await,
        None => Ok(()),
    }
}
