//! Goals, and whether they are met.

use serde::Serialize;

use crate::frontier::{COMPARED, FALL};
use crate::row::Row;
use crate::stats::RowStats;

/// The rate of the naive design on the machine for which the goals were set, in events per second. On a
/// slower machine the goals for rates are lowered in proportion.
const REFERENCE_NAIVE: f64 = 6_000.0;

/// A rate of at least this share of another one counts as equal: two runs of the same thing differ as much.
const NOT_LOWER: f64 = 0.95;

/// Costs that differ by at most this share count as equal.
const FLAT: f64 = 0.25;

/// Memory that grows by at most this share in the second half counts as flat, because allocators never settle
/// completely.
const NO_GROWTH: f64 = 0.1;

/// A rate is sustained if at least this share of the offered events was acknowledged.
const KEPT: f64 = 0.99;

/// A rate is sustained if all events are counted within this time after the last one was accepted.
const MAX_BEHIND_SECONDS: f64 = 3.0;

/// A row that lasts less than this shows no memory that is kept for each read: it would be less than what an
/// allocator takes now and then. A minute, without the time it takes to connect.
const LONG_ENOUGH_SECONDS: f64 = 55.0;

/// A goal of a row.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Goal {
    /// At least so many events counted per second.
    Counted(f64),
    /// At least so many reads per second.
    Read(f64),
    /// So many events per second are offered, accepted and counted, and the queue does not grow.
    Sustained(f64),
    /// At most so many microseconds per event of all processes except the load tool.
    Stack(f64),
    /// At most so many microseconds per read of query and the replica.
    ReadStack(f64),
    /// At least this share of the rate of the server that does nothing.
    OfFloor(f64),
    /// Ingest uses at most so many times the processor time of the server that does nothing.
    TimesFloor(f64),
    /// More connections never lower the rate.
    NoFall,
    /// At [`COMPARED`] connections, at least half the rate of the server that does nothing.
    HalfOfFloor,
    /// In milliseconds.
    P50(f64),
    /// In milliseconds.
    P95(f64),
    /// In milliseconds.
    P99(f64),
    /// The replica is at most so many seconds behind.
    Lag(f64),
    /// The rate is not lower than that of another row.
    NotBelow(Row),
    /// The cost per event of the stack differs by at most a quarter from another row.
    Flat(Row),
    /// The broker uses more processor time than everything else, and all it accepts is counted at once.
    BrokerLimits,
    /// The memory of the services does not grow.
    FlatMemory,
    /// Neither ingest nor query grows by more megabytes from the second quarter of the time to the last, if
    /// that is [long enough](LONG_ENOUGH_SECONDS).
    NoGrowth(f64),
    /// Query uses at most this share of a core.
    OfCore(f64),
    /// The WAL beside the data file stays below so many megabytes.
    Wal(f64),
    /// The data file with the large population is below so many megabytes.
    FileSize(f64),
    /// With that file, the standalone is ready in less than so many seconds.
    Opening(f64),
    /// All domains are reclassified in less than so many seconds.
    Walked(f64),
    /// The 99th percentile of the latency is at most a quarter above that of another row.
    AsFresh(Row),
    /// There was no deadlock.
    NoDeadlock,
}

/// A goal in words, and whether it is met; `None` if the row was too short to tell.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct GoalResult {
    pub(crate) goal: String,
    pub(crate) met: Option<bool>,
}

/// The factor by which goals for rates are lowered on this machine.
pub(crate) fn slowness(naive: Option<&RowStats>) -> f64 {
    naive.map_or(1.0, |naive| (naive.rate() / REFERENCE_NAIVE).min(1.0))
}

impl Goal {
    /// The goals of a row.
    pub(crate) fn of(row: Row) -> &'static [Self] {
        match row {
            Row::AlonePut => &[Self::OfFloor(0.65), Self::Stack(10.0), Self::FlatMemory],
            Row::AloneFrontier => &[Self::NoFall, Self::HalfOfFloor],
            Row::AloneBulk => &[Self::Counted(2_000_000.0), Self::FlatMemory],
            // Its claims fill the cache of the file until the row ends.
            Row::AloneKeyed => &[Self::Counted(60_000.0)],
            Row::AlonePaced => &[Self::P50(3.0), Self::P99(15.0)],
            Row::AloneFile => &[Self::FileSize(500.0), Self::Opening(1.0)],
            Row::AloneGet => &[Self::OfFloor(0.65), Self::FlatMemory],
            Row::AloneUniform => {
                &[Self::Sustained(80_000.0), Self::P99(1_000.0), Self::Wal(256.0), Self::FlatMemory]
            }
            Row::Put => &[Self::Counted(65_000.0), Self::Stack(15.0), Self::TimesFloor(1.6)],
            Row::PutHalf => &[Self::P95(20.0), Self::P99(40.0)],
            Row::Frontier => &[Self::NoFall, Self::HalfOfFloor, Self::P50(4.0)],
            Row::PutH2 => &[Self::Counted(140_000.0), Self::Stack(9.0)],
            Row::Bulk => &[Self::Counted(2_000_000.0), Self::Stack(0.8)],
            Row::Amqp => &[Self::Counted(25_000.0), Self::BrokerLimits],
            Row::Fresh => &[Self::P99(150.0)],
            Row::Unwatched => &[Self::NoGrowth(3.0)],
            Row::Zipf => &[Self::Sustained(200_000.0)],
            Row::Uniform => {
                &[Self::Sustained(100_000.0), Self::Lag(5.0), Self::Stack(14.0), Self::FlatMemory]
            }
            Row::Size | Row::SizeLarge => &[Self::Flat(Row::SizeSmall)],
            Row::TwoWorkers => &[Self::NotBelow(Row::OneWorker), Self::NoDeadlock],
            Row::Get => &[Self::Read(45_000.0), Self::ReadStack(28.0)],
            Row::GetHalf => &[Self::P99(10.0)],
            Row::ChangeFresh => &[Self::P99(250.0)],
            Row::Subscribers => &[Self::OfCore(0.1)],
            Row::List => &[Self::Read(300.0)],
            Row::ListHalf => &[Self::P99(20.0)],
            Row::Export => &[Self::Read(500_000.0)],
            Row::LookUp | Row::AloneLookUp => &[Self::Read(300_000.0)],
            Row::Totals | Row::AloneTotals => &[Self::P99(5.0)],
            Row::Reclassify => &[Self::Walked(300.0), Self::AsFresh(Row::Steady)],
            _ => &[],
        }
    }

    /// Whether the stats meet the goal, on a machine with this [`slowness`].
    pub(crate) fn judge<'a>(
        self,
        stats: &RowStats,
        slowness: f64,
        other: impl Fn(Row) -> Option<&'a RowStats>,
    ) -> GoalResult {
        let ingest = |stats: &RowStats| stats.micros_per_event.and_then(|micros| micros.ingest);
        let stack = stats.micros_per_event.map(|micros| micros.stack());
        let at_most = |value: Option<f64>, limit: f64| value.is_some_and(|value| value <= limit);
        let (goal, met) = match self {
            Self::Counted(rate) => (format!("{rate}/s counted"), stats.rate() >= rate * slowness),
            Self::Read(rate) => (format!("{rate}/s"), stats.rate() >= rate * slowness),
            Self::Sustained(rate) => {
                let offered = stats.offered_per_second.unwrap_or(rate);
                let kept = stats.acknowledged_per_second >= KEPT * offered;
                let counted = at_most(stats.seconds_behind, MAX_BEHIND_SECONDS);
                (format!("{rate}/s sustained"), kept && counted && stats.backlog_grows == Some(false))
            }
            Self::Stack(limit) => (format!("{limit} us"), at_most(stack, limit)),
            Self::ReadStack(limit) => {
                let both = stats.micros_per_event.and_then(|micros| Some(micros.query? + micros.replica));
                (format!("query and replica {limit} us"), at_most(both, limit))
            }
            Self::OfFloor(share) => of_floor(stats, other(Row::Floor), share),
            Self::TimesFloor(times) => {
                let floor = other(Row::Floor).and_then(ingest);
                let met = ingest(stats).zip(floor).is_some_and(|(ingest, floor)| ingest <= times * floor);
                (format!("ingest {times} x floor"), met)
            }
            Self::NoFall => no_fall(stats),
            Self::HalfOfFloor => half_of_floor(stats),
            Self::P50(limit) => (format!("p50 {limit} ms"), at_most(stats.latency_ms.p50, limit)),
            Self::P95(limit) => (format!("p95 {limit} ms"), at_most(stats.latency_ms.p95, limit)),
            Self::P99(limit) => (format!("p99 {limit} ms"), at_most(stats.latency_ms.p99, limit)),
            Self::Lag(limit) => (format!("lag {limit} s"), at_most(stats.lag_seconds, limit)),
            Self::NotBelow(row) => {
                let met = other(row).is_some_and(|other| stats.rate() >= NOT_LOWER * other.rate());
                (format!("not below {}", row.name()), met)
            }
            Self::Flat(row) => {
                let other = other(row).and_then(|other| other.micros_per_event).map(|micros| micros.stack());
                let ratio = stack.zip(other).map(|(stack, other)| stack / other);
                let goal = format!("within {:.0} % of {}", FLAT * 100.0, row.name());
                (goal, ratio.is_some_and(|ratio| (1.0 - FLAT..=1.0 + FLAT).contains(&ratio)))
            }
            Self::BrokerLimits => {
                let share = stats.micros_per_event.map(|micros| micros.broker / micros.stack());
                let share = share.unwrap_or(f64::NAN);
                let met = share > 0.5 && at_most(stats.seconds_behind, MAX_BEHIND_SECONDS);
                (format!("the broker the limit, with {:.0} % of the stack", share * 100.0), met)
            }
            Self::FlatMemory => {
                let growth = stats.memory_growth.unwrap_or(f64::NAN);
                (format!("memory {:+.0} % in the second half", growth * 100.0), growth <= NO_GROWTH)
            }
            Self::NoGrowth(limit) => no_growth(stats, limit),
            Self::OfCore(limit) => (format!("query {limit} of a core"), at_most(of_core(stats), limit)),
            Self::Wal(limit) => below("WAL", stats.wal_megabytes, limit, "MB"),
            Self::FileSize(limit) => below("file", stats.file_megabytes, limit, "MB"),
            Self::Opening(limit) => below("ready after", stats.opening_seconds, limit, "s"),
            Self::Walked(limit) => below("walked in", stats.walk_seconds, limit, "s"),
            Self::AsFresh(row) => as_fresh(stats, row, other(row)),
            Self::NoDeadlock => ("no deadlock".into(), stats.deadlocks == 0),
        };
        let failed = stats.failure.is_some();
        let tells = !matches!(self, Self::NoGrowth(_)) || stats.seconds >= LONG_ENOUGH_SECONDS;
        GoalResult { goal, met: (tells || failed).then_some(met && !failed) }
    }
}

/// Whether the latency is much like that of another row.
fn as_fresh(stats: &RowStats, row: Row, other: Option<&RowStats>) -> (String, bool) {
    let other = other.and_then(|other| other.latency_ms.p99);
    let limit = other.map_or(f64::NAN, |other| (1.0 + FLAT) * other);
    let met = stats.latency_ms.p99.is_some_and(|p99| p99 <= limit);
    (format!("p99 as {} (below {limit:.0} ms)", row.name()), met)
}

/// Whether the rate is at least this share of that of the floor.
fn of_floor(stats: &RowStats, floor: Option<&RowStats>, share: f64) -> (String, bool) {
    let floor = floor.filter(|floor| floor.failure.is_none());
    let times = floor.map_or(f64::NAN, |floor| stats.rate() / floor.rate());
    (format!("{share} of floor"), times >= share)
}

/// Whether the rate at [`COMPARED`] connections is at least half that of the floor.
fn half_of_floor(stats: &RowStats) -> (String, bool) {
    let step = stats.frontier.iter().find(|step| step.connections == COMPARED);
    let times = step.map_or(f64::NAN, |step| step.rate / step.floor);
    (format!("half of floor at {COMPARED} ({times:.2})"), times >= 0.5)
}

/// By how many megabytes ingest or query grew, and whether that is little enough.
fn no_growth(stats: &RowStats, limit: f64) -> (String, bool) {
    let growth = stats.growth_megabytes.unwrap_or(f64::NAN);
    (format!("{growth:+.1} MB"), growth <= limit)
}

/// The share of a core that query used.
fn of_core(stats: &RowStats) -> Option<f64> {
    let micros = stats.micros_per_event?.query?;
    Some(micros * stats.acknowledged_per_second / 1e6)
}

/// A size or a time, and whether it is below its limit.
fn below(what: &str, value: Option<f64>, limit: f64, unit: &str) -> (String, bool) {
    let value = value.unwrap_or(f64::NAN);
    (format!("{what} {value:.2} {unit} (below {limit})"), value < limit)
}

/// The greatest fall between two steps, and whether it is small enough.
fn no_fall(stats: &RowStats) -> (String, bool) {
    let steps = stats.frontier.iter().filter_map(|step| Some((step.times_before?, step)));
    let worst = steps.min_by(|(left, _), (right, _)| left.total_cmp(right));
    let (times, at) = worst.map_or((f64::NAN, 0), |(times, step)| (times, step.connections));
    let least = format!("at {at} connections {:+.1} %", (times - 1.0) * 100.0);
    let goal = format!("no step {:.0} % below the one before ({least})", FALL * 100.0);
    (goal, times >= 1.0 - FALL)
}

impl GoalResult {
    /// The text for the table.
    pub(crate) fn words(&self) -> String {
        let met = match self.met {
            Some(true) => "met",
            Some(false) => "MISSED",
            None => "not long enough",
        };
        format!("{} {met}", self.goal)
    }
}
