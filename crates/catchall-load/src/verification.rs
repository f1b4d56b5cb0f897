//! Compares what was counted with what was acknowledged.

use std::cell::Cell;
use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::bail;
use serde::{Deserialize, Serialize};

use crate::counts::Counts;
use crate::reading::{CounterReader, Reading};
use crate::record::{Bounds, Difference, SendRecord};
use crate::workload::{Names, Workload};
use catchall_progress::{Display, Progress};

/// How many domains are watched until they have settled. The others are read only once after that, so that a
/// million reads do not disturb the workers.
const PROBE: usize = 1000;

/// How often unsettled domains are read.
const LOOK: Duration = Duration::from_millis(200);

/// Counters that have not changed for this long are final.
const STILL: Duration = Duration::from_secs(3);

/// The time between two readings before the run, which have to be equal.
const REST: Duration = Duration::from_millis(500);

/// How many domains are read at a time, which limits the memory this takes.
const READ_AT_ONCE: usize = 100_000;

/// How many domains with a difference are named.
const EXAMPLES: usize = 10;

/// The domains of a run, and their counters before it.
#[derive(Debug)]
pub(crate) struct Snapshot {
    domains: Vec<u32>,
    before: Vec<Counts>,
}

/// The result of a comparison.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Verification {
    /// Domains that were compared.
    pub domains: usize,
    /// Events that were acknowledged, but not counted.
    pub lost: u64,
    /// Events that were counted beyond what was sent.
    pub duplicated: u64,
    /// Domains whose status did not follow from their counters.
    pub wrong_status: usize,
    /// Seconds from the last acknowledgement until no event was missing; `None` if some still are.
    pub seconds_to_settle: Option<f64>,
    /// Some of the domains that are wrong.
    pub examples: Vec<String>,
}

impl Verification {
    /// Whether nothing is wrong.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.lost == 0 && self.duplicated == 0 && self.wrong_status == 0
    }
}

impl Snapshot {
    /// Reads the counters of every domain of the next events, once they no longer change.
    ///
    /// # Errors
    ///
    /// When they cannot be read, or still change after `timeout`: then something else sends events.
    pub(crate) async fn read(
        workload: Workload,
        events: u64,
        reader: &mut CounterReader,
        display: Display,
        timeout: Duration,
    ) -> anyhow::Result<Self> {
        let domains = touched(workload, events);
        let mut before = vec![Counts::default(); domains.len()];
        stand_still(&domains[probe(domains.len())..], reader, timeout).await?;
        let done = Cell::new(0);
        let reading = reader.read(&domains, |position, reading| {
            before[position] = reading.counters;
            done.set(done.get() + 1);
        });
        let progress = || Progress { done: done.get(), ..Progress::default() };
        display.follow("baseline", "domains", domains.len() as u64, progress, reading).await?;
        Ok(Self { domains, before })
    }
}

/// The domains of the next events, in ascending order. They are collected as bits, because a population has
/// millions.
fn touched(mut workload: Workload, events: u64) -> Vec<u32> {
    let mut seen: Vec<u64> = Vec::new();
    for _ in 0..events {
        let domain = workload.draw().domain;
        let (word, bit) = (domain as usize / 64, domain % 64);
        if word >= seen.len() {
            seen.resize(word + 1, 0);
        }
        seen[word] |= 1 << bit;
    }
    let words = (0..).zip(&seen);
    let bits = words.flat_map(|(word, bits)| {
        (0..64).filter(move |bit| bits >> bit & 1 == 1).map(move |bit| word * 64 + bit)
    });
    bits.collect()
}

/// The index of the first domain to be watched: the last domains are. For waves these are sent last; for a
/// population any domains will do.
fn probe(domains: usize) -> usize {
    domains.saturating_sub(PROBE)
}

/// Waits until two readings are equal: events of an earlier run may still be queued.
async fn stand_still(domains: &[u32], reader: &mut CounterReader, timeout: Duration) -> anyhow::Result<()> {
    let give_up = Instant::now() + timeout;
    let mut last: Option<Vec<Counts>> = None;
    loop {
        let mut counters = vec![Counts::default(); domains.len()];
        reader.read(domains, |position, reading| counters[position] = reading.counters).await?;
        if last.as_ref() == Some(&counters) {
            return Ok(());
        }
        if Instant::now() >= give_up {
            bail!(
                "the counters of these domains change before this run sends anything: something else sends \
                 events of them"
            );
        }
        last = Some(counters);
        tokio::time::sleep(REST).await;
    }
}

/// A comparison in progress.
#[derive(Debug)]
pub(crate) struct Comparison<'a> {
    snapshot: &'a Snapshot,
    record: &'a SendRecord,
    /// When the last event was acknowledged.
    since: Instant,
    /// How long counters may take to settle after that.
    timeout: Duration,
    /// The indices of domains that are wrong, with their latest counters.
    off: HashMap<usize, Counts>,
    wrong_status: HashSet<usize>,
    /// When a domain was last seen to become right.
    settled: Option<Instant>,
    /// When a wrong domain was last seen to change.
    moved: Instant,
}

impl<'a> Comparison<'a> {
    pub(crate) fn new(
        snapshot: &'a Snapshot,
        record: &'a SendRecord,
        since: Instant,
        timeout: Duration,
    ) -> Self {
        let (off, wrong_status) = (HashMap::new(), HashSet::new());
        Self { snapshot, record, since, timeout, off, wrong_status, settled: None, moved: since }
    }

    /// Waits until nothing is missing or the time is over, then compares every domain.
    ///
    /// # Errors
    ///
    /// When counters cannot be read.
    pub(crate) async fn run(
        mut self,
        names: Names,
        reader: &mut CounterReader,
        display: Display,
    ) -> anyhow::Result<Verification> {
        let all = self.snapshot.domains.len();
        self.watch((probe(all)..all).collect(), reader, display).await?;
        let first = self.settled.unwrap_or_else(Instant::now);
        // A message that is delivered twice may be counted a little later than the others.
        tokio::time::sleep(STILL).await;
        let done = Cell::new(0);
        let progress = || Progress { done: done.get(), ..Progress::default() };
        let positions: Vec<usize> = (0..all).collect();
        let look = self.look(&positions, reader, |read| done.set(read));
        display.follow("comparing", "domains", all as u64, progress, look).await?;
        self.watch(self.missing(positions), reader, display).await?;
        let settled = self.settled.unwrap_or(first);
        Ok(self.verdict(names, settled))
    }

    /// Reads these domains until nothing is missing, or until the time is over and nothing changes any more.
    async fn watch(
        &mut self,
        mut positions: Vec<usize>,
        reader: &mut CounterReader,
        display: Display,
    ) -> anyhow::Result<()> {
        let total = positions.len();
        let settled = Cell::new(0);
        let progress = || Progress { done: settled.get(), ..Progress::default() };
        let work = async {
            loop {
                self.look(&positions, reader, |_| ()).await?;
                positions = self.missing(positions);
                settled.set((total - positions.len()) as u64);
                let time_is_up = self.since.elapsed() > self.timeout && self.moved.elapsed() > STILL;
                if positions.is_empty() || time_is_up {
                    return Ok(());
                }
                tokio::time::sleep(LOOK).await;
            }
        };
        display.follow("settling", "domains", total as u64, progress, work).await
    }

    /// Reads these domains once and calls `tell` with the number that have been read.
    async fn look(
        &mut self,
        positions: &[usize],
        reader: &mut CounterReader,
        tell: impl Fn(u64),
    ) -> anyhow::Result<()> {
        let mut read = 0;
        for positions in positions.chunks(READ_AT_ONCE) {
            let domains: Vec<u32> =
                positions.iter().map(|position| self.snapshot.domains[*position]).collect();
            let take = |i: usize, reading: Reading| {
                self.take(positions[i], reading);
                read += 1;
                tell(read);
            };
            reader.read(&domains, take).await?;
        }
        Ok(())
    }

    fn take(&mut self, position: usize, reading: Reading) {
        if !reading.status_is_right {
            self.wrong_status.insert(position);
        }
        let now = Instant::now();
        if self.expected(position).difference(reading.counters) == Difference::default() {
            if self.off.remove(&position).is_some() {
                self.settled = Some(now);
            }
        } else if self.off.insert(position, reading.counters) != Some(reading.counters) {
            self.moved = now;
        }
    }

    fn expected(&self, position: usize) -> Bounds {
        self.record.expected(self.snapshot.domains[position], self.snapshot.before[position])
    }

    fn difference(&self, position: usize) -> Difference {
        self.off
            .get(&position)
            .map(|counted| self.expected(position).difference(*counted))
            .unwrap_or_default()
    }

    /// Keeps the domains where events are missing. Waiting does not help where there are only too many.
    fn missing(&self, mut positions: Vec<usize>) -> Vec<usize> {
        positions.retain(|position| self.difference(*position).lost > 0);
        positions
    }

    fn verdict(&self, names: Names, settled: Instant) -> Verification {
        let mut positions: Vec<usize> = self.off.keys().chain(&self.wrong_status).copied().collect();
        positions.sort_unstable();
        positions.dedup();
        let differences = positions.iter().map(|position| self.difference(*position));
        let (lost, duplicated) =
            differences.fold((0, 0), |sum, each| (sum.0 + each.lost, sum.1 + each.duplicated));
        let seconds = settled.saturating_duration_since(self.since).as_secs_f64();
        Verification {
            domains: self.snapshot.domains.len(),
            lost,
            duplicated,
            wrong_status: self.wrong_status.len(),
            seconds_to_settle: (lost == 0).then_some(seconds),
            examples: positions
                .iter()
                .take(EXAMPLES)
                .map(|position| self.example(names, *position))
                .collect(),
        }
    }

    fn example(&self, names: Names, position: usize) -> String {
        let mut sentence = names.canonical(self.snapshot.domains[position]);
        if let Some(counted) = self.off.get(&position) {
            let Bounds { least, most } = self.expected(position);
            let kinds = [
                ("delivered", counted.delivered, least.delivered, most.delivered),
                ("bounced", counted.bounced, least.bounced, most.bounced),
            ];
            for (kind, counted, least, most) in kinds {
                if counted < least || counted > most {
                    let expected =
                        if least == most { least.to_string() } else { format!("{least} to {most}") };
                    let _ = write!(sentence, ", {counted} {kind} instead of {expected}");
                }
            }
        }
        if self.wrong_status.contains(&position) {
            sentence += ", wrong status";
        }
        sentence
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::counts::EventKind;
    use crate::workload::{Draw, Shape};

    #[test]
    fn what_a_run_touches_is_found_beforehand() {
        for shape in [Shape::Waves, Shape::Uniform, Shape::Zipf] {
            let mut workload = Workload::new(shape, 11, 5000);
            let domains = touched(workload.clone(), 20_000);
            assert!(domains.is_sorted_by(|left, right| left < right));
            let drawn: HashSet<u32> = (0..20_000).map(|_| workload.draw().domain).collect();
            assert_eq!(domains.into_iter().collect::<HashSet<u32>>(), drawn);
        }
    }

    fn reading(delivered: u64, status_is_right: bool) -> Reading {
        Reading { counters: Counts { delivered, bounced: 0 }, status_is_right }
    }

    #[test]
    fn the_last_reading_of_a_domain_decides_but_a_wrong_status_stays_wrong() {
        let before = Counts { delivered: 5, bounced: 0 };
        let snapshot = Snapshot { domains: vec![3, 4, 8], before: vec![before; 3] };
        let mut record = SendRecord::default();
        let draw = |domain| Draw { domain, kind: EventKind::Delivered };
        record.acknowledge(draw(3));
        record.acknowledge(draw(8));
        record.leave_unknown(draw(8));
        let since = Instant::now();
        let mut comparison = Comparison::new(&snapshot, &record, since, Duration::ZERO);
        comparison.take(0, reading(5, false));
        comparison.take(1, reading(5, true));
        comparison.take(2, reading(8, true));
        assert_eq!(comparison.missing(vec![0, 1, 2]), [0]);
        let verification = comparison.verdict(Names::Population, since);
        assert_eq!((verification.domains, verification.lost, verification.duplicated), (3, 1, 1));
        assert_eq!((verification.wrong_status, verification.seconds_to_settle), (1, None));
        let names = [3, 8].map(|domain| Names::Population.canonical(domain));
        let examples = [
            format!("{}, 5 delivered instead of 6, wrong status", names[0]),
            format!("{}, 8 delivered instead of 6 to 7", names[1]),
        ];
        assert_eq!(verification.examples, examples);

        comparison.take(0, reading(6, true));
        comparison.take(2, reading(6, true));
        let verification = comparison.verdict(Names::Population, since);
        assert_eq!((verification.lost, verification.duplicated, verification.wrong_status), (0, 0, 1));
        assert!(verification.seconds_to_settle.is_some() && !verification.is_clean());
    }
}
