//! Checks that every acknowledged event was counted once.

use catchall_load::Report;
use catchall_load::counts::Counts;
use catchall_load::record::{Bounds, Difference};
use catchall_load::workload::{Names, Shape, Workload};
use harness::load::LoadSpec;

use crate::books::Books;

/// How many of the first domains are in a sample. They are the most frequent of zipf.
const FREQUENT: u32 = 100_000;

/// About how many of the other domains are in a sample.
const SPREAD: u32 = 100_000;

/// What was added to all counters between two readings.
pub(crate) fn between(before: Counts, after: Counts) -> Counts {
    Counts { delivered: after.delivered - before.delivered, bounced: after.bounced - before.bounced }
}

/// The domains that are compared one by one: all domains of waves; of a population the first ones, and as
/// many that are spread over the rest.
///
/// The sums of all counters alone would not show one lost event beside one that was counted twice.
#[derive(Debug)]
pub(crate) struct Sample {
    shape: Shape,
    domains: u32,
    /// The counters of a population before the run.
    before: Vec<Counts>,
}

impl Sample {
    /// Reads the counters of the sample before the events of `spec` are sent.
    pub(crate) async fn read(spec: &LoadSpec, books: &Books) -> anyhow::Result<Self> {
        let LoadSpec { shape, domains, .. } = *spec;
        let mut sample = Self { shape, domains: domains.unwrap_or(1), before: Vec::new() };
        if shape != Shape::Waves {
            let numbers: Vec<u32> =
                (0..sample.domains).filter(|domain| sample.index(*domain).is_some()).collect();
            sample.before = books.each(&numbers, Names::new(shape, spec.seed)).await?;
        }
        Ok(sample)
    }

    /// The index of a domain in the sample, if it is part of it.
    fn index(&self, domain: u32) -> Option<usize> {
        if self.shape == Shape::Waves || domain < FREQUENT {
            return Some(domain as usize);
        }
        let (beyond, stride) = (domain - FREQUENT, (self.domains.saturating_sub(FREQUENT) / SPREAD).max(1));
        beyond.is_multiple_of(stride).then(|| (FREQUENT + beyond / stride) as usize)
    }

    /// The numbers of the first `count` domains of the sample.
    fn numbers(&self, count: usize) -> Vec<u32> {
        let all = 0..if self.shape == Shape::Waves { u32::MAX } else { self.domains };
        all.filter(|domain| self.index(*domain).is_some()).take(count).collect()
    }
}

/// How many events may have been handed out beside the acknowledged ones. It is not known which ones.
fn doubtful(report: &Report) -> u64 {
    let uncertain = report.refused + report.unknown;
    // At the end of a run that had trouble, each request in flight may be one that no server took.
    let in_flight = (report.connections * report.streams) as u64 * report.batch;
    if uncertain == 0 { 0 } else { uncertain + report.unsent.min(in_flight) }
}

/// Compares what was added to all counters with what was acknowledged, and each domain of the sample. `more`
/// is what was sent beside the load.
pub(crate) async fn compare(
    spec: &LoadSpec,
    report: &Report,
    sample: &Sample,
    more: Counts,
    added: Counts,
    books: &Books,
) -> anyhow::Result<Difference> {
    // Events are handed out in order, so the acknowledged ones are among the first ones.
    let doubtful = doubtful(report);
    let mut events = Workload::new(spec.shape, spec.seed, sample.domains);
    let mut all = more;
    let mut expected = sample.before.clone();
    for _ in 0..report.acknowledged + doubtful {
        let draw = events.draw();
        let event = Counts::of(draw.kind, 1);
        all += event;
        if let Some(index) = sample.index(draw.domain) {
            if expected.len() <= index {
                expected.resize(index + 1, Counts::default());
            }
            expected[index] += event;
        }
    }
    let numbers = sample.numbers(expected.len());
    let counted = books.each(&numbers, Names::new(spec.shape, spec.seed)).await?;
    // Any of a domain's events may be in doubt.
    let bounds = |most: Counts| {
        let [delivered, bounced] = [most.delivered, most.bounced].map(|count| count.saturating_sub(doubtful));
        Bounds { least: Counts { delivered, bounced }, most }
    };
    let domains = expected.iter().zip(&counted);
    let domains = domains.map(|(expected, counted)| bounds(*expected).difference(*counted));
    let (lost, duplicated) = domains.fold((0, 0), |sum, each| (sum.0 + each.lost, sum.1 + each.duplicated));
    let sums = bounds(all).difference(added);
    // What was counted twice in one domain makes up for nothing that was lost in others.
    let (least, total) = (report.acknowledged + more.total(), added.total());
    Ok(Difference {
        lost: lost.max(sums.lost).max((least + duplicated).saturating_sub(total)),
        duplicated: duplicated.max(sums.duplicated).max(total.saturating_sub(least + report.unknown)),
    })
}
