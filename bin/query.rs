//! `catchall-query`: tells which domains are catch-alls.

use std::process::ExitCode;

fn main() -> ExitCode {
    catchall::query::main()
}
