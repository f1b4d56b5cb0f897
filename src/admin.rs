//! The operator's tool for what is counted: resets a domain, changes the threshold, imports history, exports.
//!
//! It works on the Postgres primary of a cluster, beside its workers, and on the data file of a standalone,
//! also while that is served.

mod command;
mod reset;
mod reclassify;
mod history;
mod import;
mod output;
mod export;
mod audit;

use std::process::ExitCode;

use crate::process::{self, Process};
use crate::shutdown::Shutdown;
use crate::store::ledger::LedgerAdmin;
use crate::store::maintenance::Maintenance;
use crate::store::sqlite::FileAdmin;
use command::{Command, DataLocation};

pub use command::AdminConfig;

/// The program: see [`process::main_checked`].
#[must_use]
pub fn main() -> ExitCode {
    process::main_checked(
        "catchall-admin",
        "Resets domains, changes the threshold, imports and exports: on a Postgres primary or a data file",
        AdminConfig::check,
        run,
    )
}

/// Runs the command.
///
/// # Errors
///
/// When something was not done. What is wrong with a data file has an exit status of its own.
pub async fn run(AdminConfig { command, network }: AdminConfig, process: Process) -> anyhow::Result<()> {
    let place = command.target().place();
    if let DataLocation::Ledger(url) = &place {
        network.check(&[("CATCHALL_DATABASE_URL", url.exposure())])?;
    }
    match (command, place) {
        (Command::Export(command), place) => export::export(&command, place, process.shutdown).await,
        (command, DataLocation::Ledger(url)) => {
            maintain(&mut LedgerAdmin::open(&url).await?, command, process.shutdown).await
        }
        (command, DataLocation::File(data)) => {
            maintain(&mut FileAdmin::open(&data).await?, command, process.shutdown).await
        }
    }
}

async fn maintain<S: Maintenance>(store: &mut S, command: Command, shutdown: Shutdown) -> anyhow::Result<()> {
    match command {
        Command::Reset(command) => reset::reset(store, &command).await,
        Command::Reclassify(command) => reclassify::reclassify(store, &command, shutdown).await,
        Command::Import(command) => import::import(store, &command, shutdown).await,
        Command::Audit(command) => audit::audit(store, &command).await,
        // It needs no store that can be written.
        Command::Export(_) => Ok(()),
    }
}
