//! `catchall-worker`: counts the events that wait in RabbitMQ.

use std::process::ExitCode;

fn main() -> ExitCode {
    catchall::worker::main()
}
