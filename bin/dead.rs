//! `catchall-dead`: lists, replays and discards dead letters.

use std::process::ExitCode;

fn main() -> ExitCode {
    catchall::dead_letters::main()
}
