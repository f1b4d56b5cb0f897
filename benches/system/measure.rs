//! One run of events, until the last is counted, on the primary and replayed by the replica or in a data
//! file.

use std::time::{Duration, Instant};

use catchall_load::Latency;
use catchall_load::Report;
use catchall_load::counts::Counts;
use harness::load::{Amount, LoadRun, LoadSpec};
use harness::sql;
use harness::stats::real;
use harness::usage::MachineTime;

use crate::stats::RowStats;
use crate::system::{Observation, RunningSystem, Scraping};

/// How often the processes are observed while events are sent.
const LOOK: Duration = Duration::from_secs(1);

/// How often they are observed afterwards, until all events are counted.
const SETTLE: Duration = Duration::from_millis(50);

/// How long to wait for missing events while none is counted.
const TIMEOUT: Duration = Duration::from_mins(2);

/// The result of what ran beside the load.
#[derive(Clone, Debug, Default)]
pub(crate) struct SideResult {
    /// Events that it has sent itself.
    pub(crate) sent: Counts,
    /// Processor time of its process in microseconds, if it has one.
    pub(crate) micros: f64,
    /// Its latency, if the row reports that instead of the load's.
    pub(crate) latency_ms: Option<Latency>,
    /// Wrong answers.
    pub(crate) wrong: u64,
    /// How long a reclassification took, if there was one.
    pub(crate) walk_seconds: Option<f64>,
    pub(crate) notes: Vec<String>,
}

/// Sends events while `beside` runs, and waits until all of them are counted. Returns the stats without the
/// comparison of counts, the report of the load tool, and the result of `beside`.
pub(crate) async fn events(
    system: &RunningSystem,
    spec: &LoadSpec,
    scraping: Scraping,
    beside: impl Future<Output = anyhow::Result<SideResult>>,
) -> anyhow::Result<(RowStats, Report, SideResult)> {
    let servers = &system.servers;
    let deadlocks = sql::deadlocks(&servers.database_url).await?;
    let counted = system.counted().await;
    let before = system.micros();
    let machine = MachineTime::now();
    let load = LoadRun::start(spec, &system.ingest_url(), &system.client_variables(), &[])?;
    let sending = async {
        if let Amount::UntilInterrupted = spec.amount {
            let beside = beside.await?;
            load.interrupt()?;
            return Ok((load.end().await?, beside));
        }
        tokio::try_join!(load.end(), beside)
    };
    let (((report, load_micros), beside), mut looks) = observed(system, scraping, sending).await?;
    let sent = Instant::now();
    let growth_megabytes = growth_megabytes(&looks);
    let events = report.acknowledged + beside.sent.total();
    let mut behind = None;
    if system.says_what_is_counted() {
        settle(system, counted + events).await;
        behind = Some(sent.elapsed().as_secs_f64());
    }
    let counted_seconds = report.seconds + behind.unwrap_or_default();
    sql::replayed(&servers.database_url, &servers.replica_url).await?;
    looks.push(system.look(Scraping::EverySecond).await?);
    let mut micros = system.micros().since(before, events);
    micros.load = (load_micros + beside.micros) / real(events.max(1));
    let stats = RowStats {
        events,
        seconds: report.seconds,
        offered_per_second: spec.rate,
        acknowledged_per_second: per_second(report.acknowledged, report.seconds),
        counted_per_second: Some(per_second(report.acknowledged, counted_seconds)),
        micros_per_event: Some(micros),
        latency_ms: beside.latency_ms.unwrap_or(report.latency_ms),
        peak_megabytes: system.peaks(),
        queue_messages: system.has_workers().then(|| most(&looks, |look| look.messages)),
        backlog_grows: grows(&looks, spec, &report),
        memory_growth: memory_growth(&looks),
        growth_megabytes,
        wal_megabytes: most_wal_megabytes(&looks),
        walk_seconds: beside.walk_seconds,
        seconds_behind: behind,
        lag_seconds: looks.iter().filter_map(|look| look.lag_seconds).max_by(f64::total_cmp),
        stolen: MachineTime::stolen_since(machine),
        deadlocks: sql::deadlocks(&servers.database_url).await? - deadlocks,
        notes: notes(spec, &report, &beside),
        ..RowStats::default()
    };
    Ok((stats, report, beside))
}

/// Observes the system every second for as long as `work` takes.
pub(crate) async fn observed<T>(
    system: &RunningSystem,
    scraping: Scraping,
    work: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<(T, Vec<Observation>)> {
    let mut looks = Vec::new();
    let looking = async {
        loop {
            tokio::time::sleep(LOOK).await;
            match system.look(scraping).await {
                Ok(look) => looks.push(look),
                Err(error) => return error,
            }
        }
    };
    let done = tokio::select! {
        biased;
        done = work => done?,
        error = looking => return Err(error),
    };
    Ok((done, looks))
}

/// The most megabytes of the WAL beside the data file, if there is one.
pub(crate) fn most_wal_megabytes(looks: &[Observation]) -> Option<f64> {
    looks.iter().filter_map(|look| look.wal_megabytes).max_by(f64::total_cmp)
}

/// Waits until the workers have counted so many events since their start, or have counted none for a long
/// time.
async fn settle(system: &RunningSystem, events: u64) {
    let (mut counted, mut last) = (0, Instant::now());
    while counted < events && last.elapsed() < TIMEOUT {
        tokio::time::sleep(SETTLE).await;
        let now = system.counted().await;
        if now > counted {
            (counted, last) = (now, Instant::now());
        }
    }
}

/// Whether the backlog of accepted events grows: from the second quarter of the time to the last by more than
/// is counted in a second. `None` if the time is too short to tell, or ingest accepts nothing.
fn grows(looks: &[Observation], spec: &LoadSpec, report: &Report) -> Option<bool> {
    // The last observation was made after all events were counted.
    let looks = &looks[..looks.len().saturating_sub(1)];
    let backlogs: Vec<u64> = looks.iter().map(|look| look.accepted.saturating_sub(look.counted)).collect();
    let quarter = backlogs.len() / 4;
    let nothing_accepted = looks.last().is_none_or(|look| look.accepted == 0);
    if quarter == 0 || nothing_accepted || matches!(spec.amount, Amount::Events(_)) {
        return None;
    }
    let mean = |part: &[u64]| real(part.iter().sum()) / real(part.len() as u64);
    let (second, last) = (&backlogs[quarter..2 * quarter], &backlogs[backlogs.len() - quarter..]);
    Some(mean(last) - mean(second) > per_second(report.acknowledged, report.seconds))
}

/// By what share the memory of the services grows from the second quarter of the time to the last. `None` if
/// the time is too short to tell.
pub(crate) fn memory_growth(looks: &[Observation]) -> Option<f64> {
    let quarter = looks.len() / 4;
    let mean =
        |part: &[Observation]| real(part.iter().map(|look| look.megabytes).sum()) / real(part.len() as u64);
    (quarter > 0).then(|| mean(&looks[looks.len() - quarter..]) / mean(&looks[quarter..2 * quarter]) - 1.0)
}

/// By how many megabytes ingest or query, whichever is more, has grown from the second quarter of the time to
/// the last.
fn growth_megabytes(looks: &[Observation]) -> Option<f64> {
    let quarter = looks.len() / 4;
    let services: [fn(&Observation) -> Option<f64>; 2] =
        [|look| look.ingest_megabytes, |look| look.query_megabytes];
    let growth = services.into_iter().filter_map(|of| {
        let mean = |part: &[Observation]| {
            let megabytes: Vec<f64> = part.iter().filter_map(of).collect();
            (!megabytes.is_empty()).then(|| megabytes.iter().sum::<f64>() / real(megabytes.len() as u64))
        };
        (quarter > 0).then_some(())?;
        Some(mean(&looks[looks.len() - quarter..])? - mean(&looks[quarter..2 * quarter])?)
    });
    growth.max_by(f64::total_cmp)
}

fn notes(spec: &LoadSpec, report: &Report, beside: &SideResult) -> Vec<String> {
    let Report { refused, unknown, errors, last_error, .. } = report;
    let mut notes = beside.notes.clone();
    if refused + unknown + errors > 0 {
        let last = last_error.clone().unwrap_or_default();
        notes.push(format!("{refused} refused, {unknown} unknown, {errors} errors, the last: {last}"));
    }
    if let Amount::Events(events) = spec.amount
        && report.acknowledged < events
    {
        notes.push(format!("{events} events were to be sent"));
    }
    notes
}

fn most(looks: &[Observation], of: impl Fn(&Observation) -> u64) -> u64 {
    looks.iter().map(of).max().unwrap_or_default()
}

pub(crate) fn per_second(events: u64, seconds: f64) -> f64 {
    if seconds > 0.0 { real(events) / seconds } else { 0.0 }
}
