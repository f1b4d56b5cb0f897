//! Accepts the connections to a listening socket, and tries again when that fails.

use std::fmt::Display;
use std::io;
use std::pin::Pin;
use std::time::Duration;

use tokio::time::sleep;

use crate::trouble::Trouble;

/// The delay after a failed accept, mostly for lack of file descriptors: short enough for waiting clients,
/// and long enough to leave the processor to the connections that free some.
const BACKOFF: Duration = Duration::from_millis(50);

/// Accepts the connections to one address, and logs why some are not served.
pub(crate) struct Acceptor<A> {
    address: A,
    failing: Trouble,
    full: Trouble,
}

impl<A: Display> Acceptor<A> {
    pub(crate) fn new(address: A) -> Self {
        Self { address, failing: Trouble::default(), full: Trouble::default() }
    }

    /// The next connection; `None` once `end` has completed; it must not be polled after that.
    pub(crate) async fn next<C, F: Future<Output = io::Result<C>>>(
        &mut self,
        accept: impl Fn() -> F,
        mut end: Pin<&mut impl Future<Output = ()>>,
    ) -> Option<C> {
        loop {
            let accepted = tokio::select! {
                biased;
                () = &mut end => return None,
                accepted = accept() => accepted,
            };
            match accepted {
                Ok(connection) => return Some(connection),
                Err(error) if is_of_one_connection(&error) => {}
                Err(error) => {
                    if self.failing.is_news() {
                        let address = &self.address;
                        tracing::warn!(
                            %address,
                            reason = %error,
                            "cannot accept connections to {address}, trying again: {error}"
                        );
                    }
                    tokio::select! {
                        () = &mut end => return None,
                        () = sleep(BACKOFF) => {}
                    }
                }
            }
        }
    }

    /// Logs that the limit of connections is reached.
    pub(crate) fn log_full(&mut self) {
        if self.full.is_news() {
            let address = &self.address;
            tracing::warn!(
                %address,
                "closing further connections to {address}, connection limit reached"
            );
        }
    }
}

/// Whether an accept failed because the waiting client gave up.
pub(crate) fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset)
}
