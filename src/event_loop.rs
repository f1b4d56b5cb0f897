//! A thread with its own event loop.

use std::io;

use anyhow::Context;
use tokio::sync::oneshot;

/// Starts a thread with this name, whose event loop runs the future that `work` returns. `work` is called on
/// that loop. The receiver gets the result; it gets an error if the thread panics.
///
/// # Errors
///
/// When the thread cannot be started.
pub(crate) fn on_own_thread<F>(
    name: &str,
    work: impl FnOnce() -> F + Send + 'static,
) -> io::Result<oneshot::Receiver<anyhow::Result<()>>>
where
    F: Future<Output = anyhow::Result<()>>,
{
    let (done, ended) = oneshot::channel();
    std::thread::Builder::new().name(name.into()).spawn(move || {
        let worked = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("cannot start an event loop")
            .and_then(|runtime| {
                let worked = runtime.block_on(async { work().await });
                // Without waiting for what blocks, such as a name that does not resolve.
                runtime.shutdown_background();
                worked
            });
        // Sending fails only if the process is already ending.
        let _ = done.send(worked);
    })?;
    Ok(ended)
}
