//! The publishers in `examples/`, run against the real broker as their users run them.

use std::path::{Path, PathBuf};
use std::process::Command;

use harness::processes::{Service, binary};
use harness::servers::{Servers, topology};
use serde_json::json;

/// The example in Rust, built where the services are. Cargo does not build it for a test program alone.
fn rust() -> Command {
    let ingest = binary("ingest");
    let folder = Path::new(&ingest).parent().unwrap();
    let program = folder.join("examples/publisher");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/publisher.rs");
    let changed = |path: &PathBuf| path.metadata().and_then(|of| of.modified()).ok();
    if changed(&program) < changed(&source) {
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--quiet", "--locked", "--example", "publisher"]);
        if folder.ends_with("release") {
            build.arg("--release");
        }
        let status = build.current_dir(env!("CARGO_MANIFEST_DIR")).status().unwrap();
        assert!(status.success());
    }
    Command::new(program)
}

/// The example in Python. Of several interpreters the first that finds pika will do.
fn python() -> Command {
    let has_pika = |python: &&str| {
        let probe = Command::new(python).args(["-c", "import pika"]).output();
        probe.is_ok_and(|output| output.status.success())
    };
    let python = ["python3", "/usr/bin/python3"].into_iter().find(has_pika);
    let mut command =
        Command::new(python.expect("pika, of the package python3-pika, which ./dev test installs"));
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/publisher.py"));
    command
}

/// Runs a publisher and returns its exit status and what it says.
fn publish(mut publisher: Command, servers: &Servers, id: &str) -> (Option<i32>, String) {
    let output = publisher.arg(id).env("CATCHALL_AMQP_URL", &servers.amqp_url).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(said).unwrap())
}

async fn counts_once(publisher: fn() -> Command) {
    let servers = Servers::fresh().await;
    for id in ["report-1", "report-1", "report-2"] {
        assert_eq!(publish(publisher(), &servers, id), (Some(0), "the broker has it\n".into()));
    }
    let _worker = Service::ready("worker", &servers, &[]).await;
    servers.settle_at("example.com", 6, 0).await;
    servers.settle_at("example.org", 0, 1).await;
}

/// A publisher says so when no queue takes its message.
async fn tells_failure(publisher: fn() -> Command) {
    let mut unbound = topology();
    unbound["bindings"] = json!([]);
    let servers = Servers::with(&unbound).await;
    let (status, said) = publish(publisher(), &servers, "report-1");
    assert!(status == Some(1) && said.contains("publish it again under the same id"), "{status:?}: {said}");
}

#[tokio::test]
async fn what_the_publisher_in_rust_sends_is_counted_once() {
    counts_once(rust).await;
}

#[tokio::test]
async fn what_the_publisher_in_python_sends_is_counted_once() {
    counts_once(python).await;
}

#[tokio::test]
async fn the_publisher_in_rust_tells_when_no_queue_takes_its_message() {
    tells_failure(rust).await;
}

#[tokio::test]
async fn the_publisher_in_python_tells_when_no_queue_takes_its_message() {
    tells_failure(python).await;
}
