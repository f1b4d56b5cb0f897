//! The result: a table of all rows, with their goals.

use std::fmt;

use harness::columns::align;
use harness::servers::Servers;
use harness::sql;
use hyper::Method;
use serde::Serialize;
use serde_json::{Value, json};

use crate::goal::{Goal, GoalResult, slowness};
use crate::row::Row;
use crate::scale::Scale;
use crate::stats::{Micros, Peaks, RowStats, Step};

const HEADINGS: [&str; 23] = [
    "row",
    "acked/s",
    "counted/s",
    "ingest",
    "broker",
    "worker",
    "primary",
    "replica",
    "query",
    "stack",
    "load",
    "p50",
    "p95",
    "p99",
    "MB",
    "x naive",
    "x floor",
    "queue",
    "behind",
    "lag",
    "steal",
    "lost",
    "dup",
];

/// What the columns mean.
const LEGEND: &str = "\
acked/s: events (for get: reads) answered per second. counted/s: events per second until the last of them
was in the primary, or in the data file. ingest to load: each process's processor time per event in
microseconds, until the replica had all events; the servers of naive and floor, and the standalone of all
rows alone-..., are listed under ingest, and the idle servers beside them under their own names. stack: the
sum of all but load, the load tool. p50 to p99: latency in ms; at a fixed rate it counts from the moment an
event was due. MB: the peak memory of ingest/worker/query, or of the standalone. x naive, x floor: the rate
divided by theirs. queue: the most messages seen in the queue. behind: seconds from the last answer until
all events were counted. lag: the most seconds the replica was behind. steal: the percentage of the
requested processor time that the machine's host gave to others; where it is high, rates and latencies say
little. If naive is slower than 6,000/s, the goals for rates are lowered in proportion.";

/// How much memory a service may use.
struct Allowance {
    service: &'static str,
    megabytes: u64,
    taken: fn(&Peaks) -> Option<u64>,
}

const MEMORY: [Allowance; 4] = [
    Allowance { service: "ingest", megabytes: 128, taken: |peaks| peaks.ingest },
    Allowance { service: "worker", megabytes: 512, taken: |peaks| peaks.worker },
    Allowance { service: "query", megabytes: 128, taken: |peaks| peaks.query },
    Allowance { service: "standalone", megabytes: 256, taken: |peaks| peaks.standalone },
];

/// All rows so far, and the machine they were measured on.
#[derive(Debug)]
pub(crate) struct RowTable {
    rows: Vec<(Row, RowStats)>,
    scale: Scale,
    machine: MachineInfo,
}

#[derive(Clone, Debug, Serialize)]
struct MachineInfo {
    cores: usize,
    processor: String,
    memory_gigabytes: u64,
    postgres: String,
    rabbitmq: String,
    /// How this program and all it measures were built.
    build: &'static str,
}

impl MachineInfo {
    async fn of(servers: &Servers) -> Self {
        let postgres = sql::text(&servers.database_url, "select current_setting('server_version')").await;
        let overview = servers.management(Method::GET, "/api/overview", "").await;
        let overview: Value = serde_json::from_str(&overview).unwrap_or_default();
        Self {
            cores: std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
            processor: entry("/proc/cpuinfo", "model name").unwrap_or_default(),
            memory_gigabytes: entry("/proc/meminfo", "MemTotal")
                .and_then(|total| total.trim_end_matches(" kB").parse::<u64>().ok())
                .map_or(0, |kilobytes| kilobytes.div_ceil(1 << 20)),
            postgres: postgres.unwrap_or_default(),
            rabbitmq: overview["rabbitmq_version"].as_str().unwrap_or_default().to_owned(),
            build: if cfg!(debug_assertions) { "debug: the stats say nothing" } else { "release" },
        }
    }
}

/// The first value with this name in a file of `/proc`.
fn entry(file: &str, name: &str) -> Option<String> {
    let text = std::fs::read_to_string(file).ok()?;
    let mut entries = text.lines().filter_map(|line| line.split_once(':'));
    entries.find(|(entry, _)| entry.trim() == name).map(|(_, value)| value.trim().to_owned())
}

impl RowTable {
    pub(crate) async fn new(servers: &Servers, scale: &Scale) -> Self {
        Self { rows: Vec::new(), scale: *scale, machine: MachineInfo::of(servers).await }
    }

    pub(crate) fn add(&mut self, row: Row, stats: RowStats) {
        self.rows.push((row, stats));
    }

    /// The stats of a row, if it has been measured.
    pub(crate) fn stats(&self, row: Row) -> Option<&RowStats> {
        self.rows.iter().find(|(measured, _)| *measured == row).map(|(_, stats)| stats)
    }

    /// Whether every row was completed and nothing was lost or counted twice.
    pub(crate) fn all_counted_once(&self) -> bool {
        self.rows.iter().all(|(_, stats)| stats.failure.is_none() && stats.lost + stats.duplicated == 0)
    }

    /// A summary of the last row.
    pub(crate) fn last_in_words(&self) -> String {
        let Some((row, stats)) = self.rows.last() else { return String::new() };
        if let Some(failure) = &stats.failure {
            return format!("FAILED: {failure}");
        }
        let stack = stats.micros_per_event.map(|micros| micros.stack()).unwrap_or_default();
        let goals = self.goal_results(*row, stats).into_iter().map(|result| result.words());
        let RowStats { lost, duplicated, .. } = stats;
        let first = format!("{:.0}/s, {stack:.2} us, {lost} lost, {duplicated} duplicated", stats.rate());
        std::iter::once(first).chain(goals).chain(stats.notes.iter().cloned()).collect::<Vec<_>>().join(", ")
    }

    fn goal_results(&self, row: Row, stats: &RowStats) -> Vec<GoalResult> {
        let slowness = slowness(self.stats(Row::Naive));
        let judge = |goal: &Goal| goal.judge(stats, slowness, |row| self.stats(row));
        Goal::of(row).iter().map(judge).collect()
    }

    /// The peak memory of each service over all rows, and whether it is below its limit.
    fn memory(&self) -> Vec<GoalResult> {
        let ours = self.rows.iter().filter(|(row, _)| row.is_ours());
        let peaks: Vec<&Peaks> = ours.map(|(_, stats)| &stats.peak_megabytes).collect();
        let most = MEMORY.iter().filter_map(|Allowance { service, megabytes, taken }| {
            let most = peaks.iter().filter_map(|peaks| taken(peaks)).max()?;
            Some(GoalResult {
                goal: format!("{service} {most} MB, below {megabytes}"),
                met: Some(most < *megabytes),
            })
        });
        most.collect()
    }

    /// The rate divided by that of another row.
    fn times(&self, stats: &RowStats, other: Row) -> Option<f64> {
        let rate = self.stats(other)?.rate();
        (rate > 0.0).then(|| stats.rate() / rate)
    }

    /// The whole table as JSON.
    pub(crate) fn json(&self) -> Value {
        let rows = self.rows.iter().map(|(row, stats)| {
            json!({
                "row": row,
                "what": row.what(),
                "stats": stats,
                "stack_micros_per_event": stats.micros_per_event.map(|micros| micros.stack()),
                "times_naive": self.times(stats, Row::Naive),
                "times_floor": self.times(stats, Row::Floor),
                "goals": self.goal_results(*row, stats),
            })
        });
        let rows: Vec<Value> = rows.collect();
        let slowness = slowness(self.stats(Row::Naive));
        json!({
            "machine": self.machine, "scale": self.scale, "rate_goals_times": slowness, "rows": rows,
            "memory": self.memory(),
        })
    }

    fn cells(&self, row: Row, stats: &RowStats) -> [String; 23] {
        let rate = |rate: f64| format!("{rate:.0}");
        let some = |value: Option<f64>, digits: usize| {
            value.map_or_else(|| "-".to_owned(), |value| format!("{value:.digits$}"))
        };
        let (micros, latency) = (stats.micros_per_event, stats.latency_ms);
        // Bulk events take less than a microsecond, so two digits are needed.
        let micros = |of: fn(&Micros) -> Option<f64>| some(micros.as_ref().and_then(of), 2);
        let Peaks { ingest, worker, query, standalone } = stats.peak_megabytes;
        let megabytes = [ingest.or(standalone), worker, query]
            .map(|peak| peak.map_or("-".into(), |peak| peak.to_string()));
        [
            row.name(),
            rate(stats.acknowledged_per_second),
            stats.counted_per_second.map_or("-".into(), rate),
            micros(|micros| micros.ingest),
            micros(|micros| Some(micros.broker)),
            micros(|micros| micros.worker),
            micros(|micros| Some(micros.primary)),
            micros(|micros| Some(micros.replica)),
            micros(|micros| micros.query),
            micros(|micros| Some(micros.stack())),
            micros(|micros| Some(micros.load)),
            some(latency.p50, 2),
            some(latency.p95, 2),
            some(latency.p99, 2),
            megabytes.join("/"),
            some(self.times(stats, Row::Naive), 1),
            some(self.times(stats, Row::Floor), 2),
            stats.queue_messages.map_or("-".into(), |messages| messages.to_string()),
            some(stats.seconds_behind, 1),
            some(stats.lag_seconds, 1),
            some(stats.stolen.map(|share| share * 100.0), 0),
            stats.lost.to_string(),
            stats.duplicated.to_string(),
        ]
    }

    /// The text after the numbers of a row.
    fn remarks(&self, row: Row, stats: &RowStats) -> String {
        if stats.failure.is_some() {
            return "FAILED".into();
        }
        let goals = self.goal_results(row, stats).into_iter().map(|result| result.words());
        let grows = (stats.backlog_grows == Some(true)).then(|| "the backlog grows".to_owned());
        let remarks = goals.chain(grows).chain(stats.notes.iter().cloned());
        remarks.collect::<Vec<_>>().join("; ")
    }
}

impl fmt::Display for RowTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let MachineInfo { cores, processor, memory_gigabytes, postgres, rabbitmq, build } = &self.machine;
        writeln!(
            f,
            "{cores} cores of {processor}, {memory_gigabytes} GB; PostgreSQL {postgres}, \
            RabbitMQ {rabbitmq}; {build}"
        )?;
        writeln!(f, "{}\n", self.scale)?;
        let cells = self.rows.iter().map(|(row, stats)| self.cells(*row, stats));
        let lines = align(&std::iter::once(HEADINGS.map(str::to_owned)).chain(cells).collect::<Vec<_>>());
        let remarks = self.rows.iter().map(|(row, stats)| self.remarks(*row, stats));
        let remarks = std::iter::once("goals and remarks".to_owned()).chain(remarks);
        for (line, remarks) in lines.into_iter().zip(remarks) {
            writeln!(f, "{}", format!("{line}  {remarks}").trim_end())?;
        }
        writeln!(f, "\n{LEGEND}\n")?;
        for (row, stats) in self.rows.iter().filter(|(_, stats)| !stats.frontier.is_empty()) {
            writeln!(f, "{}, medians; times: the rate as a multiple of that of the step before", row.name())?;
            writeln!(f, "connections       /s     p50     p99       us  floor /s  x floor  times  runs")?;
            for step in &stats.frontier {
                let Step { connections, rate, p50_ms, p99_ms, micros, floor, times_before, runs, .. } = step;
                let times = times_before.map_or("-".into(), |times| format!("{times:.2}"));
                writeln!(
                    f,
                    "{connections:11}  {rate:7.0}  {p50_ms:6.2}  {p99_ms:6.2}  {micros:7.2}  \
                    {floor:8.0}  {:7.2}  {times:>5}  {runs:4}",
                    rate / floor
                )?;
            }
            writeln!(f)?;
        }
        let memory: Vec<String> = self.memory().iter().map(GoalResult::words).collect();
        writeln!(f, "memory, the most of all rows: {}", memory.join("; "))?;
        // On a busy machine naive is slow too, and goals are met too easily. This line shows it.
        writeln!(f, "goals for rates were multiplied by {:.2}", slowness(self.stats(Row::Naive)))?;
        for (row, stats) in &self.rows {
            if let Some(failure) = &stats.failure {
                writeln!(f, "\n{} FAILED: {failure}", row.name())?;
            }
        }
        Ok(())
    }
}
