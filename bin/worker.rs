//! `catchall-worker`: counts the events that wait in RabbitMQ.

use std::process::ExitCode;

use catchall::{process, worker};

fn main() -> ExitCode {
    process::main(
        "catchall-worker",
        "Counts the delivery events that wait in RabbitMQ into Postgres, each exactly once",
        worker::run,
    )
}
