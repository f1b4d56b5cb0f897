//! The row that fills a data file with the large population and opens it again.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, anyhow, ensure};
use catchall_load::counts::Counts;
use catchall_load::record::{Bounds, Difference};
use catchall_load::workload::Names;
use harness::servers::Servers;
use harness::stats::real;
use harness::system::data_file;
use harness::usage::{self, MachineTime};
use hyper::{Request, StatusCode, header};

use crate::books::Books;
use crate::clients::{Call, send_all};
use crate::dataset::names_in_key_order;
use crate::measure::{memory_growth, most_wal_megabytes, observed, per_second};
use crate::stats::{RowStats, histogram, latency};
use crate::system::{Processes, RunningSystem, Scraping, end, standalone, wal_megabytes};

/// Events of a request: the most that one may have.
const BATCH: usize = 10_000;

/// Few connections, so that neighbours in key order come in the same transaction or the next one.
const CONNECTIONS: usize = 6;

/// Every so many domains, one is compared.
const STRIDE: usize = 100;

/// Fills a new file with one delivered event of each domain, by bulk requests in key order, and opens it
/// again. Returns the stats and the path of the file.
pub(crate) async fn fill(domains: u32, servers: &Servers) -> anyhow::Result<(RowStats, PathBuf)> {
    let data = data_file();
    let system = RunningSystem::ready(Processes::Standalone(data.clone()), servers).await?;
    let loaded = load(&system, domains).await;
    system.clear().await;
    let stats = loaded?;
    let (bytes, wal_left) = (std::fs::metadata(&data)?.len(), wal_megabytes(&data));
    let begun = Instant::now();
    let opened = standalone(&data).await?;
    let opening_seconds = begun.elapsed().as_secs_f64();
    end([opened]).await;
    let difference = compare(domains, &data).await?;
    let stats = RowStats {
        // A stop leaves no WAL, unless something is wrong.
        file_megabytes: Some(real(bytes) / 1e6 + wal_left),
        opening_seconds: Some(opening_seconds),
        lost: difference.lost,
        duplicated: difference.duplicated,
        ..stats
    };
    Ok((stats, data))
}

/// Sends the events and measures that.
async fn load(system: &RunningSystem, domains: u32) -> anyhow::Result<RowStats> {
    let address = system.query_address()?.to_string();
    let own = std::process::id();
    let (before, own_before, machine) = (system.micros(), usage::micros(own), MachineTime::now());
    let (mut micros, mut accepted, begun) = (histogram(), 0, Instant::now());
    let sending = send_all(&address, CONNECTIONS, requests(domains, &address), |answer| {
        #[derive(serde::Deserialize)]
        struct Accepted {
            accepted: u64,
        }
        let body = answer.body.escape_ascii();
        ensure!(answer.status == StatusCode::ACCEPTED, "{}: {body}", answer.status);
        let of = serde_json::from_slice(&answer.body).map(|Accepted { accepted }| accepted);
        let of = of.map_err(|_| anyhow!("an answer that cannot be read: {body}"))?;
        accepted += of;
        let took = u64::try_from(answer.took.as_micros())?;
        micros.saturating_record_n(took, of);
        Ok(())
    });
    let ((), looks) = observed(system, Scraping::EverySecond, sending).await?;
    let seconds = begun.elapsed().as_secs_f64();
    let mut each = system.micros().since(before, accepted);
    each.load = (usage::micros(own) - own_before) / real(accepted.max(1));
    Ok(RowStats {
        events: accepted,
        seconds,
        acknowledged_per_second: per_second(accepted, seconds),
        counted_per_second: Some(per_second(accepted, seconds)),
        micros_per_event: Some(each),
        latency_ms: latency(&micros),
        peak_megabytes: system.peaks(),
        memory_growth: memory_growth(&looks),
        wal_megabytes: most_wal_megabytes(&looks),
        stolen: MachineTime::stolen_since(machine),
        ..RowStats::default()
    })
}

fn requests(domains: u32, address: &str) -> impl Iterator<Item = Call> {
    let mut names = names_in_key_order(domains).flatten().peekable();
    std::iter::from_fn(move || {
        names.peek()?;
        let mut body = Vec::with_capacity(BATCH * 64);
        for name in names.by_ref().take(BATCH) {
            body.extend_from_slice(br#"{"domain":""#);
            body.extend_from_slice(name.as_bytes());
            body.extend_from_slice(b"\",\"event\":\"delivered\"}\n");
        }
        let request = Request::post("/events").header(header::HOST, address);
        let request = request.header(header::CONTENT_TYPE, "application/x-ndjson");
        Some(request.body(body.into()).expect("all of its parts are valid"))
    })
}

/// Compares the sums of the whole file, and some of the domains one by one.
async fn compare(domains: u32, data: &Path) -> anyhow::Result<Difference> {
    let difference =
        |expected: Counts, counted: Counts| Bounds { least: expected, most: expected }.difference(counted);
    let books = Books::File(data.to_owned());
    let sums = books.sums().await.context("the file that was filled")?;
    let mut worst = difference(Counts { delivered: domains.into(), bounced: 0 }, sums);
    let numbers: Vec<u32> = (0..domains).step_by(STRIDE).collect();
    let mut each = Difference::default();
    for counted in books.each(&numbers, Names::Population).await? {
        let Difference { lost, duplicated } = difference(Counts { delivered: 1, bounced: 0 }, counted);
        each.lost += lost;
        each.duplicated += duplicated;
    }
    worst.lost = worst.lost.max(each.lost);
    worst.duplicated = worst.duplicated.max(each.duplicated);
    Ok(worst)
}
