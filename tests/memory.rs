//! What is recorded takes no more memory for being recorded often, also when nobody ever asks for it.
//!
//! A test program of its own, because it looks at the memory of its process.

use std::time::Duration;

use catchall::telemetry;
use clap::Parser;
use harness::usage::megabytes;

/// In a second. Each takes 16 bytes until it is in its bucket: 2 MB, and 48 MB where that waits for somebody
/// to ask.
const OBSERVATIONS: u32 = 150_000;

/// How long it runs. The first second is not compared: in it the process allocates what it needs only once.
const SECONDS: u32 = 21;

/// In megabytes. What an allocator does on its own is far less.
const GROWTH: u64 = 16;

#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    telemetry: telemetry::TelemetryConfig,
}

#[tokio::test(start_paused = true)]
async fn observations_do_not_pile_up_while_nobody_reads_them() {
    let arguments = Arguments::parse_from(["-"]);
    let metrics = telemetry::start(&arguments.telemetry).unwrap();
    // As every process has it.
    tokio::spawn(telemetry::upkeep(metrics.clone()));
    let record_for_a_second = async || {
        // As the services do: those of ingest and query keep theirs, the worker asks for it each time.
        let [read, confirm] = ["catchall_query_read_seconds", "catchall_ingest_confirm_seconds"]
            .map(|name| metrics::histogram!(name));
        for number in 0..OBSERVATIONS / 3 {
            let seconds = f64::from(number % 1000) / 1000.0;
            read.record(seconds);
            confirm.record(seconds);
            metrics::histogram!("catchall_worker_commit_seconds").record(seconds);
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    };
    record_for_a_second().await;
    let pid = std::process::id();
    let before = megabytes(pid).unwrap();
    for _ in 1..SECONDS {
        record_for_a_second().await;
    }
    let after = megabytes(pid).unwrap();
    assert!(after <= before + GROWTH, "{before} MB, and {after} MB {SECONDS} seconds later");
    let told = metrics.render();
    let count = format!("catchall_query_read_seconds_count {}", OBSERVATIONS / 3 * SECONDS);
    assert!(told.contains(&count), "all of them are told of: {told}");
}
