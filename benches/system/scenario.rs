//! Runs a row: starts the system, measures it, and compares the counts.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use catchall_load::workload::Shape;
use harness::load::{Amount, LoadSpec};
use harness::servers::Servers;
use harness::stats::real;
use harness::system::data_file;
use harness::usage::MachineTime;

use crate::baseline::Baseline;
use crate::books::Books;
use crate::change_prober;
use crate::dataset::Datasets;
use crate::frontier;
use crate::goal::slowness;
use crate::measure::{self, SideResult, memory_growth, observed, per_second};
use crate::population_file;
use crate::prober::probe;
use crate::question::Question;
use crate::reader::{ReaderConfig, read};
use crate::reclassification;
use crate::row::Row;
use crate::scale::Scale;
use crate::stats::RowStats;
use crate::subscribers;
use crate::system::{Guarding, Processes, RunningSystem, Scraping};
use crate::table::RowTable;
use crate::verification::{Sample, between, compare};

/// The rate at which the costs of table sizes are compared, because the cost depends on the rate. All of them
/// can take far more.
const COMPARED_RATE: f64 = 60_000.0;

/// Connections for PUT over HTTP/1.1, with one request in flight on each: few for a mail platform, but enough
/// that events share confirms as they do under load.
const PUT_CONNECTIONS: u32 = 512;

/// The seed of the first of many runs; the others use the following ones.
const FRONTIER_SEED: u64 = 10_000;

/// A population so large that hardly any domain occurs twice.
const NEW_DOMAINS: u32 = 100_000_000;

/// Domains of the row of hot reads: as many as waves have live at a time.
const HOT_DOMAINS: u32 = 20;

/// Events per second of a row that measures how fast a backlog is counted.
const EVENTS_PER_SECOND: u64 = 300_000;

/// Reads per second beside the load.
const READS_BESIDE: f64 = 2_000.0;

/// Events and reads per second while nobody reads `/metrics`. After a minute it would show if memory were
/// kept for each read.
const UNWATCHED_PUTS: f64 = 5_000.0;
const UNWATCHED_READS: f64 = 20_000.0;

/// Events per second beside a reclassification.
const BESIDE_RECLASSIFICATION: f64 = 50_000.0;

/// PUT per second of the row that measures the standalone's latency.
const ALONE_PACE: f64 = 1_000.0;

/// Events per second of the standalone's row of uniform events, and its connections: an answer comes after
/// the commit, so each connection can send little more than a request per transaction.
const ALONE_UNIFORM: f64 = 80_000.0;
const ALONE_CONNECTIONS: u32 = 64;

/// Connections at a time of the row in which each makes a handshake: enough to keep the processor busy.
const HANDSHAKING: u32 = 32;

/// What a row does.
enum Scenario {
    Events(Processes, LoadSpec),
    /// Events, and probes that measure how fresh the answers are.
    Probed(LoadSpec),
    /// Events, and reads beside them: of so many domains, so many per second.
    ReadBeside(LoadSpec, u32, f64, Scraping),
    /// Events over increasing numbers of connections, to the services or to the standalone.
    Frontier(bool, LoadSpec),
    /// The same with probes of the feed of changes.
    Changes(LoadSpec),
    /// Events, and probes of how fresh the answers are, while all domains are reclassified.
    Reclassified(LoadSpec),
    /// Changes, and many who subscribe to them.
    Subscribers,
    /// Questions of one kind, at a rate or in a closed loop.
    Questions(Processes, Question, Option<f64>),
    /// Reads of so many domains, at a rate or in a closed loop.
    Reads(Processes, u32, Option<f64>),
    /// A new data file is filled with so many domains, and opened again.
    Fill(u32),
}

/// Runs a row on its dataset. `table` has the rows before it.
pub(crate) async fn run(
    row: Row,
    scale: &Scale,
    servers: &Servers,
    datasets: &mut Datasets,
    table: &RowTable,
) -> anyhow::Result<RowStats> {
    datasets.prepare(row.dataset(scale), servers).await?;
    match scenario(row, scale, table, datasets)? {
        Scenario::Events(processes, spec) => {
            run_events(processes, &spec, servers, Scraping::EverySecond, async |_| Ok(SideResult::default()))
                .await
        }
        Scenario::Probed(spec) => {
            let probing = async |system: &RunningSystem| {
                let query = system.query_address()?.to_string();
                let until = Instant::now() + Duration::from_secs(scale.seconds);
                probe(&system.ingest_url(), &query, || Instant::now() < until).await
            };
            run_events(WHOLE, &spec, servers, Scraping::EverySecond, probing).await
        }
        Scenario::Reclassified(spec) => {
            let spec = LoadSpec { amount: Amount::UntilInterrupted, ..spec };
            let walking = async |system: &RunningSystem| reclassification::probe(system, scale.domains).await;
            run_events(WHOLE, &spec, servers, Scraping::EverySecond, walking).await
        }
        Scenario::Changes(spec) => {
            let probing = async |system: &RunningSystem| {
                let query = system.query_address()?.to_string();
                Box::pin(change_prober::probe(&system.ingest_url(), &query, scale.seconds)).await
            };
            run_events(WHOLE, &spec, servers, Scraping::EverySecond, probing).await
        }
        Scenario::Subscribers => {
            let system = RunningSystem::ready(WHOLE, servers).await?;
            Box::pin(subscribers::run(system, scale.seconds)).await
        }
        Scenario::Questions(processes, question, rate) => {
            let system = RunningSystem::ready(processes, servers).await?;
            let config = ReaderConfig {
                question,
                connections: if question == Question::Export { 1 } else { 8 },
                ..reads(&system, scale, scale.domains, rate)?
            };
            run_reader(system, &config).await
        }
        Scenario::ReadBeside(spec, domains, rate, scraping) => {
            let reading = async |system: &RunningSystem| {
                let (reads, micros) = read(&reads(system, scale, domains, Some(rate))?).await?;
                let latency = reads.latency_ms;
                let [p50, p95, p99] = [latency.p50, latency.p95, latency.p99]
                    .map(|ms| format!("{:.2}", ms.unwrap_or_default()));
                let rate = per_second(reads.answered, reads.seconds);
                let notes = vec![format!("reads: {rate:.0}/s, p50 {p50}, p95 {p95}, p99 {p99} ms")];
                Ok(SideResult { micros, wrong: reads.wrong, notes, ..SideResult::default() })
            };
            run_events(WHOLE, &spec, servers, scraping, reading).await
        }
        Scenario::Frontier(alone, spec) => frontier::run(alone, spec, scale, servers).await,
        Scenario::Reads(processes, domains, rate) => {
            run_reads(processes, domains, rate, scale, servers).await
        }
        Scenario::Fill(domains) => {
            let (stats, file) = population_file::fill(domains, servers).await?;
            datasets.file = Some(file);
            Ok(stats)
        }
    }
}

const WHOLE: Processes = Processes::Whole { workers: 1 };
const READERS: Processes = Processes::Readers;

fn scenario(row: Row, scale: &Scale, table: &RowTable, datasets: &Datasets) -> anyhow::Result<Scenario> {
    let slowness = slowness(table.stats(Row::Naive));
    let put = puts(row, scale);
    let bulk = LoadSpec { via: "bulk", connections: None, ..put };
    let amqp = LoadSpec { via: "amqp", connections: None, ..put };
    let over = |domains, rate: f64| LoadSpec {
        shape: Shape::Uniform,
        domains: Some(domains),
        rate: Some(rate * slowness),
        ..bulk
    };
    let all = LoadSpec { shape: Shape::Zipf, domains: Some(scale.domains), ..bulk };
    let backlog = LoadSpec { amount: Amount::Events(EVENTS_PER_SECOND * scale.seconds), ..all };
    let half = |of: Row| {
        let stats = table.stats(of).filter(|stats| stats.failure.is_none());
        let stats = stats.with_context(|| format!("the rate of {} is not known", of.name()))?;
        anyhow::Ok(stats.rate() / 2.0)
    };
    Ok(match row {
        Row::Naive => Scenario::Events(Processes::Baseline(Baseline::Naive), put),
        Row::Floor => Scenario::Events(Processes::Baseline(Baseline::Floor), put),
        Row::Put => Scenario::Events(WHOLE, put),
        Row::PutHalf => Scenario::Events(WHOLE, LoadSpec { rate: Some(half(Row::Put)?), ..put }),
        Row::Frontier => Scenario::Frontier(false, LoadSpec { seed: FRONTIER_SEED, ..put }),
        Row::PutH2 => Scenario::Events(WHOLE, LoadSpec { via: "put-h2", connections: None, ..put }),
        Row::Bulk => Scenario::Events(WHOLE, bulk),
        Row::Amqp => Scenario::Events(WHOLE, amqp),
        Row::AmqpArrays => Scenario::Events(WHOLE, LoadSpec { batch: Some(500), ..amqp }),
        Row::Fresh => Scenario::Probed(LoadSpec { rate: Some(20_000.0 * slowness), ..put }),
        Row::Growth => Scenario::Events(WHOLE, over(NEW_DOMAINS, COMPARED_RATE)),
        Row::SizeSmall => Scenario::Events(WHOLE, over(scale.fewer_domains(), COMPARED_RATE)),
        Row::Size => Scenario::Events(WHOLE, over(scale.domains, COMPARED_RATE)),
        Row::SizeLarge => Scenario::Events(WHOLE, over(scale.more_domains(), COMPARED_RATE)),
        Row::Zipf => Scenario::Events(WHOLE, LoadSpec { rate: Some(200_000.0 * slowness), ..all }),
        Row::Uniform => {
            let amount = Amount::Seconds(scale.sustained_seconds);
            Scenario::Events(WHOLE, LoadSpec { amount, ..over(scale.domains, 100_000.0) })
        }
        Row::OneWorker => Scenario::Events(WHOLE, backlog),
        Row::TwoWorkers => Scenario::Events(Processes::Whole { workers: 2 }, backlog),
        Row::ChangeFresh => Scenario::Changes(LoadSpec { rate: Some(20_000.0 * slowness), ..put }),
        Row::Subscribers => Scenario::Subscribers,
        Row::Steady => Scenario::Probed(over(scale.domains, BESIDE_RECLASSIFICATION)),
        Row::Reclassify => Scenario::Reclassified(over(scale.domains, BESIDE_RECLASSIFICATION)),
        Row::ListHalf => Scenario::Questions(READERS, Question::Page, Some(half(Row::List)?)),
        Row::List | Row::Export | Row::LookUp | Row::Totals => {
            Scenario::Questions(READERS, question(row), None)
        }
        Row::Get => Scenario::Reads(READERS, scale.domains, None),
        Row::GetHot => Scenario::Reads(READERS, HOT_DOMAINS, None),
        Row::GetHalf => Scenario::Reads(READERS, scale.domains, Some(half(Row::Get)?)),
        Row::Unwatched => {
            let spec = LoadSpec { rate: Some(UNWATCHED_PUTS * slowness), ..put };
            Scenario::ReadBeside(spec, scale.fewer_domains(), UNWATCHED_READS * slowness, Scraping::Never)
        }
        Row::Mixed => {
            let spec = over(scale.domains, 70_000.0);
            Scenario::ReadBeside(spec, scale.domains, READS_BESIDE, Scraping::EverySecond)
        }
        row => alone(row, scale, slowness, datasets)?,
    })
}

/// What is asked in a closed loop.
fn question(row: Row) -> Question {
    match row {
        Row::List => Question::Page,
        Row::Export => Question::Export,
        Row::LookUp | Row::AloneLookUp => Question::LookUp,
        Row::Totals | Row::AloneTotals => Question::Totals,
        _ => Question::Domain,
    }
}

/// PUT in a closed loop.
fn puts(row: Row, scale: &Scale) -> LoadSpec {
    LoadSpec {
        connections: Some(PUT_CONNECTIONS),
        amount: Amount::Seconds(scale.seconds),
        seed: row.seed(),
        ..LoadSpec::BASE
    }
}

/// The rows of the standalone. Each row of waves has a file of its own.
fn alone(row: Row, scale: &Scale, slowness: f64, datasets: &Datasets) -> anyhow::Result<Scenario> {
    let put = puts(row, scale);
    let bulk = LoadSpec { via: "bulk", connections: None, ..put };
    let new = || Processes::Standalone(data_file());
    let filled = || {
        let file = datasets.file.clone().with_context(|| format!("{} has failed", Row::AloneFile.name()));
        file.map(Processes::Standalone)
    };
    Ok(match row {
        Row::AloneFrontier => Scenario::Frontier(true, LoadSpec { seed: FRONTIER_SEED, ..put }),
        Row::AloneBulk => Scenario::Events(new(), bulk),
        Row::AloneKeyed => Scenario::Events(new(), LoadSpec { keyed: true, ..put }),
        Row::AlonePaced => Scenario::Events(new(), LoadSpec { rate: Some(ALONE_PACE), ..put }),
        Row::AloneToken => Scenario::Events(Processes::Guarded(data_file(), Guarding::Token), put),
        Row::AloneTls => Scenario::Events(Processes::Guarded(data_file(), Guarding::Tls), put),
        Row::AloneHandshake => {
            let spec = LoadSpec { reconnect: true, connections: Some(HANDSHAKING), ..put };
            Scenario::Events(Processes::Guarded(data_file(), Guarding::Tls), spec)
        }
        Row::AloneFile => Scenario::Fill(scale.domains),
        Row::AloneGet => Scenario::Reads(filled()?, scale.domains, None),
        Row::AloneLookUp | Row::AloneTotals => Scenario::Questions(filled()?, question(row), None),
        Row::AloneUniform => {
            let spec = LoadSpec {
                shape: Shape::Uniform,
                domains: Some(scale.domains),
                rate: Some(ALONE_UNIFORM * slowness),
                connections: Some(ALONE_CONNECTIONS),
                amount: Amount::Seconds(scale.sustained_seconds),
                ..bulk
            };
            Scenario::Events(filled()?, spec)
        }
        Row::AlonePut => Scenario::Events(new(), put),
        row => bail!("{} is not a row of the standalone", row.name()),
    })
}

async fn run_events(
    processes: Processes,
    spec: &LoadSpec,
    servers: &Servers,
    scraping: Scraping,
    beside: impl AsyncFnOnce(&RunningSystem) -> anyhow::Result<SideResult>,
) -> anyhow::Result<RowStats> {
    let books = Books::of(&processes, servers);
    let nothing_counted = matches!(processes, Processes::Baseline(Baseline::Floor));
    let before = books.sums().await?;
    let sample = Sample::read(spec, &books).await?;
    let system = RunningSystem::ready(processes, servers).await?;
    let measured = measure::events(&system, spec, scraping, beside(&system)).await;
    system.clear().await;
    let (mut stats, report, beside) = measured?;
    if nothing_counted {
        stats.counted_per_second = None;
        return Ok(stats);
    }
    let after = books.sums().await?;
    let added = between(before, after);
    let difference = compare(spec, &report, &sample, beside.sent, added, &books).await?;
    stats.lost = difference.lost;
    stats.duplicated = difference.duplicated;
    if beside.wrong > 0 {
        stats.failure = Some(format!("{} reads were answered wrongly", beside.wrong));
    }
    Ok(stats)
}

async fn run_reads(
    processes: Processes,
    domains: u32,
    rate: Option<f64>,
    scale: &Scale,
    servers: &Servers,
) -> anyhow::Result<RowStats> {
    let system = RunningSystem::ready(processes, servers).await?;
    let config = reads(&system, scale, domains, rate)?;
    run_reader(system, &config).await
}

async fn run_reader(system: RunningSystem, config: &ReaderConfig) -> anyhow::Result<RowStats> {
    let before = system.micros();
    let machine = MachineTime::now();
    let read = observed(&system, Scraping::EverySecond, read(config)).await;
    let after = system.micros();
    let peak_megabytes = system.peaks();
    system.clear().await;
    let ((reads, reader_micros), looks) = read?;
    let mut micros = after.since(before, reads.answered);
    micros.load = reader_micros / real(reads.answered.max(1));
    let example = reads.example.unwrap_or_default();
    Ok(RowStats {
        events: reads.answered,
        seconds: reads.seconds,
        offered_per_second: config.rate,
        acknowledged_per_second: per_second(reads.answered, reads.seconds),
        micros_per_event: Some(micros),
        latency_ms: reads.latency_ms,
        peak_megabytes,
        memory_growth: memory_growth(&looks),
        stolen: MachineTime::stolen_since(machine),
        failure: (reads.wrong > 0).then(|| format!("{} wrong answers, as {example}", reads.wrong)),
        ..RowStats::default()
    })
}

fn reads(
    system: &RunningSystem,
    scale: &Scale,
    domains: u32,
    rate: Option<f64>,
) -> anyhow::Result<ReaderConfig> {
    let (address, seconds) = (system.query_address()?, scale.seconds);
    let question = Question::Domain;
    Ok(ReaderConfig { address, domains, rate, seconds, connections: 64, question })
}
