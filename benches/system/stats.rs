//! The stats of a row.

use catchall_load::Latency;
use harness::stats::real;
use hdrhistogram::Histogram;
use serde::Serialize;

/// All stats of a row. In a row of reads an event is a read.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct RowStats {
    /// Acknowledged events.
    pub(crate) events: u64,
    /// Seconds from the first to the last answer.
    pub(crate) seconds: f64,
    /// Offered events per second; `None` in a closed loop.
    pub(crate) offered_per_second: Option<f64>,
    pub(crate) acknowledged_per_second: f64,
    /// Events per second until the last was in the primary, or in the data file; `None` if nothing is
    /// written.
    pub(crate) counted_per_second: Option<f64>,
    /// Processor time of each process.
    pub(crate) micros_per_event: Option<Micros>,
    pub(crate) latency_ms: Latency,
    pub(crate) peak_megabytes: Peaks,
    /// The most messages that were seen in the queue.
    pub(crate) queue_messages: Option<u64>,
    /// Whether the backlog of accepted events grew.
    pub(crate) backlog_grows: Option<bool>,
    /// By what share the memory of the services grew in the second half of the time.
    pub(crate) memory_growth: Option<f64>,
    /// By how many megabytes ingest or query grew from the second quarter of the time to the last.
    pub(crate) growth_megabytes: Option<f64>,
    /// The most megabytes that the WAL beside the data file had.
    pub(crate) wal_megabytes: Option<f64>,
    /// The size of the data file with the large population, without a WAL.
    pub(crate) file_megabytes: Option<f64>,
    /// Seconds from the start of a standalone with that file until it is ready.
    pub(crate) opening_seconds: Option<f64>,
    /// Seconds from the start of a reclassification of all domains to its end.
    pub(crate) walk_seconds: Option<f64>,
    /// Seconds from the last answer until the last event was counted.
    pub(crate) seconds_behind: Option<f64>,
    /// The most seconds the replica was behind.
    pub(crate) lag_seconds: Option<f64>,
    /// The share of the requested processor time that the hypervisor gave to other guests.
    pub(crate) stolen: Option<f64>,
    pub(crate) deadlocks: u64,
    pub(crate) lost: u64,
    pub(crate) duplicated: u64,
    /// The steps of the row frontier.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) frontier: Vec<Step>,
    /// Further remarks.
    pub(crate) notes: Vec<String>,
    /// Why it was not completed.
    pub(crate) failure: Option<String>,
}

impl RowStats {
    /// The rate that is compared: events counted per second, or reads.
    pub(crate) fn rate(&self) -> f64 {
        self.counted_per_second.unwrap_or(self.acknowledged_per_second)
    }
}

/// A number of connections of a frontier, with its results: medians of all runs.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Step {
    pub(crate) connections: u32,
    /// Events acknowledged per second.
    pub(crate) rate: f64,
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
    /// Processor time of the whole stack per event.
    pub(crate) micros: f64,
    /// Events per second of the server that does nothing.
    pub(crate) floor: f64,
    pub(crate) floor_p50_ms: f64,
    /// The rate divided by that of the previous step; `None` for the first.
    pub(crate) times_before: Option<f64>,
    /// How many times it was measured.
    pub(crate) runs: usize,
}

/// Processor time in microseconds; `None` for processes that did not run. The time of a baseline or of the
/// standalone is that of `ingest`.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Micros {
    pub(crate) ingest: Option<f64>,
    pub(crate) broker: f64,
    pub(crate) worker: Option<f64>,
    pub(crate) primary: f64,
    pub(crate) replica: f64,
    pub(crate) query: Option<f64>,
    pub(crate) load: f64,
}

impl Micros {
    /// The sum of all but the load tool.
    pub(crate) fn stack(&self) -> f64 {
        let services = [self.ingest, self.worker, self.query].into_iter().flatten().sum::<f64>();
        services + self.broker + self.primary + self.replica
    }

    /// The time since `before`, per event.
    pub(crate) fn since(self, before: Self, events: u64) -> Self {
        let each = |now: f64, before: f64| (now - before) / real(events.max(1));
        let service = |now: Option<f64>, before: Option<f64>| Some(each(now?, before?));
        Self {
            ingest: service(self.ingest, before.ingest),
            broker: each(self.broker, before.broker),
            worker: service(self.worker, before.worker),
            primary: each(self.primary, before.primary),
            replica: each(self.replica, before.replica),
            query: service(self.query, before.query),
            load: each(self.load, before.load),
        }
    }
}

/// The percentiles of a histogram of microseconds, in milliseconds.
pub(crate) fn latency(micros: &Histogram<u64>) -> Latency {
    let share = |share| (!micros.is_empty()).then(|| real(micros.value_at_quantile(share)) / 1000.0);
    Latency { p50: share(0.50), p95: share(0.95), p99: share(0.99), max: share(1.0) }
}

/// The peak memory of each service in megabytes; of several processes the largest.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Peaks {
    pub(crate) ingest: Option<u64>,
    pub(crate) worker: Option<u64>,
    pub(crate) query: Option<u64>,
    pub(crate) standalone: Option<u64>,
}

/// A histogram for latencies in microseconds, up to a minute.
pub(crate) fn histogram() -> Histogram<u64> {
    Histogram::new_with_max(60_000_000, 3).expect("three digits and a minute are in range")
}
