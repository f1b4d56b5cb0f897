//! `catchall-admin`: resets domains, changes the threshold, imports and exports.

use std::process::ExitCode;

fn main() -> ExitCode {
    catchall::admin::main()
}
