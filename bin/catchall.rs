//! `catchall`: events and queries in one process, with its data in one file.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    catchall::standalone::main()
}
