//! `catchall-token`: makes access tokens.

use std::process::ExitCode;

fn main() -> ExitCode {
    catchall::tokens::main()
}
