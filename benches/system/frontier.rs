//! Rate, latency and cost by number of connections, beside the server that does nothing.
//!
//! The speed of the machine varies over time. So a step is compared with the previous one within a pass,
//! where both were measured within seconds. Passes go up and down the steps in turn, and the median counts.
//! If the rate seems to fall from one step to the next, both are measured again, so that one bad moment is
//! not taken for a fall.

use std::collections::BTreeMap;
use std::path::Path;

use catchall_load::Report;
use catchall_load::counts::Counts;
use catchall_load::record::Difference;
use harness::load::{Amount, LoadSpec};
use harness::servers::Servers;
use harness::stats::median;
use harness::system::data_file;

use crate::baseline::Baseline;
use crate::books::Books;
use crate::measure::{self, SideResult, per_second};
use crate::scale::Scale;
use crate::stats::{RowStats, Step};
use crate::system::{Processes, RunningSystem, Scraping};
use crate::verification::{Sample, between, compare};

/// The numbers of connections. Each connection has one request in flight.
const STEPS: [u32; 17] = [1, 2, 4, 8, 16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048];

/// The numbers of connections of the short form: where the rate has fallen in the past.
const FEW_STEPS: [u32; 9] = [1, 16, 64, 100, 128, 192, 256, 512, 1024];

/// The number of connections at which the rate is compared with the floor.
pub(crate) const COMPARED: u32 = 256;

/// How many passes the full form makes over all steps. It is odd, for the median.
const PASSES: usize = 3;

/// How often two steps between which the rate seems to fall are measured again.
const DOUBTS: usize = 4;

/// A rate that is lower by more than this share is a fall.
pub(crate) const FALL: f64 = 0.05;

/// The time for which the floor is measured, as a share of that of the system.
const FLOOR_SHARE: f64 = 0.5;

/// One measurement of one step.
#[derive(Clone, Copy, Debug)]
struct StepRun {
    rate: f64,
    p50: f64,
    p99: f64,
    micros: f64,
    floor: f64,
    floor_p50: f64,
}

/// All measurements. Each pass has each step at most once.
#[derive(Debug, Default)]
struct Passes(Vec<BTreeMap<u32, StepRun>>);

/// The running processes, and the results so far.
struct FrontierRun<'a> {
    /// Whether the standalone is measured, which has a process and a data file of its own for each step.
    alone: bool,
    /// The processes that are measured otherwise.
    system: Option<RunningSystem>,
    floor: RunningSystem,
    servers: &'a Servers,
    spec: LoadSpec,
    seconds: u64,
    all: RowStats,
}

/// Measures all steps, of the services or of the standalone. `spec` has the options except the number of
/// connections.
pub(crate) async fn run(
    alone: bool,
    spec: LoadSpec,
    scale: &Scale,
    servers: &Servers,
) -> anyhow::Result<RowStats> {
    let steps = if scale.with_larger { &STEPS[..] } else { &FEW_STEPS };
    let whole = Processes::Whole { workers: 1 };
    let mut frontier = FrontierRun {
        alone,
        system: if alone { None } else { Some(RunningSystem::ready(whole, servers).await?) },
        floor: RunningSystem::ready(Processes::Baseline(Baseline::Floor), servers).await?,
        servers,
        spec,
        seconds: scale.step_seconds,
        all: RowStats::default(),
    };
    let passes = frontier.passes(steps, scale.with_larger).await;
    let FrontierRun { system, floor, all: mut stats, .. } = frontier;
    if let Some(system) = system {
        stats.peak_megabytes = system.peaks();
        system.clear().await;
    }
    floor.clear().await;
    let steps = passes?.steps();
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
        // A first run warms up the processes.
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
        let spec = LoadSpec { amount: Amount::Seconds(self.seconds), ..spec };
        let (stats, report, difference) = self.measured(&spec).await?;
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

impl FrontierRun<'_> {
    /// Runs the load on what is measured, and compares what was counted.
    async fn measured(&self, spec: &LoadSpec) -> anyhow::Result<(RowStats, Report, Difference)> {
        let data = self.alone.then(data_file);
        let books = match &data {
            Some(data) => Books::File(data.clone()),
            None => Books::Database(self.servers.database_url.clone()),
        };
        let (before, sample) = (books.sums().await?, Sample::read(spec, &books).await?);
        let nothing = async { Ok(SideResult::default()) };
        let measured = if let Some(system) = &self.system {
            measure::events(system, spec, Scraping::EverySecond, nothing).await
        } else {
            let processes = Processes::Standalone(data.clone().unwrap_or_default());
            let system = RunningSystem::ready(processes, self.servers).await?;
            let measured = measure::events(&system, spec, Scraping::EverySecond, nothing).await;
            system.clear().await;
            measured
        };
        let (stats, report, _) = measured?;
        let added = between(before, books.sums().await?);
        let difference = compare(spec, &report, &sample, Counts::default(), added, &books).await?;
        if let Some(directory) = data.as_deref().and_then(Path::parent) {
            std::fs::remove_dir_all(directory)?;
        }
        Ok((stats, report, difference))
    }
}

impl RowStats {
    /// Adds the result of a measurement.
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
        self.peak_megabytes.standalone = self.peak_megabytes.standalone.max(run.peak_megabytes.standalone);
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

    /// The rate of a step divided by that of the previous one.
    fn times_before(&self, before: u32, connections: u32) -> f64 {
        let both = self.0.iter().filter_map(|pass| Some((pass.get(&before)?, pass.get(&connections)?)));
        median(both.map(|(before, run)| run.rate / before.rate))
    }

    /// Neighbouring steps between which the rate falls.
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
