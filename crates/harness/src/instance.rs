//! This run's servers as processes, controlled by `./dev`.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, bail};

/// The directory of the instance.
fn folder() -> anyhow::Result<PathBuf> {
    std::env::var("CATCHALL_DEV").map(PathBuf::from).context("./dev says which instance is its own")
}

/// A server's data directory.
///
/// # Errors
///
/// When there is no instance.
pub fn data(server: &str) -> anyhow::Result<PathBuf> {
    Ok(folder()?.join("data").join(server))
}

/// The process ID of a server.
///
/// # Errors
///
/// When it was not started.
pub fn pid(server: &str) -> anyhow::Result<u32> {
    let file = folder()?.join("run").join(format!("{server}.pid"));
    let pid = std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    Ok(pid.trim().parse()?)
}

/// Runs `./dev` on the instance and returns what it printed.
///
/// # Errors
///
/// When it fails; the error holds what it printed.
///
/// # Panics
///
/// When the event loop ends while it waits.
pub async fn dev(arguments: &[&str]) -> anyhow::Result<String> {
    let mut command = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../dev"));
    command.args(arguments);
    let output = tokio::task::spawn_blocking(move || command.output()).await.expect("it does not panic");
    let output = output.context("./dev")?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if !output.status.success() {
        bail!("./dev {}: {}{}", arguments.join(" "), text(&output.stdout), text(&output.stderr));
    }
    Ok(text(&output.stdout))
}

/// Runs `rabbitmqctl` for the broker of the instance.
///
/// # Errors
///
/// When it fails; the error holds what it printed.
pub async fn rabbitmqctl(arguments: &[&str]) -> anyhow::Result<String> {
    dev(&[&["rabbitmqctl", "--quiet"], arguments].concat()).await
}
