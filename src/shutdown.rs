//! The one reason to stop: SIGINT or SIGTERM.

use std::io;
use std::time::Duration;

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use tokio::signal::unix::{SignalKind, signal};

/// How long a stop waits for requests and batches under way. Even `kill -9` loses nothing; the grace period
/// only saves clients a retry. It is below the 10 s after which a container engine kills.
pub const GRACE: Duration = Duration::from_secs(8);

/// Resolves when the process is asked to stop. Clones resolve together.
pub type Shutdown = Shared<BoxFuture<'static, ()>>;

/// Begins to listen for SIGINT and SIGTERM.
///
/// # Errors
///
/// When the process cannot install a signal handler.
pub fn requested() -> io::Result<Shutdown> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let requested = async move {
        let name = tokio::select! {
            _ = interrupt.recv() => "SIGINT",
            _ = terminate.recv() => "SIGTERM",
        };
        tracing::info!(signal = name, "stopping on {name}");
    };
    Ok(requested.boxed().shared())
}
