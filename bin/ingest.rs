//! `catchall-ingest`: accepts delivery events over HTTP.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    catchall::ingest::main()
}
