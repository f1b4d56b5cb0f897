//! `catchall-query`: tells which domains are catch-alls.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    catchall::query::main()
}
