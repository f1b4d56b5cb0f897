//! `catchall-worker`: counts the events from RabbitMQ.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    catchall::worker::main()
}
