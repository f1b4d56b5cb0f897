//! Whether every acknowledged event was counted, once.

use std::collections::HashMap;

use catchall::counters::Counters;
use catchall::load::workload::{Names, Shape, Workload};
use sqlx::{Connection, PgConnection};

use crate::load::{Order, Report};

/// Domains that are read together.
const TOGETHER: usize = 10_000;

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

/// Compares what was added to all counters with what was acknowledged, `more` being what others have sent. The
/// domains of waves, which no other run has, are compared one by one.
pub(crate) async fn compare(
    order: &Order,
    report: &Report,
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
    let mut events = Workload::new(order.shape, order.seed, order.domains.unwrap_or(1));
    let mut all = more;
    let mut domains: Vec<Counters> = Vec::new();
    for _ in 0..acknowledged {
        let draw = events.draw();
        let event = Counters::of(draw.outcome, 1);
        all += event;
        if order.shape == Shape::Waves {
            let place = draw.domain as usize;
            if domains.len() <= place {
                domains.resize(place + 1, Counters::default());
            }
            domains[place] += event;
        }
    }
    let mut each = Difference::default();
    let names = Names::new(order.shape, order.seed);
    let mut connection = PgConnection::connect(database_url).await?;
    for (part, expected) in domains.chunks(TOGETHER).enumerate() {
        let first = part * TOGETHER;
        let names: Vec<String> = (first..first + expected.len())
            .filter_map(|domain| u32::try_from(domain).ok())
            .map(|domain| names.canonical(domain))
            .collect();
        let counted = counters(&mut connection, &names).await?;
        for (name, expected) in names.iter().zip(expected) {
            let counted = counted.get(name).copied().unwrap_or_default();
            each.add(expected.delivered, counted.delivered);
            each.add(expected.bounced, counted.bounced);
        }
    }
    connection.close().await?;
    Ok(each.or_worse(Difference::between(all, added)))
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
