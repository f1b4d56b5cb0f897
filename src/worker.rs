//! The worker: messages in, counters out. Each message is acknowledged after the commit that counted it.

mod prefetch_throttle;
mod row_limit;
mod handed_out;
mod delivery_batch;
mod dead_letter_lines;
mod apply;
mod settle;
mod session;
mod prune;
mod backlog;
mod relay;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use futures::future;

use crate::backoff::backoff;
use crate::broker::{self, Deliveries, MessageLimit, Publisher};
use crate::health::{Dependency, Health};
use crate::http;
use crate::network::NetworkConfig;
use crate::process::{self, Process};
use crate::shutdown::Shutdown;
use crate::store::ledger::{self, Ledger, Moment, RetentionConfig};
use dead_letter_lines::DeadLetterLines;
use prefetch_throttle::PrefetchThrottle;
use prune::{WATERMARK_TIMEOUT, prune};
use relay::relay;
use row_limit::RowLimit;
use session::{Ended, Session, Times};
use settle::{DEAD_LETTER_TIMEOUT, Settler};

/// The configuration of the worker.
#[derive(Clone, Debug, clap::Args)]
#[group(skip)]
#[command(mut_arg("ops_listen", |listen| listen.required(false).default_value("127.0.0.1:9082")))]
pub struct WorkerConfig {
    #[command(flatten)]
    broker: broker::BrokerConfig,

    #[command(flatten)]
    ledger: ledger::LedgerConfig,

    #[command(flatten)]
    retention: RetentionConfig,

    #[command(flatten)]
    ops: http::OpsConfig,

    #[command(flatten)]
    network: NetworkConfig,

    #[command(flatten)]
    guard: http::GuardConfig,

    #[command(flatten)]
    message_limit: MessageLimit,

    /// Messages the broker hands out ahead of their acknowledgement. Below 100, the worker runs out of
    /// messages while a transaction commits. Each message in hand takes memory, up to
    /// `CATCHALL_MAX_MESSAGE_BYTES`, and all together up to `CATCHALL_PREFETCH_MIB`. A worker begins with a
    /// prefetch of one and doubles it with each transaction
    #[arg(
        long,
        env = "CATCHALL_PREFETCH",
        value_name = "N",
        default_value_t = 1000,
        value_parser = clap::value_parser!(u16).range(1..)
    )]
    prefetch: u16,

    /// Memory in MiB for the messages handed out ahead. If `CATCHALL_PREFETCH` messages of
    /// `CATCHALL_MAX_MESSAGE_BYTES` each could take more, the broker hands out fewer, but always one. The
    /// default is just enough for the defaults of both
    #[arg(
        long,
        env = "CATCHALL_PREFETCH_MIB",
        value_name = "MIB",
        default_value_t = 1024,
        value_parser = clap::value_parser!(u32).range(1..=1 << 20)
    )]
    prefetch_mib: u32,

    /// Rows one transaction may write: claims and counters. Larger transactions cost less per row, but hold
    /// their locks longer and take more memory, some 200 bytes a row. Only a loaded worker fills them
    #[arg(
        long,
        env = "CATCHALL_MAX_ROWS",
        value_name = "N",
        default_value_t = 200_000,
        value_parser = clap::value_parser!(u32).range(1..=5_000_000)
    )]
    max_rows: u32,

    /// How long a transaction waits for more messages, in milliseconds from its first one. It starts sooner
    /// once half of the prefetch has arrived. A longer wait makes fewer transactions, each of which costs
    /// worker, primary and replica about a millisecond, but counters are updated later
    #[arg(
        long,
        env = "CATCHALL_LINGER_MS",
        value_name = "MS",
        default_value_t = 10,
        value_parser = clap::value_parser!(u32).range(..=10_000)
    )]
    linger_ms: u32,

    /// The longest wait for more messages, in milliseconds, when transactions are slow because of many
    /// different domains. A transaction then waits twice as long as the last one took, up to this limit. Rows
    /// that are written together lie closer on disk and cost less each
    #[arg(
        long,
        env = "CATCHALL_MAX_LINGER_MS",
        value_name = "MS",
        default_value_t = 500,
        value_parser = clap::value_parser!(u32).range(..=60_000)
    )]
    max_linger_ms: u32,
}

impl WorkerConfig {
    /// How many messages the broker may hand out ahead, so that they fit into their memory.
    fn prefetch(&self) -> u16 {
        let fitting = self.message_limit.prefetch_within(u64::from(self.prefetch_mib) << 20);
        self.prefetch.min(u16::try_from(fitting).unwrap_or(u16::MAX))
    }

    fn times(&self) -> Times {
        Times {
            least_linger: Duration::from_millis(self.linger_ms.into()),
            most_linger: Duration::from_millis(self.max_linger_ms.into()),
            ack_deadline: self.retention.ack_deadline(),
        }
    }

    /// Fails unless a message's wait before its own transaction fits into the ack deadline: otherwise every
    /// delivery batch is too late. A message may wait for the transaction before it, one of whose statements
    /// times out and is tried again, and then for the linger.
    fn check(&self) -> Result<(), String> {
        let ack_deadline = self.retention.ack_deadline();
        let linger_ms = self.linger_ms.max(self.max_linger_ms);
        let statement_secs = self.ledger.statement_timeout_secs;
        let least = Duration::from_millis(linger_ms.into()) + 2 * Duration::from_secs(statement_secs.into());
        if ack_deadline >= least {
            return Ok(());
        }
        Err(format!(
            "the value {} of CATCHALL_ACK_DEADLINE_SECS (--ack-deadline-secs <SECONDS>) is not valid: it \
             must be at least {}, twice CATCHALL_STATEMENT_TIMEOUT_SECS ({statement_secs}) plus the longer \
             of CATCHALL_LINGER_MS and CATCHALL_MAX_LINGER_MS ({linger_ms}), or messages would be returned \
             uncounted",
            ack_deadline.as_secs(),
            least.as_secs_f64().ceil(),
        ))
    }
}

/// The program: see [`process::main`].
#[must_use]
pub fn main() -> ExitCode {
    process::main_checked(
        "catchall-worker",
        "Counts the delivery events in RabbitMQ into Postgres, each exactly once",
        WorkerConfig::check,
        run,
    )
}

/// Consumes, counts and acknowledges until the shutdown, then settles what has gathered, within the grace
/// period.
///
/// # Errors
///
/// When the operations port cannot be bound or its server fails; never because the broker or the database is
/// unavailable.
pub async fn run(config: WorkerConfig, process: Process) -> anyhow::Result<()> {
    config.broker.check()?;
    config.network.check(&[config.broker.exposure(), config.ledger.primary.exposure()])?;
    let guard = config.guard.load(None, &config.ops, None)?;
    let ops = config.ops.bind()?;
    let health = Health::default();
    let ledger = Ledger::new(&config.ledger, "catchall-worker");
    tracing::info!(
        ops_listen = %ops.local_addr()?,
        broker = %config.broker.amqp_url,
        database = %config.ledger.primary.database_url,
        "counting events"
    );
    let (asked, prefetch) = (config.prefetch, config.prefetch());
    if prefetch < asked {
        tracing::info!(
            prefetch,
            "taking at most {prefetch} messages ahead instead of {asked} (CATCHALL_PREFETCH), which might not \
             fit into CATCHALL_PREFETCH_MIB"
        );
    }
    let watching = ledger.clone();
    let watermarks = Publisher::connect(
        config.broker.clone(),
        "catchall-worker watermarks".into(),
        health.dependency("broker"),
        WATERMARK_TIMEOUT,
    );
    let pruning = prune(ledger.clone(), watermarks, config.retention.clone());
    let shutdown = process.shutdown.clone();
    let relaying = relay(ledger.clone(), relay::publisher(config.broker.clone()), shutdown.clone());
    let dead_letters = Publisher::connect(
        config.broker.clone(),
        "catchall-worker dead letters".into(),
        health.dependency("broker"),
        DEAD_LETTER_TIMEOUT,
    );
    let settler = Settler {
        ledger,
        dead_letters,
        commits: health.dependency("database"),
        row_limit: RowLimit::new(config.max_rows as usize, config.ledger.statement_timeout()),
        lines: DeadLetterLines::new(),
    };
    let worker = Worker { config, broker: health.dependency("broker"), settler };
    tokio::select! {
        ((), ()) = future::join(worker.work(shutdown), relaying) => Ok(()),
        served = http::serve_ops(ops, &guard, health.clone(), process.metrics, process.shutdown) => {
            served.context("the operations routes")
        }
        () = watching.watch(health.dependency("database")) => Ok(()),
        () = pruning => Ok(()),
    }
}

struct Worker {
    config: WorkerConfig,
    /// The connection that consumes.
    broker: Dependency,
    settler: Settler,
}

impl Worker {
    /// Runs one session after another. Whatever ends a session, everything that it had not acknowledged is
    /// delivered again, to the next one or to another worker.
    async fn work(mut self, shutdown: Shutdown) {
        let mut delays = backoff();
        let mut throttle = PrefetchThrottle::new(self.config.prefetch());
        let times = self.config.times();
        loop {
            let opened = tokio::select! {
                () = shutdown.clone() => return,
                opened = self.open(throttle.prefetch()) => opened,
            };
            let ended = match opened {
                Ok(opened) => {
                    delays = backoff();
                    throttle.session_begins();
                    let settler = &mut self.settler;
                    let session = Session::new(opened, times, &mut throttle, settler, shutdown.clone());
                    let ended = session.run().await;
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

    /// Starts to consume, but only once the ledger is available: messages handed out before would only wait
    /// here, out of reach of other workers. Also returns a moment before anything was handed out.
    async fn open(&self, prefetch: u16) -> Result<(Deliveries, Moment), broker::BrokerError> {
        self.settler.ledger.ready().await;
        self.settler.commits.up();
        let asked = self.settler.now();
        let WorkerConfig { broker, message_limit, .. } = &self.config;
        let deliveries = Deliveries::open(broker, *message_limit, "catchall-worker", prefetch).await?;
        self.broker.up();
        Ok((deliveries, asked))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Arguments {
        #[command(flatten)]
        config: WorkerConfig,
    }

    #[test]
    fn what_is_handed_out_ahead_fits_into_its_memory() {
        for (prefetch, max_message_bytes, prefetch_mib, fitting) in [
            ("1000", 1 << 20, "1024", 1000),
            ("65535", 1 << 20, "1024", 1024),
            ("65535", 1 << 20, "1048576", 65_535),
            ("1000", 16 << 20, "1024", 64),
            ("50", 16 << 20, "1024", 50),
            ("1000", 512 << 20, "1024", 2),
            ("1000", 512 << 20, "1", 1),
        ] {
            let max_message_bytes = max_message_bytes.to_string();
            let arguments = Arguments::parse_from([
                "catchall-worker",
                "--amqp-url=amqp://localhost",
                "--database-url=postgres://localhost/catchall",
                "--prefetch",
                prefetch,
                "--max-message-bytes",
                &max_message_bytes,
                "--prefetch-mib",
                prefetch_mib,
            ]);
            assert_eq!(arguments.config.prefetch(), fitting, "{prefetch} of {max_message_bytes} bytes");
        }
    }
}
