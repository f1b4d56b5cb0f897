//! `catchall-load`: sends a workload and checks that all of it was counted.

use std::process::ExitCode;

use anyhow::Context;
use catchall_load::{Interrupted, LoadConfig, Report};
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory, Parser};
use tokio::runtime::{Builder, LocalOptions};
use tokio::signal::ctrl_c;

/// Exit status: there is no result, because a server could not be reached or read.
const FAILED: u8 = 3;

/// Exit status after an interrupt, as in a shell.
const INTERRUPTED: u8 = 130;

const AFTER_HELP: &str = "\
Examples:
  catchall-load --verify
          100,000 events by PUT, then compare every domain
  catchall-load --workload zipf --events 1000000 --via bulk --seed 7 --verify
          a run that can be repeated exactly
  catchall-load --via put-h2 --rate 20000 --events 600000
          half a minute at a fixed rate, to measure the latency
  catchall-load --events 1000000 --keyed --verify --json | jq .verification
          kill any process during the run: nothing may be lost or counted twice

Ctrl-C ends the sending early; what was sent is still compared. A second one ends at once.

Exit status:
  0    every event was acknowledged or, with --verify, accounted for; nothing lost, duplicated or wrong
  1    events are lost or duplicated, or a status is wrong
  2    the arguments are not valid
  3    no result: a server could not be reached or read
  4    events were refused, could not be sent, or are unknown without --verify
  130  interrupted, with nothing lost or duplicated until then";

/// Sends one of three workloads to catchall, measures it, and checks that every acknowledged event was
/// counted exactly once.
#[derive(Parser)]
#[command(name = "catchall-load", version, max_term_width = 110, after_help = AFTER_HELP)]
struct Arguments {
    #[command(flatten)]
    config: LoadConfig,

    /// Print the result as one JSON object on standard output; everything else goes to standard error
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let Arguments { config, json } = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => without_secrets(error).exit(),
    };
    if let Err(sentence) = config.check() {
        Arguments::command().error(ErrorKind::ArgumentConflict, sentence).exit();
    }
    let ended = run(config).and_then(|report| {
        if json {
            println!("{}", serde_json::to_string(&report)?);
        } else {
            print!("{report}");
        }
        Ok(report.exit_reason().exit_status())
    });
    ExitCode::from(ended.unwrap_or_else(|error| {
        eprintln!("catchall-load: {error:#}");
        if error.is::<Interrupted>() { INTERRUPTED } else { FAILED }
    }))
}

/// Clap repeats an invalid value, even if it holds a password.
fn without_secrets(mut error: clap::Error) -> clap::Error {
    let argument = error.get(ContextKind::InvalidArg).map(ToString::to_string).unwrap_or_default();
    if argument.starts_with("--amqp-url") {
        error.insert(ContextKind::InvalidValue, ContextValue::String("…".into()));
    }
    error
}

fn run(config: LoadConfig) -> anyhow::Result<Report> {
    let runtime = Builder::new_current_thread().enable_all().build_local(LocalOptions::default());
    let runtime = runtime.context("cannot start an event loop")?;
    runtime.block_on(catchall_load::run(config, interrupted()))
}

/// Waits for the first interrupt. The second one ends the process.
async fn interrupted() {
    if ctrl_c().await.is_err() {
        // There is no handler, so an interrupt simply ends the process.
        std::future::pending::<()>().await;
    }
    tokio::task::spawn_local(async {
        let _ = ctrl_c().await;
        std::process::exit(INTERRUPTED.into());
    });
}
