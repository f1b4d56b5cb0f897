//! The contents of the table at the start of a row: as they are, empty, or a population that is in memory.

use std::collections::BTreeMap;

use anyhow::Context;
use catchall_load::workload::{Names, Shape};
use harness::load::{Amount, LoadSpec};
use harness::servers::Servers;
use harness::sql;
use sqlx::{Connection, PgConnection};

use crate::measure;
use crate::system::{Processes, RunningSystem, Scraping};

/// What a row wants to find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dataset {
    /// Whatever there is.
    Any,
    /// No domain.
    Empty,
    /// The first so many domains of the population of `catchall-load`.
    Domains(u32),
}

/// The table as it is.
#[derive(Debug, Default)]
pub(crate) struct Datasets {
    present: Option<Dataset>,
}

/// Bytes of rows that are sent to the server together.
const PIECE: usize = 1 << 20;

/// Reads every row in key spec, and with it its page and its entry in the index: afterwards both are in
/// memory. A plain scan of a large table would use only a corner of it.
const WARM: &str = "\
set enable_seqscan = off;
set enable_bitmapscan = off;
select sum(delivered) from domain_counters where domain > ''";

impl Datasets {
    /// Makes the table what a row wants to find, and all of it warm on both servers.
    pub(crate) async fn prepare(&mut self, dataset: Dataset, servers: &Servers) -> anyhow::Result<()> {
        if dataset == Dataset::Any || self.present == Some(dataset) {
            return Ok(());
        }
        self.present = None;
        match dataset {
            Dataset::Any => {}
            Dataset::Empty => sql::execute(&servers.database_url, "truncate domain_counters").await?,
            Dataset::Domains(domains) => populate(domains, servers).await?,
        }
        self.present = Some(dataset).filter(|dataset| *dataset != Dataset::Empty);
        Ok(())
    }
}

async fn populate(domains: u32, servers: &Servers) -> anyhow::Result<()> {
    let Servers { database_url, replica_url, .. } = servers;
    eprintln!("bench: filling the table with {domains} domains");
    fill(domains, database_url).await.context("cannot fill the table")?;
    sql::execute(database_url, "vacuum (analyze) domain_counters").await?;
    sql::execute(database_url, "checkpoint").await?;
    sql::replayed(database_url, replica_url).await?;
    sql::execute(database_url, WARM).await?;
    sql::execute(replica_url, WARM).await?;
    // The first write to a page after a checkpoint costs a whole page of WAL. Checkpoints are rare, so this
    // is not what a row is to measure.
    eprintln!("bench: touching the table");
    let spec = LoadSpec {
        via: "bulk",
        shape: Shape::Uniform,
        domains: Some(domains),
        amount: Amount::Events(u64::from(domains / 10).max(1)),
        seed: 1_000,
        ..LoadSpec::BASE
    };
    let system = RunningSystem::ready(Processes::Whole { workers: 1 }, servers).await?;
    measure::events(
        &system,
        &spec,
        Scraping::EverySecond,
        std::future::ready(Ok(measure::SideResult::default())),
    )
    .await?;
    system.clear().await;
    Ok(())
}

/// Each domain with one event, in key spec: the dense heap and index of a table that was loaded from a
/// backup. Within one transaction with `truncate`, rows can be frozen from the start, so no later pass over
/// them writes them again.
async fn fill(domains: u32, database_url: &str) -> anyhow::Result<()> {
    let mut connection = PgConnection::connect(database_url).await?;
    sqlx::raw_sql("begin; truncate domain_counters").execute(&mut connection).await?;
    let mut copy = connection
        .copy_in_raw("copy domain_counters (domain, delivered, bounced) from stdin with (freeze)")
        .await?;
    // Sorted in parts: the names of all of them at once would take a gigabyte.
    let mut parts: BTreeMap<[u8; 2], Vec<u32>> = BTreeMap::new();
    let mut name = Vec::new();
    for domain in 0..domains {
        name.clear();
        Names::Population.spell_canonical(domain, &mut name);
        parts.entry([name[0], name[1]]).or_default().push(domain);
    }
    let mut piece = Vec::with_capacity(PIECE + 64);
    for part in parts.into_values() {
        let mut names: Vec<String> =
            part.into_iter().map(|domain| Names::Population.canonical(domain)).collect();
        names.sort_unstable();
        for name in names {
            piece.extend_from_slice(name.as_bytes());
            piece.extend_from_slice(b"\t1\t0\n");
            if piece.len() >= PIECE {
                copy.send(&*piece).await?;
                piece.clear();
            }
        }
    }
    copy.send(&*piece).await?;
    copy.finish().await?;
    sqlx::raw_sql("commit").execute(&mut connection).await?;
    connection.close().await?;
    Ok(())
}
