//! The standalone: events and queries in one process, with its data in one file.

mod command;
mod serve;
mod check;
mod backup;
mod move_to;

use std::process::ExitCode;

use crate::process::{self, Process};
use command::Command;

pub use command::{ServeConfig, StandaloneConfig};

/// The program: see [`process::main_of_commands`].
#[must_use]
pub fn main() -> ExitCode {
    process::main_of_commands(
        "catchall",
        "Counts delivery events and tells which e-mail domains are catch-alls, with its data in one file",
        "serve",
        run,
    )
}

/// Runs the command.
///
/// # Errors
///
/// When the command fails. Errors of the data file have their own exit statuses.
pub async fn run(config: StandaloneConfig, process: Process) -> anyhow::Result<()> {
    match config.command {
        Command::Serve(config) => serve::serve(config, process).await,
        Command::Check(config) => check::check(&config, process.shutdown).await,
        Command::Backup(config) => backup::back_up(&config, process.shutdown).await,
        Command::Move(config) => move_to::move_to(&config, process.shutdown).await,
    }
}
