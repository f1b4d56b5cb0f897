//! Sends events by every way in, each with its own comparison.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use catchall_load::workload::{Names, Shape};
use catchall_load::{Report, Verification};
use harness::load::{Amount, LoadRun, LoadSpec};

use crate::rng::Rng;
use crate::subject::Subject;

/// A way to send events: its name, the options, and events per second.
type Way = (&'static str, LoadSpec, u32);

const PUT: Way = ("put", LoadSpec { connections: Some(8), ..LoadSpec::BASE }, 200);
const PUT_KEYED: Way = (
    "put-h2 keyed",
    LoadSpec { via: "put-h2", keyed: true, connections: Some(2), streams: Some(16), ..LoadSpec::BASE },
    300,
);
const BULK: Way =
    ("bulk", LoadSpec { via: "bulk", connections: Some(2), batch: Some(100), ..LoadSpec::BASE }, 1500);
const BULK_KEYED: Way = ("bulk keyed", LoadSpec { keyed: true, ..BULK.1 }, 1500);

/// Always keyed: published directly, an event without an id is counted at least once, not exactly once.
const AMQP_KEYED: Way = (
    "amqp keyed",
    LoadSpec {
        via: "amqp",
        keyed: true,
        connections: Some(1),
        streams: Some(32),
        batch: Some(10),
        ..LoadSpec::BASE
    },
    500,
);

/// Seconds for which there are events. Every run is interrupted long before, when its fault is over.
const ENOUGH: u32 = 240;

/// How long it may take until all load runs are counted: each starts and reads the counters first.
const START: Duration = Duration::from_mins(1);

/// How long the comparison may take.
const COMPARE: Duration = Duration::from_mins(2);

/// The first domains of waves, of which one is counted first.
const FIRST: u32 = 20;

/// A running `catchall-load`.
pub(crate) struct WayLoad {
    name: &'static str,
    seed: u64,
    run: LoadRun,
}

/// The result of a load run.
#[derive(Debug)]
pub(crate) struct LoadResult {
    pub(crate) name: &'static str,
    pub(crate) acknowledged: u64,
    pub(crate) lost: u64,
    pub(crate) duplicated: u64,
    /// Requests that failed, and events sent again.
    pub(crate) trouble: u64,
    /// What is wrong, if anything is.
    pub(crate) wrong: Option<String>,
}

impl WayLoad {
    /// Starts one load run for each way in, and returns when events of each are being counted.
    pub(crate) async fn start_all(subject: &Subject, mut rng: Rng) -> Result<Vec<Self>> {
        let ways = if subject.amqp_url().is_some() {
            [PUT, PUT_KEYED, if rng.number(0, 1) == 0 { BULK } else { BULK_KEYED }, AMQP_KEYED]
        } else {
            [PUT, PUT_KEYED, BULK, BULK_KEYED]
        };
        let loads: Result<Vec<Self>> =
            ways.into_iter().map(|way| Self::start(way, subject, rng.number(0, u32::MAX.into()))).collect();
        let loads = loads?;
        let begun = Instant::now();
        for load in &loads {
            let names = Names::new(Shape::Waves, load.seed);
            let domains: Vec<String> = (0..FIRST).map(|domain| names.canonical(domain)).collect();
            while subject.counts(&domains).await?.is_empty() {
                if begun.elapsed() > START {
                    bail!("no event sent by {} was counted within {START:?}", load.name);
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        Ok(loads)
    }

    fn start((name, spec, rate): Way, subject: &Subject, seed: u64) -> Result<Self> {
        let amount = Amount::Events(u64::from(rate * ENOUGH));
        let spec = LoadSpec { rate: Some(rate.into()), amount, seed, ..spec };
        let compared = ["--verify", "--query-url", subject.domains_url()];
        let limits = ["--retry-for", "120", "--settle-within", "120"];
        let more = [&compared[..], &limits].concat();
        let variables: Vec<_> =
            subject.amqp_url().map(|url| ("CATCHALL_AMQP_URL", url)).into_iter().collect();
        let run = LoadRun::start(&spec, subject.events_url(), &variables, &more)?;
        Ok(Self { name, seed, run })
    }

    /// Ends the sending and returns the results of the comparisons.
    pub(crate) async fn end_all(loads: Vec<Self>) -> Result<Vec<LoadResult>> {
        for load in &loads {
            load.run.interrupt()?;
        }
        let begun = Instant::now();
        let mut all = Vec::new();
        for Self { name, run, .. } in loads {
            let ended = tokio::time::timeout(COMPARE.saturating_sub(begun.elapsed()), run.end()).await;
            let ended = ended.with_context(|| format!("{name} has not compared within {COMPARE:?}"))?;
            let (report, _) = ended.with_context(|| name.to_owned())?;
            all.push(LoadResult::new(name, &report)?);
        }
        Ok(all)
    }
}

impl LoadResult {
    fn new(name: &'static str, report: &Report) -> Result<Self> {
        let Report { acknowledged, refused, errors, retried, verification, .. } = report;
        let compared = verification.as_ref().with_context(|| format!("{name} has compared nothing"))?;
        let Verification { lost, duplicated, .. } = *compared;
        let wrong = *refused > 0 || !compared.is_clean();
        Ok(Self {
            name,
            acknowledged: *acknowledged,
            lost,
            duplicated,
            trouble: errors + retried,
            wrong: wrong.then(|| format!("{name}: {report:?}")),
        })
    }
}
