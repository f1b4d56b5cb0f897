//! `catchall-dead`: looks at dead letters, sends them back or discards them.

use std::process::ExitCode;

fn main() -> ExitCode {
    catchall::dead_letters::main()
}
