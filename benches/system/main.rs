//! Measures every way in and out of the real system, of services and of the standalone, beside the naive
//! design and a server that does nothing, in one run on one machine.
//!
//! `./dev bench` starts the servers. It sets a variable, without which nothing is measured.

mod myself;
mod baseline;
mod books;
mod clients;
mod stats;
mod frontier;
mod goal;
mod dataset;
mod measure;
mod picture;
mod population_file;
mod scenario;
mod prober;
mod change_prober;
mod question;
mod subscribers;
mod reclassification;
mod reader;
mod row;
mod scale;
mod system;
mod table;
mod verification;

use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::{Parser, Subcommand, ValueEnum};
use futures::FutureExt;
use harness::panics;
use harness::servers::Servers;

use crate::baseline::Baseline;
use crate::dataset::Datasets;
use crate::myself::ALLOWED;
use crate::row::Row;
use crate::scale::Scale;
use crate::stats::RowStats;
use crate::table::RowTable;

/// Measures every way in and out of the system, beside the naive design
#[derive(Parser)]
#[command(name = "./dev bench", max_term_width = 110)]
struct Arguments {
    /// Only this row and those it is compared with; may be given more than once
    #[arg(long = "row", value_name = "NAME", hide_possible_values = true)]
    rows: Vec<Row>,

    /// A few seconds per row, and a tenth of the domains: a few minutes instead of more than an hour
    #[arg(long)]
    short: bool,

    /// Seconds per row [default: 60, and 180 for uniform and alone-uniform; 5 with --short]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=86_400))]
    seconds: Option<u32>,

    /// Domains of the large table and of the standalone's file [default: 10000000; 1000000 with --short]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1_000..=30_000_000))]
    domains: Option<u32>,

    /// Print the table as one JSON object on standard output
    #[arg(long)]
    json: bool,

    /// Draw the row frontier into this SVG file
    #[arg(long, value_name = "FILE")]
    picture: Option<PathBuf>,

    /// Print the rows and what each measures
    #[arg(long)]
    list: bool,

    #[command(subcommand)]
    part: Option<Part>,
}

/// Parts that this program starts as separate processes, so that they are measured like all others.
#[derive(Subcommand)]
enum Part {
    /// The naive design
    #[command(hide = true)]
    Naive(baseline::Naive),
    /// A server that does nothing
    #[command(hide = true)]
    Floor,
    /// Reads counters
    #[command(hide = true)]
    Reader(reader::ReaderConfig),
}

fn main() -> ExitCode {
    if std::env::var_os(ALLOWED).is_none() {
        println!("the system is measured by ./dev bench, on servers of its own");
        return ExitCode::SUCCESS;
    }
    // Cargo passes `--bench` to every benchmark.
    let arguments = Arguments::parse_from(std::env::args_os().filter(|argument| argument != "--bench"));
    if arguments.list {
        for row in Row::value_variants() {
            println!("{:13}  {}", row.name(), row.what());
        }
        return ExitCode::SUCCESS;
    }
    if arguments.picture.is_some() && !(arguments.rows.is_empty() || arguments.rows.contains(&Row::Frontier))
    {
        eprintln!("--picture draws the row {}, which is not selected", Row::Frontier.name());
        return ExitCode::FAILURE;
    }
    let ended = match &arguments.part {
        Some(Part::Naive(config)) => baseline::serve(Baseline::Naive, Some(config)),
        Some(Part::Floor) => baseline::serve(Baseline::Floor, None),
        Some(Part::Reader(config)) => reader::main(config),
        None => {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
            let held = runtime.expect("an event loop").block_on(run(&arguments));
            return if held { ExitCode::SUCCESS } else { ExitCode::FAILURE };
        }
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Measures every row. Returns whether every event was counted once, whether or not goals were met.
async fn run(arguments: &Arguments) -> bool {
    let scale = Scale::new(arguments.short, arguments.seconds, arguments.domains);
    let rows = row::with_those_they_need(&arguments.rows, &scale);
    let begun = Instant::now();
    eprintln!("bench: {} rows; {scale}", rows.len());
    let servers = Servers::fresh().await;
    let mut table = RowTable::new(&servers, &scale).await;
    let mut datasets = Datasets::default();
    for row in rows {
        eprintln!("bench: {:4} s  {}: {}", begun.elapsed().as_secs(), row.name(), row.what());
        let running = scenario::run(row, &scale, &servers, &mut datasets, &table);
        let ended = match AssertUnwindSafe(running).catch_unwind().await {
            Ok(ended) => ended.map_err(|error| format!("{error:#}")),
            Err(panic) => Err(panics::message(&*panic)),
        };
        let stats = ended.unwrap_or_else(|reason| {
            eprintln!("bench: {}: {reason}", row.name());
            RowStats { failure: Some(reason), ..RowStats::default() }
        });
        table.add(row, stats);
        eprintln!("bench: {:4} s  {}: {}", begun.elapsed().as_secs(), row.name(), table.last_in_words());
    }
    let steps = table.stats(Row::Frontier).map(|stats| &*stats.frontier).unwrap_or_default();
    if let Some(file) = arguments.picture.as_ref().filter(|_| !steps.is_empty())
        && let Err(error) = std::fs::write(file, picture::svg(steps))
    {
        eprintln!("bench: {}: {error}", file.display());
    }
    if arguments.json {
        println!("{}", table.json());
    } else {
        println!("{table}");
    }
    table.all_counted_once()
}
