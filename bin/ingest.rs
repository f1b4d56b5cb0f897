//! `catchall-ingest`: takes delivery events over HTTP.

use std::process::ExitCode;

use catchall::{ingest, process};

fn main() -> ExitCode {
    process::main(
        "catchall-ingest",
        "Takes delivery events over HTTP and answers once RabbitMQ has confirmed them",
        ingest::run,
    )
}
