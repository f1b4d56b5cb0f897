//! The result of a run, for people and for scripts.

use std::fmt::{self, Write as _};
use std::time::Duration;

use catchall_progress::HumanCount;
use serde::{Deserialize, Serialize};

use crate::config::{LoadConfig, Plan};
use crate::run::Run;
use crate::verification::Verification;
use crate::workload::Shape;

/// The whole run in numbers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// The shape of the traffic.
    pub workload: String,
    /// The seed of the workload.
    pub seed: u64,
    /// Size of the population; waves have none.
    pub domains: Option<u32>,
    /// Events that were to be sent.
    pub events: u64,
    /// How the events were sent.
    pub via: String,
    /// Whether each event, or message, had a key.
    pub keyed: bool,
    /// Connections.
    pub connections: usize,
    /// Requests or messages in flight on each.
    pub streams: usize,
    /// Events of each request or message.
    pub batch: u64,
    /// Events per second that were asked for; nothing for a closed loop.
    pub target_rate: Option<f64>,
    /// Whether it was ended early.
    pub interrupted: bool,
    /// From the first event to the last acknowledgement.
    pub seconds: f64,
    /// Events accepted by an answer.
    pub acknowledged: u64,
    /// Events refused by an answer.
    pub refused: u64,
    /// Events that may be accepted or not.
    pub unknown: u64,
    /// Events that were not sent: no server was available, or the run was interrupted.
    pub unsent: u64,
    /// Events sent again, counted each time.
    pub retried: u64,
    /// Requests that were not answered, or not with success.
    pub errors: u64,
    /// The last error.
    pub last_error: Option<String>,
    /// Acknowledged events per second.
    pub rate: f64,
    /// Latency of acknowledged events; in an open loop from the time they were due.
    pub latency_ms: Latency,
    /// The result of the comparison, if there was one.
    pub verification: Option<Verification>,
}

/// Latencies in milliseconds; `None` if no event was acknowledged.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Latency {
    /// The median.
    pub p50: Option<f64>,
    /// The 95th percentile.
    pub p95: Option<f64>,
    /// The 99th percentile.
    pub p99: Option<f64>,
    /// The longest. Some programs do not report it.
    #[serde(default)]
    pub max: Option<f64>,
}

/// The meaning of the exit status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitReason {
    /// 0: every event was acknowledged; what is unknown was compared.
    Clean,
    /// 1: events are lost or counted twice, or a status is wrong.
    Wrong,
    /// 4: events were refused, could not be sent, or are unknown and were not compared.
    Incomplete,
    /// 130: ended early, with nothing lost or counted twice until then.
    Interrupted,
}

impl ExitReason {
    /// The exit status.
    #[must_use]
    pub fn exit_status(self) -> u8 {
        match self {
            Self::Clean => 0,
            Self::Wrong => 1,
            Self::Incomplete => 4,
            Self::Interrupted => 130,
        }
    }
}

impl Report {
    /// The report of a run. `took` is the time until the last acknowledgement.
    pub(crate) fn new(plan: &Plan, run: &Run, took: Duration) -> Self {
        let LoadConfig { workload, events, via, keyed, rate, .. } = &plan.config;
        let stats = run.stats.borrow();
        let seconds = took.as_secs_f64();
        #[expect(clippy::cast_precision_loss, reason = "a rate to look at")]
        let mean = if seconds > 0.0 { stats.acknowledged as f64 / seconds } else { 0.0 };
        Self {
            workload: workload.to_string(),
            seed: plan.seed,
            domains: (*workload != Shape::Waves).then_some(plan.domains),
            events: *events,
            via: via.to_string(),
            keyed: *keyed,
            connections: plan.connections,
            streams: plan.streams,
            batch: plan.batch,
            target_rate: *rate,
            interrupted: run.is_interrupted(),
            seconds,
            acknowledged: stats.acknowledged,
            refused: stats.refused,
            unknown: stats.unknown,
            unsent: events - stats.done(),
            retried: stats.retried,
            errors: stats.errors,
            last_error: stats.last_error.clone(),
            rate: mean,
            latency_ms: Latency {
                p50: stats.latency_ms(0.50),
                p95: stats.latency_ms(0.95),
                p99: stats.latency_ms(0.99),
                max: stats.latency_ms(1.0),
            },
            verification: None,
        }
    }

    /// The reason that the exit status gives.
    #[must_use]
    pub fn exit_reason(&self) -> ExitReason {
        let compared = self.verification.as_ref();
        if compared.is_some_and(|verification| !verification.is_clean()) {
            ExitReason::Wrong
        } else if self.interrupted {
            ExitReason::Interrupted
        } else if self.refused > 0 || self.unsent > 0 || (self.unknown > 0 && compared.is_none()) {
            ExitReason::Incomplete
        } else {
            ExitReason::Clean
        }
    }

    fn rows(&self) -> Vec<(&'static str, String)> {
        let count = |number: u64| HumanCount(number).to_string();
        let workload = match self.domains {
            Some(domains) => format!("{}, {} domains", self.workload, HumanCount(domains.into())),
            None => self.workload.clone(),
        };
        let mut rows = vec![
            ("workload", workload),
            ("seed", self.seed.to_string()),
            ("events", count(self.events)),
            ("via", self.via_in_words()),
            ("acknowledged", count(self.acknowledged)),
            ("refused", count(self.refused)),
            ("unknown", count(self.unknown)),
            ("retried", count(self.retried)),
        ];
        if self.unsent > 0 {
            let reason = if self.interrupted { "interrupted" } else { "no server" };
            rows.push(("not sent", format!("{}, {reason}", count(self.unsent))));
        }
        let last = self.last_error.as_ref().map(|reason| format!(", the last: {reason}")).unwrap_or_default();
        rows.push(("errors", count(self.errors) + &last));
        rows.push(("seconds", format!("{:.2}", self.seconds)));
        let target = self.target_rate.map(|rate| format!(", {rate} wanted")).unwrap_or_default();
        rows.push(("rate", format!("{}/s{target}", HumanCount(whole(self.rate)))));
        let Latency { p50, p95, p99, max } = self.latency_ms;
        if let (Some(p50), Some(p95), Some(p99), Some(max)) = (p50, p95, p99, max) {
            rows.push(("latency", format!("p50 {p50:.2}  p95 {p95:.2}  p99 {p99:.2}  max {max:.2} ms")));
        }
        if let Some(verification) = &self.verification {
            rows.push(("domains compared", count(verification.domains as u64)));
            rows.push(("lost", count(verification.lost)));
            rows.push(("duplicated", count(verification.duplicated)));
            rows.push(("wrong status", count(verification.wrong_status as u64)));
            let seconds = verification.seconds_to_settle;
            let settled = seconds.map_or("not in time".into(), |seconds| format!("{seconds:.2} s"));
            rows.push(("settled after", settled));
            let names = std::iter::once("for example").chain(std::iter::repeat(""));
            rows.extend(names.zip(verification.examples.iter().cloned()));
        }
        rows
    }

    fn via_in_words(&self) -> String {
        let Self { via, connections, streams, batch, .. } = self;
        let mut words = format!("{via}, {connections} connections");
        if *streams > 1 {
            let _ = write!(words, " × {streams}");
        }
        if *batch > 1 {
            let _ = write!(words, ", {} events at a time", HumanCount(*batch));
        }
        if self.keyed {
            words += ", keyed";
        }
        words
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rate is not negative")]
fn whole(rate: f64) -> u64 {
    rate.round() as u64
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, value) in self.rows() {
            writeln!(f, "{name:16}  {value}")?;
        }
        Ok(())
    }
}
