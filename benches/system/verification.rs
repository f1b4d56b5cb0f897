//! Whether every acknowledged event was counted, once.

use std::collections::HashMap;

use catchall::counters::Counters;
use catchall::load::workload::{Names, Shape, Workload};
use sqlx::{Connection, PgConnection};

use crate::load::{Order, Report};

/// Domains that are read together.
const TOGETHER: usize = 10_000;

/// Domains of a sample from the first on, the most frequent of zipf.
const FREQUENT: u32 = 100_000;

/// Domains of a sample, or a few more, that are spread over all others.
const SPREAD: u32 = 100_000;

/// Events that are missing, and those that were counted too often.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Difference {
    pub(crate) lost: u64,
    pub(crate) duplicated: u64,
}

impl Difference {
    /// Adds what lies between two counters of one kind of event.
    fn add(&mut self, expected: u64, counted: u64) {
        self.lost += expected.saturating_sub(counted);
        self.duplicated += counted.saturating_sub(expected);
    }

    fn between(expected: Counters, counted: Counters) -> Self {
        let mut difference = Self::default();
        difference.add(expected.delivered, counted.delivered);
        difference.add(expected.bounced, counted.bounced);
        difference
    }

    fn or_worse(self, other: Self) -> Self {
        Self { lost: self.lost.max(other.lost), duplicated: self.duplicated.max(other.duplicated) }
    }
}

/// The domains that are compared one by one: of a population the most frequent of zipf and as many that are spread
/// over all others; of waves, which no other run has, all.
///
/// The sums of all counters alone would not tell an event that was lost beside one that was counted twice.
#[derive(Debug)]
pub(crate) struct Sample {
    shape: Shape,
    domains: u32,
    /// Of a population, before the run.
    before: Vec<Counters>,
}

impl Sample {
    /// Reads the counters of the sample before the events of `order` are sent.
    pub(crate) async fn read(order: &Order, database_url: &str) -> anyhow::Result<Self> {
        let Order { shape, domains, .. } = *order;
        let mut sample = Self { shape, domains: domains.unwrap_or(1), before: Vec::new() };
        if shape != Shape::Waves {
            let numbers: Vec<u32> =
                (0..sample.domains).filter(|domain| sample.place(*domain).is_some()).collect();
            sample.before = each(&numbers, Names::new(shape, order.seed), database_url).await?;
        }
        Ok(sample)
    }

    /// Where in the sample a domain is, if it is there.
    fn place(&self, domain: u32) -> Option<usize> {
        if self.shape == Shape::Waves || domain < FREQUENT {
            return Some(domain as usize);
        }
        let (beyond, stride) = (domain - FREQUENT, (self.domains.saturating_sub(FREQUENT) / SPREAD).max(1));
        beyond.is_multiple_of(stride).then(|| (FREQUENT + beyond / stride) as usize)
    }

    /// The numbers of the first so many domains.
    fn numbers(&self, count: usize) -> Vec<u32> {
        let all = 0..if self.shape == Shape::Waves { u32::MAX } else { self.domains };
        all.filter(|domain| self.place(*domain).is_some()).take(count).collect()
    }
}

/// Compares what was added to all counters with what was acknowledged, `more` being what others have sent, and each
/// domain of the sample.
pub(crate) async fn compare(
    order: &Order,
    report: &Report,
    sample: &Sample,
    more: Counters,
    added: Counters,
    database_url: &str,
) -> anyhow::Result<Difference> {
    let acknowledged = report.acknowledged;
    if report.refused + report.unknown > 0 {
        // It is not known which events these are, only how many.
        let (expected, counted) =
            (acknowledged + more.delivered + more.bounced, added.delivered + added.bounced);
        let lost = expected.saturating_sub(counted);
        return Ok(Difference { lost, duplicated: counted.saturating_sub(expected + report.unknown) });
    }
    // An event is handed out in its place, so what was acknowledged is what comes first.
    let mut events = Workload::new(order.shape, order.seed, sample.domains);
    let mut all = more;
    let mut expected = sample.before.clone();
    for _ in 0..acknowledged {
        let draw = events.draw();
        let event = Counters::of(draw.outcome, 1);
        all += event;
        if let Some(place) = sample.place(draw.domain) {
            if expected.len() <= place {
                expected.resize(place + 1, Counters::default());
            }
            expected[place] += event;
        }
    }
    let numbers = sample.numbers(expected.len());
    let counted = each(&numbers, Names::new(order.shape, order.seed), database_url).await?;
    let mut difference = Difference::default();
    for (expected, counted) in expected.iter().zip(&counted) {
        difference.add(expected.delivered, counted.delivered);
        difference.add(expected.bounced, counted.bounced);
    }
    Ok(difference.or_worse(Difference::between(all, added)))
}

/// The counters of each of these domains.
async fn each(numbers: &[u32], names: Names, database_url: &str) -> anyhow::Result<Vec<Counters>> {
    let mut connection = PgConnection::connect(database_url).await?;
    let mut all = Vec::with_capacity(numbers.len());
    for part in numbers.chunks(TOGETHER) {
        let names: Vec<String> = part.iter().map(|domain| names.canonical(*domain)).collect();
        let counted = counters(&mut connection, &names).await?;
        all.extend(names.iter().map(|name| counted.get(name).copied().unwrap_or_default()));
    }
    connection.close().await?;
    Ok(all)
}

async fn counters(
    connection: &mut PgConnection,
    names: &[String],
) -> anyhow::Result<HashMap<String, Counters>> {
    const READ: &str =
        "select domain, delivered, bounced from domain_counters where domain = any($1::text[])";
    let rows: Vec<(String, i64, i64)> = sqlx::query_as(READ).bind(names).fetch_all(connection).await?;
    let count = |bigint| u64::try_from(bigint).unwrap_or_default();
    let counters = |delivered, bounced| Counters { delivered: count(delivered), bounced: count(bounced) };
    Ok(rows.into_iter().map(|(name, delivered, bounced)| (name, counters(delivered, bounced))).collect())
}
