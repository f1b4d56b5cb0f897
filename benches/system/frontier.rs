//! What each number of clients gets: rate, latency and cost by connections, beside the server that does
//! nothing.
//!
//! A fall from one step to the next is judged within a pass, where both were measured within seconds of each
//! other: the machine is not the same for long. Passes go up and down the steps in turn, and the median of
//! all counts. Where a step seems to fall off, it and the one before are measured again, so that one bad
//! moment among so many pairs is not taken for a fall.

use std::collections::BTreeMap;

use catchall_load::counts::Counts;
use catchall_load::record::Difference;
use harness::load::{Amount, LoadSpec};
use harness::servers::Servers;
use harness::sql;
use harness::stats::median;
use serde::Serialize;

use crate::baseline::Baseline;
use crate::measure::{self, SideResult, per_second};
use crate::scale::Scale;
use crate::stats::RowStats;
use crate::system::{Processes, RunningSystem, Scraping};
use crate::verification::{Sample, between, compare};

/// The numbers of connections, each with an event on its way.
const STEPS: [u32; 17] = [1, 2, 4, 8, 16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048];

/// Those of the short form: where there have been falls.
const FEW_STEPS: [u32; 9] = [1, 16, 64, 100, 128, 192, 256, 512, 1024];

/// The step at which the rate is compared with the floor.
pub(crate) const COMPARED: u32 = 256;

/// Passes over all steps in the full form: an odd number has a median.
const PASSES: usize = 3;

/// How often a pair of steps that seems to fall is measured again.
const DOUBTS: usize = 4;

/// The rate falls from a step to the next where it loses more than this share.
pub(crate) const FALL: f64 = 0.05;

/// How much of a run is the system's; a third of that is the floor's.
const FLOOR_SHARE: f64 = 0.5;

/// A number of connections, and what it came to: medians of all runs.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Step {
    pub(crate) connections: u32,
    /// Events acknowledged per second.
    pub(crate) rate: f64,
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
    /// Of the whole stack, per event.
    pub(crate) micros: f64,
    /// Events per second of the server that does nothing.
    pub(crate) floor: f64,
    pub(crate) floor_p50_ms: f64,
    /// The rate as a multiple of that of the step before; nothing for the first.
    pub(crate) times_before: Option<f64>,
    /// How often it was measured.
    pub(crate) runs: usize,
}

/// One run of one step.
#[derive(Clone, Copy, Debug)]
struct StepRun {
    rate: f64,
    p50: f64,
    p99: f64,
    micros: f64,
    floor: f64,
    floor_p50: f64,
}

/// Everything that was measured: each pass has each step at most once.
#[derive(Debug, Default)]
struct Passes(Vec<BTreeMap<u32, StepRun>>);

/// What is running, and what came of it so far.
struct FrontierRun<'a> {
    system: RunningSystem,
    floor: RunningSystem,
    servers: &'a Servers,
    spec: LoadSpec,
    seconds: u64,
    all: RowStats,
}

/// Plays all steps; `spec` says what is sent, but for the connections.
pub(crate) async fn run(spec: LoadSpec, scale: &Scale, servers: &Servers) -> anyhow::Result<RowStats> {
    let steps = if scale.with_larger { &STEPS[..] } else { &FEW_STEPS };
    let mut frontier = FrontierRun {
        system: RunningSystem::ready(Processes::Whole { workers: 1 }, servers).await?,
        floor: RunningSystem::ready(Processes::Baseline(Baseline::Floor), servers).await?,
        servers,
        spec,
        seconds: scale.step_seconds,
        all: RowStats::default(),
    };
    let passes = frontier.passes(steps, scale.with_larger).await;
    let FrontierRun { system, floor, all, .. } = frontier;
    let peak_megabytes = system.peaks();
    system.clear().await;
    floor.clear().await;
    let steps = passes?.steps();
    let mut stats = RowStats { peak_megabytes, ..all };
    if let Some(compared) = steps.iter().find(|step| step.connections == COMPARED) {
        let latency = &mut stats.latency_ms;
        (latency.p50, latency.p95, latency.p99) = (Some(compared.p50_ms), None, Some(compared.p99_ms));
        stats.acknowledged_per_second = compared.rate;
        stats.counted_per_second = None;
        let floor = format!("{COMPARED} connections in this line, where floor makes {:.0}/s", compared.floor);
        stats.notes.push(floor);
    }
    stats.frontier = steps;
    Ok(stats)
}

impl FrontierRun<'_> {
    async fn passes(&mut self, steps: &[u32], full: bool) -> anyhow::Result<Passes> {
        let mut passes = Passes::default();
        // What a process does for the first time is not what is to be measured.
        self.run(COMPARED).await?;
        for number in 0..if full { PASSES } else { 1 } {
            let mut pass = BTreeMap::new();
            let up = number % 2 == 0;
            for place in 0..steps.len() {
                let connections = steps[if up { place } else { steps.len() - 1 - place }];
                pass.insert(connections, self.run(connections).await?);
            }
            passes.0.push(pass);
        }
        for number in 0..DOUBTS {
            for (before, after) in passes.falls() {
                let pair = if number % 2 == 0 { [before, after] } else { [after, before] };
                let mut pass = BTreeMap::new();
                for connections in pair {
                    pass.insert(connections, self.run(connections).await?);
                }
                passes.0.push(pass);
            }
        }
        Ok(passes)
    }

    /// Measures one step: the floor, then the system.
    async fn run(&mut self, connections: u32) -> anyhow::Result<StepRun> {
        self.spec.seed += 1;
        #[expect(clippy::cast_precision_loss, reason = "seconds are few")]
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "they are at least one")]
        let floor_seconds = (self.seconds as f64 * FLOOR_SHARE).ceil() as u64;
        let spec = LoadSpec { connections: Some(connections), ..self.spec };
        let nothing = async || Ok(SideResult::default());
        let floor_spec = LoadSpec { amount: Amount::Seconds(floor_seconds), ..spec };
        let (floor, _, _) =
            measure::events(&self.floor, &floor_spec, Scraping::EverySecond, nothing()).await?;
        let url = &self.servers.database_url;
        let spec = LoadSpec { amount: Amount::Seconds(self.seconds), ..spec };
        let (before, sample) = (sql::sums(url).await?, Sample::read(&spec, url).await?);
        let (stats, report, _) =
            measure::events(&self.system, &spec, Scraping::EverySecond, nothing()).await?;
        let added = between(before, sql::sums(url).await?);
        let difference = compare(&spec, &report, &sample, Counts::default(), added, url).await?;
        let rate = per_second(report.acknowledged, report.seconds);
        let run = StepRun {
            rate,
            p50: stats.latency_ms.p50.unwrap_or(f64::NAN),
            p99: stats.latency_ms.p99.unwrap_or(f64::NAN),
            micros: stats.micros_per_event.map_or(f64::NAN, |micros| micros.stack()),
            floor: floor.acknowledged_per_second,
            floor_p50: floor.latency_ms.p50.unwrap_or(f64::NAN),
        };
        eprintln!(
            "bench: {connections:5} connections: {rate:6.0}/s, p50 {:.2} and p99 {:.2} ms, \
            {:.2} us; floor {:.0}/s",
            run.p50, run.p99, run.micros, run.floor
        );
        self.all.add(stats, difference);
        Ok(run)
    }
}

impl RowStats {
    /// Adds what a run of a step came to.
    fn add(&mut self, run: Self, difference: Difference) {
        self.events += run.events;
        self.seconds += run.seconds;
        self.lost += difference.lost;
        self.duplicated += difference.duplicated;
        self.deadlocks += run.deadlocks;
        self.queue_messages = self.queue_messages.max(run.queue_messages);
        let larger =
            |left: Option<f64>, right: Option<f64>| left.into_iter().chain(right).max_by(f64::total_cmp);
        self.seconds_behind = larger(self.seconds_behind, run.seconds_behind);
        self.lag_seconds = larger(self.lag_seconds, run.lag_seconds);
        self.stolen = larger(self.stolen, run.stolen);
        self.notes.extend(run.notes);
        self.micros_per_event = run.micros_per_event;
    }
}

impl Passes {
    fn connections(&self) -> Vec<u32> {
        self.0.first().into_iter().flat_map(|pass| pass.keys().copied()).collect()
    }

    fn median(&self, connections: u32, of: impl Fn(&StepRun) -> f64) -> f64 {
        median(self.0.iter().filter_map(|pass| pass.get(&connections)).map(of))
    }

    /// The rate of a step as a multiple of that of the step before.
    fn times_before(&self, before: u32, connections: u32) -> f64 {
        let both = self.0.iter().filter_map(|pass| Some((pass.get(&before)?, pass.get(&connections)?)));
        median(both.map(|(before, run)| run.rate / before.rate))
    }

    /// Pairs of neighbours of which the second has less.
    fn falls(&self) -> Vec<(u32, u32)> {
        let connections = self.connections();
        let pairs = connections.windows(2).map(|pair| (pair[0], pair[1]));
        pairs.filter(|(before, after)| self.times_before(*before, *after) < 1.0 - FALL).collect()
    }

    fn steps(&self) -> Vec<Step> {
        let connections = self.connections();
        let before = std::iter::once(None).chain(connections.iter().copied().map(Some));
        let steps = connections.iter().zip(before).map(|(&connections, before)| Step {
            connections,
            rate: self.median(connections, |run| run.rate),
            p50_ms: self.median(connections, |run| run.p50),
            p99_ms: self.median(connections, |run| run.p99),
            micros: self.median(connections, |run| run.micros),
            floor: self.median(connections, |run| run.floor),
            floor_p50_ms: self.median(connections, |run| run.floor_p50),
            times_before: before.map(|before| self.times_before(before, connections)),
            runs: self.0.iter().filter(|pass| pass.contains_key(&connections)).count(),
        });
        steps.collect()
    }
}
