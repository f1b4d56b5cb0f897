//! The result: a row for each fault.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use harness::columns::align;

use crate::fault::Fault;
use crate::round::RoundResult;

const HEADINGS: [&str; 9] =
    ["fault", "rounds", "acknowledged", "lost", "duplicated", "503", "2xx after", "counted after", "MB"];

/// The heading of the text after them.
const REMARKS: &str = "readyz red and green";

/// What the columns mean.
const LEGEND: &str = "\
503: how many of the prober's requests were answered with it. Times: the worst of the rounds, in seconds.
They start when the fault ends: a killed service is started again, or a killed server accepts connections
again. They end when requests are answered as before, and when events sent after the fault are counted. MB:
the peak memory of a process of ingest/worker/query, or of the standalone, which comes first in a move. The
readiness of a service is not checked while it is killed.";

/// All rows so far.
#[derive(Debug, Default)]
pub(crate) struct FaultTable(Vec<FaultRow>);

#[derive(Debug)]
struct FaultRow {
    fault: Fault,
    rounds: u32,
    acknowledged: u64,
    lost: u64,
    duplicated: u64,
    refused: usize,
    flowing: Duration,
    counting: Duration,
    red: BTreeSet<&'static str>,
    peaks: BTreeMap<&'static str, u64>,
    note: Option<String>,
    failures: Vec<String>,
}

impl FaultTable {
    pub(crate) fn add(&mut self, fault: Fault, result: RoundResult) {
        let row = self.row(fault);
        row.rounds += 1;
        row.acknowledged += result.acknowledged;
        row.lost += result.lost;
        row.duplicated += result.duplicated;
        row.refused += result.refused;
        row.flowing = row.flowing.max(result.flowing);
        row.counting = row.counting.max(result.counting);
        row.red.extend(result.red);
        for (service, megabytes) in result.peaks {
            let peak = row.peaks.entry(service).or_default();
            *peak = megabytes.max(*peak);
        }
        row.note = result.note.or(row.note.take());
        row.failures.extend(result.failures);
    }

    /// A round that was not completed.
    pub(crate) fn add_failure(&mut self, fault: Fault, reason: String) {
        self.row(fault).failures.push(reason);
    }

    fn row(&mut self, fault: Fault) -> &mut FaultRow {
        if self.0.last().is_none_or(|row| row.fault != fault) {
            self.0.push(FaultRow {
                fault,
                rounds: 0,
                acknowledged: 0,
                lost: 0,
                duplicated: 0,
                refused: 0,
                flowing: Duration::ZERO,
                counting: Duration::ZERO,
                red: BTreeSet::new(),
                peaks: BTreeMap::new(),
                note: None,
                failures: Vec::new(),
            });
        }
        self.0.last_mut().expect("it was just pushed")
    }

    /// Whether nothing failed, and nothing was lost or counted twice.
    pub(crate) fn all_held(&self) -> bool {
        self.0.iter().all(|row| row.failures.is_empty() && row.lost + row.duplicated == 0)
    }
}

impl FaultRow {
    fn cells(&self) -> [String; 9] {
        let seconds = |time: Duration| format!("{:.1}", time.as_secs_f64());
        let megabytes: Vec<String> = ["standalone", "ingest", "worker", "query"]
            .iter()
            .filter_map(|service| self.peaks.get(service).map(u64::to_string))
            .collect();
        [
            self.fault.name(),
            self.rounds.to_string(),
            self.acknowledged.to_string(),
            self.lost.to_string(),
            self.duplicated.to_string(),
            self.refused.to_string(),
            seconds(self.flowing),
            seconds(self.counting),
            megabytes.join("/"),
        ]
    }

    fn remarks(&self) -> String {
        let red: Vec<&str> = self.red.iter().copied().collect();
        let red = if red.is_empty() { "-".to_owned() } else { red.join(", ") };
        let notes = [self.note.as_deref(), self.fault.takes_time()];
        let notes = notes.into_iter().flatten().fold(String::new(), |all, note| format!("{all}  ({note})"));
        let failed = if self.failures.is_empty() { "" } else { "  FAILED" };
        format!("{red}{notes}{failed}")
    }
}

impl fmt::Display for FaultTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cells = std::iter::once(HEADINGS.map(str::to_owned)).chain(self.0.iter().map(FaultRow::cells));
        let remarks = std::iter::once(REMARKS.to_owned()).chain(self.0.iter().map(FaultRow::remarks));
        for (line, remarks) in align(&cells.collect::<Vec<_>>()).into_iter().zip(remarks) {
            writeln!(f, "{line}  {remarks}")?;
        }
        writeln!(f, "\n{LEGEND}")?;
        for row in &self.0 {
            for failure in &row.failures {
                writeln!(f, "\n{} FAILED: {failure}", row.fault.name())?;
            }
        }
        Ok(())
    }
}
