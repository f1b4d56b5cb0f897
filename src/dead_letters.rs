//! Dead letters: a person looks at the messages in `catchall.dead`, sends them back or discards them.
//!
//! Workers and other operators may use the queue meanwhile. The dead letters that one operator looks at are
//! invisible to the others until the look is over. Nothing is lost whenever this is killed: a dead letter
//! leaves the queue only when its copy is confirmed or it is to be discarded. The worst case is that it
//! exists twice, under the same id.

mod command;
mod doubts;
mod selection;
mod print;
mod look;
mod removal;

use std::process::ExitCode;

use anyhow::{Context, bail};

use crate::broker::{self, DeadLetter, DeadLetterQueue, MessageLimit, Publisher};
use crate::health::Health;
use crate::process::{self, Process};
use crate::shutdown::Shutdown;
use crate::store::ledger::Ledger;
use command::{Command, Count, Discard, List, Replay, Show};
use doubts::Doubts;
use look::{print, resolve};
use removal::{CONFIRM_TIMEOUT, Removal, remove};
use selection::{Prefix, Selection};

pub use command::DeadLettersConfig;

/// The name of the connections to the broker and of the program.
const NAME: &str = "catchall-dead";

/// The program: see [`process::main`].
#[must_use]
pub fn main() -> ExitCode {
    process::main(NAME, "Looks at the dead letters of catchall, sends them back or discards them", run)
}

/// Runs the command. On the shutdown it ends early, between two dead letters.
///
/// # Errors
///
/// When the broker or the database is unavailable, or when not everything was done: a dead letter was
/// skipped, a reference is unknown or ambiguous, or the command was interrupted.
pub async fn run(config: DeadLettersConfig, process: Process) -> anyhow::Result<()> {
    let shutdown = process.shutdown;
    config.command.broker().check()?;
    config.network.check(&config.command.exposures())?;
    match config.command {
        Command::Count(command) => count(&command).await,
        Command::List(command) => list(&command, shutdown).await,
        Command::Show(command) => show(&command, shutdown).await,
        Command::Replay(command) => replay(command, shutdown).await,
        Command::Discard(command) => discard(command, shutdown).await,
    }
}

async fn count(Count { broker, json }: &Count) -> anyhow::Result<()> {
    let count = DeadLetterQueue::waiting(broker, NAME).await?;
    if *json {
        println!("{}", serde_json::json!({ "count": count }));
    } else {
        println!("{count}");
    }
    Ok(())
}

async fn list(
    List { broker, message, limit, reason, json }: &List,
    shutdown: Shutdown,
) -> anyhow::Result<()> {
    let selection = Selection::All { reason: reason.clone() };
    let letters = DeadLetterQueue::open(broker, *message, NAME).await?;
    // Without a filter, fetch no more than are printed.
    let letters = if reason.is_none() { letters.limited_to(*limit) } else { letters };
    print(
        letters,
        shutdown,
        |letter| selection.takes(letter),
        *limit,
        |letter, out| {
            if *json { print::line_as_json(letter, out) } else { print::line(letter, out) }
        },
    )
    .await?;
    Ok(())
}

async fn show(Show { broker, message, reference, json }: &Show, shutdown: Shutdown) -> anyhow::Result<()> {
    let letters = DeadLetterQueue::open(broker, *message, NAME).await?;
    let matches = |letter: &DeadLetter| reference.is_of(letter.reference());
    let shown = print(letters, shutdown, matches, u64::MAX, |letter, out| {
        if *json { print::whole_as_json(letter, out) } else { print::whole(letter, out) }
    })
    .await?;
    if shown == 0 {
        bail!("no dead letter has the reference {reference}");
    }
    Ok(())
}

async fn replay(command: Replay, shutdown: Shutdown) -> anyhow::Result<()> {
    let Replay { broker, message, ledger, ack_deadline, chosen, even_if_counted } = command;
    // Read first, so that nothing is touched if the database is unavailable.
    let horizon = Ledger::new(&ledger, "catchall-dead")
        .horizon()
        .await
        .context("cannot determine which claims have been pruned")?;
    let doubts =
        if even_if_counted { Doubts::none() } else { Doubts::beyond(horizon, ack_deadline.ack_deadline()) };
    let health = Health::default();
    let publisher =
        Publisher::connect(broker.clone(), NAME.into(), health.dependency("broker"), CONFIRM_TIMEOUT);
    act(&broker, message, chosen.into(), Removal::Replay { publisher, doubts }, shutdown).await
}

async fn discard(
    Discard { broker, message, chosen, yes: _ }: Discard,
    shutdown: Shutdown,
) -> anyhow::Result<()> {
    act(&broker, message, chosen.into(), Removal::Discard, shutdown).await
}

async fn act(
    broker: &broker::BrokerConfig,
    message: MessageLimit,
    mut selection: Selection,
    removal: Removal,
    shutdown: Shutdown,
) -> anyhow::Result<()> {
    if let Selection::Named(references) = &mut selection
        && !references.iter().all(Prefix::is_whole)
    {
        let letters = DeadLetterQueue::open(broker, message, NAME).await?;
        *references = resolve(references, letters, &shutdown).await?;
    }
    let letters = DeadLetterQueue::open(broker, message, NAME).await?;
    remove(letters, selection, removal, &shutdown).await
}
