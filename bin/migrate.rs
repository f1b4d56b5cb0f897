//! `catchall-migrate`: brings the database's schema up to date.

use std::process::ExitCode;

fn main() -> ExitCode {
    catchall::migrate::main()
}
