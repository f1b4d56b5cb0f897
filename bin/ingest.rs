//! `catchall-ingest`: takes delivery events over HTTP.

use std::process::ExitCode;

fn main() -> ExitCode {
    catchall::ingest::main()
}
