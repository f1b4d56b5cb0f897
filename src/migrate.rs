//! Migrate: a command that brings the schema of the primary up to date.

use std::process::ExitCode;

use crate::network::NetworkConfig;
use crate::process::{self, Process};
use crate::store::ledger::Primary;
use crate::store::postgres;

/// The program: see [`process::main`].
#[must_use]
pub fn main() -> ExitCode {
    process::main(
        "catchall-migrate",
        "Brings the schema of the Postgres primary up to date; safe to run repeatedly and concurrently",
        run,
    )
}

/// The configuration of a migration.
#[derive(Clone, Debug, clap::Args)]
#[group(skip)]
struct MigrateConfig {
    #[command(flatten)]
    primary: Primary,

    #[command(flatten)]
    network: NetworkConfig,
}

async fn run(MigrateConfig { primary, network }: MigrateConfig, _: Process) -> anyhow::Result<()> {
    network.check(&[primary.exposure()])?;
    postgres::migrate(&primary.database_url).await?;
    println!("the schema of {} is up to date", primary.database_url);
    Ok(())
}
