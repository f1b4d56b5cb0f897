//! Tests the promise under faults: while events are sent, something is killed, cut, stopped or filled up, and
//! every count is compared with what was acknowledged.
//!
//! `./dev chaos` starts the servers and says that they may be killed.

mod rng;
mod fault;
mod load;
mod prober;
mod round;
mod process;
mod published;
mod cluster;
mod standalone;
mod subject;
mod feed;
mod table;
mod watch;

use std::hash::{BuildHasher, RandomState};
use std::panic::AssertUnwindSafe;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, anyhow};
use clap::{Parser, ValueEnum};
use futures::FutureExt;
use harness::panics;
use harness::small_disk::may_mount;

use crate::fault::Fault;
use crate::load::WayLoad;
use crate::round::{Round, RoundResult};
use crate::subject::{Form, Subject};
use crate::table::FaultTable;

/// Set by `./dev chaos`: the servers may be killed.
const ALLOWED: &str = "CATCHALL_CHAOS";

/// Breaks every part of the system while events are sent, and compares every count with what was
/// acknowledged.
#[derive(Parser)]
#[command(name = "./dev chaos")]
struct Arguments {
    /// How often each fault is run
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,

    /// The same seed gives the same moments and events. Without it a random seed is used and printed
    #[arg(long, value_name = "N")]
    seed: Option<u64>,

    /// Only this fault; may be given more than once
    #[arg(long = "fault", value_name = "NAME", hide_possible_values = true)]
    faults: Vec<Fault>,

    /// Print the faults and what each does
    #[arg(long)]
    list: bool,
}

fn main() -> ExitCode {
    if std::env::var_os(ALLOWED).is_none() {
        println!("the faults are run by ./dev chaos, on servers that may be killed");
        return ExitCode::SUCCESS;
    }
    let arguments = Arguments::parse();
    if arguments.list {
        for fault in Fault::value_variants() {
            println!("{:32}  {}", fault.name(), fault.what());
        }
        return ExitCode::SUCCESS;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let all_held = runtime.expect("an event loop").block_on(run(&arguments));
    if all_held { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs every round of every fault. Returns whether the promise held in all of them.
async fn run(arguments: &Arguments) -> bool {
    let seed = arguments.seed.unwrap_or_else(|| RandomState::new().hash_one(()) >> 32);
    let mut faults = arguments.faults.clone();
    if faults.is_empty() {
        faults = Fault::value_variants().to_vec();
    }
    let needs_small_disk = |fault: &Fault| fault.form() == Form::StandaloneOnSmallDisk;
    if faults.iter().any(needs_small_disk) && !may_mount() {
        faults.retain(|fault| !needs_small_disk(fault));
    }
    println!("chaos: {} faults, {} rounds, seed {seed}", faults.len(), arguments.rounds);
    let begun = Instant::now();
    let rounds = faults
        .iter()
        .flat_map(|fault| (1..=arguments.rounds).map(|number| Round { fault: *fault, number, seed }));
    let rounds: Vec<Round> = rounds.collect();
    let mut table = FaultTable::default();
    let mut ready = None;
    for (place, round) in rounds.iter().enumerate() {
        let (fault, name) = (round.fault, round.fault.name());
        println!(
            "chaos: {:4} s  {name}, round {} of {}",
            begun.elapsed().as_secs(),
            round.number,
            arguments.rounds
        );
        // A failed round may leave anything behind, so the next one gets a new system.
        let next = rounds.get(place + 1).copied();
        let next = next.filter(|next| next.fault.form() == fault.form() && !fault.uses_up_the_system());
        let running = AssertUnwindSafe(run_round(*round, ready.take(), next)).catch_unwind();
        let ended = running.await.unwrap_or_else(|panic| Err(anyhow!(panics::message(&*panic))));
        match ended {
            Ok((result, left)) => {
                for failure in &result.failures {
                    println!("chaos: {name}: {failure}");
                }
                ready = left.filter(|_| result.failures.is_empty());
                table.add(fault, result);
            }
            Err(reason) => {
                println!("chaos: {name}: {reason:#}");
                table.add_failure(fault, format!("{reason:#}"));
            }
        }
    }
    println!("\n{table}");
    println!("seed {seed}, {} s", begun.elapsed().as_secs());
    table.all_held()
}

/// A system, and the running load of the next round. The load is dropped first.
type Ready = (Vec<WayLoad>, Subject);

async fn run_round(
    round: Round,
    ready: Option<Ready>,
    next: Option<Round>,
) -> Result<(RoundResult, Option<Ready>)> {
    let (loads, mut subject) = if let Some(ready) = ready {
        ready
    } else {
        let subject = Subject::ready(round.fault.form()).await?;
        (round.load(&subject).await?, subject)
    };
    let (result, loads) = round.run(&mut subject, loads, next).await?;
    if !result.failures.is_empty() {
        subject.print_logs();
    }
    Ok((result, loads.map(|loads| (loads, subject))))
}
