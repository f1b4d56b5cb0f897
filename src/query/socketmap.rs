//! Postfix's socketmap protocol (`socketmap_table(5)`): mail servers ask about domains.

mod netstring;
mod question;
mod address;
mod socket;
mod connection;
mod server;
mod config;

use anyhow::Context;
use futures::future::{OptionFuture, try_join};

use super::domain::Domains;
use crate::event_loop::on_own_thread;
use crate::shutdown::Shutdown;

pub use config::SocketmapConfig;
pub(crate) use server::Socketmap;

/// Serves a socketmap on a separate thread until the shutdown and the grace period after it. `domains` is
/// called on the event loop of that thread.
///
/// # Errors
///
/// When the thread cannot be started, or the server fails.
pub(super) async fn serve(
    socketmap: Socketmap,
    domains: impl FnOnce() -> Domains + Send + 'static,
    shutdown: Shutdown,
) -> anyhow::Result<()> {
    let ended =
        on_own_thread("socketmap", move || async move { socketmap.serve(domains(), shutdown).await })?;
    ended.await.context("the thread of the socketmap panicked")?.context("the socketmap failed")
}

/// Waits for the end of one or two servers.
///
/// # Errors
///
/// When either fails; the other is then not waited for.
pub(crate) async fn both(
    http: impl Future<Output = anyhow::Result<()>>,
    mail: Option<impl Future<Output = anyhow::Result<()>>>,
) -> anyhow::Result<()> {
    let mail = async { OptionFuture::from(mail).await.transpose() };
    try_join(http, mail).await.map(|_| ())
}

/// A request is read when all of it has come and not before, and the answer is a reply of the protocol.
#[cfg(any(test, fuzzing))]
pub(super) fn fuzz(data: &[u8]) {
    const LONGEST: usize = 4096;
    let mut rest = data;
    while let Ok(Some((payload, taken))) = netstring::first(rest, LONGEST) {
        assert!(payload.len() <= LONGEST && taken > payload.len());
        assert!((0..taken).all(|part| netstring::first(&rest[..part], LONGEST) == Ok(None)));
        let reply = match question::domain(payload) {
            Ok(name) => {
                assert!(payload.len() > name.as_str().split('.').count());
                question::Reply::of(crate::counters::Status::CatchAll)
            }
            Err(reply) => reply,
        };
        let text = reply.text();
        assert!(["OK ", "NOTFOUND ", "PERM "].iter().any(|word| text.starts_with(word)) && text.len() < 100);
        rest = &rest[taken..];
    }
}
