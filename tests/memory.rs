//! What is recorded takes no more memory for being recorded often, also when nobody ever asks for it.
//!
//! A test program of its own, because it looks at the memory of its process.

use std::fs;

use catchall::telemetry;
use clap::Parser;

/// Each takes 24 bytes where observations are kept until somebody asks: in all 72 MB.
const OBSERVATIONS: u32 = 3_000_000;

/// The first of them, after which everything is there that is needed once.
const FIRST: u32 = 10_000;

/// In megabytes. What an allocator does on its own is far less.
const GROWTH: u64 = 16;

#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    telemetry: telemetry::Config,
}

#[test]
fn observations_do_not_pile_up_while_nobody_reads_them() {
    let arguments = Arguments::parse_from(["-"]);
    let figures = telemetry::start(&arguments.telemetry).unwrap();
    let record = |observations: u32| {
        // As the services do: those of ingest and query keep theirs, the worker asks for it each time.
        let [read, confirm] = ["catchall_query_read_seconds", "catchall_ingest_confirm_seconds"]
            .map(|name| metrics::histogram!(name));
        for number in 0..observations / 3 {
            let seconds = f64::from(number % 1000) / 1000.0;
            read.record(seconds);
            confirm.record(seconds);
            metrics::histogram!("catchall_worker_commit_seconds").record(seconds);
        }
    };
    record(FIRST);
    let before = megabytes();
    record(OBSERVATIONS);
    let after = megabytes();
    assert!(after <= before + GROWTH, "{before} MB, and {after} MB {OBSERVATIONS} observations later");
    let told = figures.render();
    let count = format!("catchall_query_read_seconds_count {}", OBSERVATIONS / 3 + FIRST / 3);
    assert!(told.contains(&count), "all of them are told of: {told}");
}

/// The memory of this process.
fn megabytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    resident.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() / 1024
}
