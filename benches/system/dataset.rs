//! The contents of the table at the start of a row: as they are, empty, or a population that is in memory;
//! and the data file that has the same population.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Context;
use catchall_load::workload::{Names, Shape};
use harness::load::{Amount, LoadSpec};
use harness::servers::Servers;
use harness::sql;
use sqlx::{Connection, PgConnection};

use crate::measure;
use crate::system::{Processes, RunningSystem, Scraping};

/// What a row needs to find in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dataset {
    /// Anything.
    Any,
    /// No domains.
    Empty,
    /// The first domains of the population of `catchall-load`; the number says how many.
    Domains(u32),
    /// The same, and every second domain is a catch-all.
    Classified(u32),
}

/// What is in the table now.
#[derive(Debug, Default)]
pub(crate) struct Datasets {
    present: Option<Dataset>,
    /// The data file with the large population, once a row has filled it.
    pub(crate) file: Option<PathBuf>,
}

/// How many bytes of rows are sent to the server at a time.
const PIECE: usize = 1 << 20;

/// Reads every row in key order, with its page and its index entry, so that both are in memory afterwards. A
/// plain sequential scan would use only a small part of the buffers.
const WARM: &str = "\
set enable_seqscan = off;
set enable_bitmapscan = off;
select sum(delivered) from domain_counters where domain > ''";

impl Datasets {
    /// Prepares the table for a row, and reads it into memory on both servers.
    pub(crate) async fn prepare(&mut self, dataset: Dataset, servers: &Servers) -> anyhow::Result<()> {
        if dataset == Dataset::Any || self.present == Some(dataset) {
            return Ok(());
        }
        self.present = None;
        match dataset {
            Dataset::Any => {}
            Dataset::Empty => sql::execute(&servers.database_url, "truncate domain_counters").await?,
            Dataset::Domains(domains) => populate(domains, servers).await?,
            Dataset::Classified(domains) => classify(domains, servers).await?,
        }
        self.present = Some(dataset).filter(|dataset| *dataset != Dataset::Empty);
        Ok(())
    }
}

/// What a migration does for a table that has rows. The relay begins after it.
const CLASSIFY: &str = "\
truncate domain_statuses, totals;
update change_relay set changed_in = pg_current_xact_id()::text::bigint + 1, domain = '';
insert into domain_statuses (domain, status, since, changed_in)
select domain, 1, now(), pg_current_xact_id()::text::bigint
from domain_counters where delivered > 1000 order by domain;
insert into totals (counted_at, writer, delivered, domains, catch_all)
select 'epoch', '00000000-0000-0000-0000-000000000000', sum(delivered), count(*),
    count(*) filter (where delivered > 1000)
from domain_counters";

/// Reads every status with its page, and both orders of them.
const WARM_STATUSES: &str = "\
set enable_seqscan = off;
set enable_bitmapscan = off;
select count(since) from domain_statuses where domain > '';
select count(*) from domain_statuses where status = 1";

async fn classify(domains: u32, servers: &Servers) -> anyhow::Result<()> {
    let Servers { database_url, replica_url, .. } = servers;
    eprintln!("bench: filling the table with {domains} domains, every second one a catch-all");
    fill(domains, database_url, |number| if number % 2 == 0 { 1001 } else { 1 }).await?;
    sql::execute(database_url, CLASSIFY).await?;
    sql::execute(database_url, "vacuum (analyze) domain_counters, domain_statuses, totals").await?;
    sql::execute(database_url, "checkpoint").await?;
    sql::replayed(database_url, replica_url).await?;
    for url in [database_url, replica_url] {
        sql::execute(url, WARM).await?;
        sql::execute(url, WARM_STATUSES).await?;
    }
    touch(domains, servers).await
}

async fn populate(domains: u32, servers: &Servers) -> anyhow::Result<()> {
    let Servers { database_url, replica_url, .. } = servers;
    eprintln!("bench: filling the table with {domains} domains");
    fill(domains, database_url, |_| 1).await.context("cannot fill the table")?;
    sql::execute(database_url, "vacuum (analyze) domain_counters").await?;
    sql::execute(database_url, "checkpoint").await?;
    sql::replayed(database_url, replica_url).await?;
    sql::execute(database_url, WARM).await?;
    sql::execute(replica_url, WARM).await?;
    touch(domains, servers).await
}

/// Writes to every page once. The first write to a page after a checkpoint writes a whole page of WAL.
/// Checkpoints are rare, so a row should not measure that.
async fn touch(domains: u32, servers: &Servers) -> anyhow::Result<()> {
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

/// Loads each domain with so many delivered events, in key order: heap and index are as dense as after a
/// restore from a backup. In one transaction with `truncate` the rows can be frozen at once, so no later
/// vacuum rewrites them.
async fn fill(domains: u32, database_url: &str, delivered: impl Fn(usize) -> u64) -> anyhow::Result<()> {
    let mut connection = PgConnection::connect(database_url).await?;
    sqlx::raw_sql("begin; truncate domain_counters").execute(&mut connection).await?;
    let mut copy = connection
        .copy_in_raw("copy domain_counters (domain, delivered, bounced) from stdin with (freeze)")
        .await?;
    let mut piece = Vec::with_capacity(PIECE + 64);
    for (number, name) in names_in_key_order(domains).flatten().enumerate() {
        piece.extend_from_slice(format!("{name}\t{}\t0\n", delivered(number)).as_bytes());
        if piece.len() >= PIECE {
            copy.send(&*piece).await?;
            piece.clear();
        }
    }
    copy.send(&*piece).await?;
    copy.finish().await?;
    sqlx::raw_sql("commit").execute(&mut connection).await?;
    connection.close().await?;
    Ok(())
}

/// The names of a population in key order. They come in parts, because all together would take a gigabyte.
pub(crate) fn names_in_key_order(domains: u32) -> impl Iterator<Item = Vec<String>> {
    let mut parts: BTreeMap<[u8; 2], Vec<u32>> = BTreeMap::new();
    let mut name = Vec::new();
    for domain in 0..domains {
        name.clear();
        Names::Population.spell_canonical(domain, &mut name);
        parts.entry([name[0], name[1]]).or_default().push(domain);
    }
    parts.into_values().map(|part| {
        let mut names: Vec<String> =
            part.into_iter().map(|domain| Names::Population.canonical(domain)).collect();
        names.sort_unstable();
        names
    })
}
