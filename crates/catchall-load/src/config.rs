//! The options, and the plan that follows from them.

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use anyhow::Context;
use clap::ValueEnum;
use clap::builder::PossibleValue;

use crate::access::{Authorities, Token};
use crate::amqp::AmqpUrl;
use crate::run::Keys;
use crate::target::Target;
use crate::workload::{Names, Shape, Workload};

/// The most domains a population may have: a comparison takes eight bytes for each.
const MAX_DOMAINS: i64 = 100_000_000;

/// The most events in a bulk request that ingest accepts.
const MAX_BATCH: i64 = 10_000;

/// What is sent, how and where, and whether it is compared.
#[derive(Clone, Debug, clap::Args)]
pub struct LoadConfig {
    /// The shape of the traffic
    #[arg(long, value_name = "SHAPE", default_value = "waves", help_heading = "Events")]
    pub(crate) workload: Shape,

    /// How many events to send
    #[arg(
        long,
        value_name = "N",
        default_value_t = 100_000,
        value_parser = clap::value_parser!(u64).range(1..),
        help_heading = "Events"
    )]
    pub(crate) events: u64,

    /// The same seed makes the same events. Without it a random seed is used and printed
    #[arg(long, value_name = "N", help_heading = "Events")]
    pub(crate) seed: Option<u64>,

    /// Size of the population of uniform and zipf. Its names do not depend on the seed [default: 10000000]
    #[arg(
        long,
        value_name = "N",
        value_parser = clap::value_parser!(u32).range(1..=MAX_DOMAINS),
        help_heading = "Events"
    )]
    pub(crate) domains: Option<u32>,

    /// How to send events
    #[arg(long, value_name = "WAY", default_value = "put", help_heading = "Sending")]
    pub(crate) via: Via,

    /// Events per second, however long the answers take (an open loop). Latency is then measured from the
    /// time an event was due. Without it, each connection or stream sends its next event when the last one is
    /// answered (a closed loop)
    #[arg(long, value_name = "N", value_parser = rate, help_heading = "Sending")]
    pub(crate) rate: Option<f64>,

    /// Number of connections. In an open loop events wait while all of them are busy, which adds to their
    /// latency [default: put 64, put-h2 32, bulk 8, amqp 4]
    #[arg(
        long,
        value_name = "N",
        value_parser = clap::value_parser!(u16).range(1..=10_000),
        help_heading = "Sending"
    )]
    pub(crate) connections: Option<u16>,

    /// Requests in flight on each connection (put-h2), or messages (amqp) [default: put-h2 64, amqp
    /// 256]
    #[arg(
        long,
        value_name = "N",
        value_parser = clap::value_parser!(u16).range(1..=10_000),
        help_heading = "Sending"
    )]
    pub(crate) streams: Option<u16>,

    /// Events in each request (bulk) or message (amqp) [default: bulk 1000, amqp 1]
    #[arg(
        long,
        value_name = "N",
        value_parser = clap::value_parser!(u16).range(1..=MAX_BATCH),
        help_heading = "Sending"
    )]
    pub(crate) batch: Option<u16>,

    /// Give every event (amqp: every message) an idempotency key, and retry with the same key while there is
    /// no answer or a 503. Without a key such events are reported as unknown: they may be counted or not
    #[arg(long, help_heading = "Sending")]
    pub(crate) keyed: bool,

    /// Open a connection for each request, to measure what that costs (put and bulk)
    #[arg(long, help_heading = "Sending")]
    pub(crate) reconnect: bool,

    /// How long to retry an event that reaches no server or, with a key, is not acknowledged
    #[arg(long = "retry-for", value_name = "SECONDS", default_value_t = 60, help_heading = "Sending")]
    pub(crate) retry_for_secs: u32,

    /// How long to wait for an answer. If it is shorter than the deadlines of the services, more events are
    /// unknown
    #[arg(
        long = "timeout",
        value_name = "SECONDS",
        default_value_t = 10,
        value_parser = clap::value_parser!(u32).range(1..),
        help_heading = "Sending"
    )]
    pub(crate) timeout_secs: u32,

    /// Address of ingest
    #[arg(
        long,
        env = "CATCHALL_INGEST_URL",
        value_name = "URL",
        default_value = "http://127.0.0.1:8080",
        help_heading = "Addresses"
    )]
    ingest_url: Target,

    /// Address of query
    #[arg(
        long,
        env = "CATCHALL_QUERY_URL",
        value_name = "URL",
        default_value = "http://127.0.0.1:8081",
        help_heading = "Addresses"
    )]
    query_url: Target,

    /// Token for ingest and query, where they ask for one. Other users of this machine can read an argument;
    /// they cannot read the variable
    #[arg(
        long,
        env = "CATCHALL_TOKEN",
        value_name = "TOKEN",
        hide_env_values = true,
        help_heading = "Addresses"
    )]
    token: Option<Token>,

    /// Certificates in PEM of the authorities for https
    #[arg(long, env = "CATCHALL_CA", value_name = "FILE", help_heading = "Addresses")]
    ca: Option<Authorities>,

    /// Address of the broker, for amqp: amqp://USER:PASSWORD@HOST:PORT/VHOST
    #[arg(
        long,
        env = "CATCHALL_AMQP_URL",
        value_name = "URL",
        hide_env_values = true,
        help_heading = "Addresses"
    )]
    pub(crate) amqp_url: Option<AmqpUrl>,

    /// Read the counters of every domain before and after, and compare what was counted with what was
    /// acknowledged. Nothing else may send events of these domains during the run
    #[arg(long, help_heading = "Comparing")]
    pub(crate) verify: bool,

    /// How long events may take to be counted after the last acknowledgement. What is missing then is lost
    #[arg(long = "settle-within", value_name = "SECONDS", default_value_t = 60, help_heading = "Comparing")]
    pub(crate) settle_within_secs: u32,

    /// The threshold of query, to check the status it serves
    #[arg(
        long,
        env = "CATCHALL_THRESHOLD",
        value_name = "N",
        default_value_t = 1000,
        help_heading = "Comparing"
    )]
    pub(crate) threshold: u64,
}

impl LoadConfig {
    /// Checks that the options fit together.
    ///
    /// # Errors
    ///
    /// Says which options do not.
    pub fn check(&self) -> Result<(), &'static str> {
        let Self { via, workload, streams, batch, domains, amqp_url, reconnect, .. } = self;
        if *reconnect && !matches!(via, Via::Put | Via::Bulk) {
            return Err("--reconnect goes with --via put or bulk");
        }
        if streams.is_some() && !matches!(via, Via::PutH2 | Via::Amqp) {
            return Err(
                "--streams goes with --via put-h2 or amqp: over HTTP/1.1 a connection has one request",
            );
        }
        if batch.is_some() && !matches!(via, Via::Bulk | Via::Amqp) {
            return Err("--batch goes with --via bulk or amqp: a PUT has one event");
        }
        if domains.is_some() && *workload == Shape::Waves {
            return Err("--domains goes with --workload uniform or zipf: waves never run out of domains");
        }
        if amqp_url.is_none() && *via == Via::Amqp {
            return Err("--via amqp needs CATCHALL_AMQP_URL or --amqp-url");
        }
        Ok(())
    }
}

/// The ways to send an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Via {
    /// One PUT per event, over HTTP/1.1
    Put,
    /// One PUT per event, over HTTP/2
    PutH2,
    /// Many events per POST, over HTTP/1.1
    Bulk,
    /// Published directly to the broker
    Amqp,
}

impl fmt::Display for Via {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = self.to_possible_value();
        f.write_str(value.as_ref().map_or("", PossibleValue::get_name))
    }
}

fn rate(text: &str) -> Result<f64, String> {
    let rate: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    if rate > 0.0 && rate.is_finite() { Ok(rate) } else { Err("not above 0".into()) }
}

/// A checked configuration with all defaults filled in.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) config: LoadConfig,
    pub(crate) seed: u64,
    pub(crate) domains: u32,
    pub(crate) names: Names,
    pub(crate) connections: usize,
    pub(crate) streams: usize,
    pub(crate) batch: u64,
    pub(crate) timeout: Duration,
    pub(crate) retry_for: Duration,
    pub(crate) settle_within: Duration,
}

impl Plan {
    pub(crate) fn new(config: LoadConfig) -> Self {
        let LoadConfig { via, workload, connections, streams, batch, .. } = config;
        // 32 bits are enough to differ, and short enough to type.
        let seed = config.seed.unwrap_or_else(|| RandomState::new().hash_one(()) >> 32);
        let (usual_connections, usual_streams, usual_batch) = match via {
            Via::Put => (64, 1, 1),
            Via::PutH2 => (32, 64, 1),
            Via::Bulk => (8, 1, 1000),
            Via::Amqp => (4, 256, 1),
        };
        Self {
            seed,
            domains: config.domains.unwrap_or(10_000_000),
            names: Names::new(workload, seed),
            connections: connections.unwrap_or(usual_connections).into(),
            streams: streams.unwrap_or(usual_streams).into(),
            batch: batch.unwrap_or(usual_batch).into(),
            timeout: Duration::from_secs(config.timeout_secs.into()),
            retry_for: Duration::from_secs(config.retry_for_secs.into()),
            settle_within: Duration::from_secs(config.settle_within_secs.into()),
            config,
        }
    }

    /// The events, from the first one.
    pub(crate) fn workload(&self) -> Workload {
        Workload::new(self.config.workload, self.seed, self.domains)
    }

    /// The number of domains; 0 if it is not limited.
    pub(crate) fn population(&self) -> usize {
        if self.config.workload == Shape::Waves { 0 } else { self.domains as usize }
    }

    /// What gets a key.
    pub(crate) fn keys(&self) -> Keys {
        match self.config.via {
            _ if !self.config.keyed => Keys::None,
            Via::Amqp => Keys::Request,
            Via::Put | Via::PutH2 | Via::Bulk => Keys::Event,
        }
    }

    /// Where events are sent.
    pub(crate) fn ingest(&self) -> Target {
        self.asking(&self.config.ingest_url)
    }

    /// Where counters are read.
    pub(crate) fn query(&self) -> Target {
        self.asking(&self.config.query_url)
    }

    fn asking(&self, target: &Target) -> Target {
        target.clone().asking(self.config.token.clone(), self.config.ca.clone())
    }

    /// The address of the broker.
    ///
    /// # Errors
    ///
    /// When it was not given.
    pub(crate) fn broker(&self) -> anyhow::Result<&AmqpUrl> {
        self.config.amqp_url.as_ref().context("no address of a broker")
    }
}
