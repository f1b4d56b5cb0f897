//! `catchall-migrate`: brings the database's schema up to date.

use std::process::ExitCode;

use catchall::{ledger, postgres, process};

fn main() -> ExitCode {
    process::main(
        "catchall-migrate",
        "Brings the schema of the Postgres primary up to date; safe to run twice, and at once",
        async |config: ledger::Config, _| {
            postgres::migrate(&config.database_url).await?;
            println!("the schema of {} is up to date", config.database_url);
            Ok(())
        },
    )
}
