//! `catchall-query`: tells which domains are catch-alls.

use std::process::ExitCode;

use catchall::{process, query};

fn main() -> ExitCode {
    process::main(
        "catchall-query",
        "Tells over HTTP which domains are catch-alls, reading from a Postgres replica",
        query::run,
    )
}
