//! Look-ups: the names of many requests become one read.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::try_join_all;

use crate::batcher::Batcher;
use crate::classified::Classified;
use crate::domain_name::DomainName;
use crate::health::Dependency;
use crate::http::{Problem, ProblemType};
use crate::store::DomainSource;
use crate::trouble::Trouble;

/// Reads that each thread has under way at a time. One would leave the source idle while rows are decoded.
/// More would make the batches smaller and the cost per name higher.
pub(crate) const READS_AT_ONCE: u32 = 2;

/// How long after a failure a thread tries again to open its connections.
const WARM_UP_INTERVAL: Duration = Duration::from_secs(1);

/// The result of one read, in the order of the names, for every request in it; `None` when the source did not
/// answer.
pub(super) type ReadResult = Option<Arc<[Classified]>>;

/// Handlers of one thread submit names here, and its readers take them.
pub(super) type Lookups = Batcher<Vec<DomainName>, ReadResult>;

/// Why a name was not looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum NotLookedUp {
    /// Too many names wait already.
    #[error("too many requests are waiting for the database")]
    Full,
    /// The source did not answer.
    #[error("the database cannot be read")]
    Unreadable,
}

impl From<NotLookedUp> for Problem {
    fn from(error: NotLookedUp) -> Self {
        Self::new(ProblemType::Unavailable, error.to_string())
    }
}

/// What is known about a name.
pub(super) async fn look_up(lookups: &Lookups, name: &DomainName) -> Result<Classified, NotLookedUp> {
    let mut place = 0;
    let ticket = lookups.submit(1, |names| {
        place = names.len();
        names.push(name.clone());
    });
    match ticket.map_err(|_| NotLookedUp::Full)?.await {
        Ok(Some(found)) => Ok(found.get(place).copied().unwrap_or_default()),
        Ok(None) | Err(_) => Err(NotLookedUp::Unreadable),
    }
}

/// Opens the connections of a thread before the process is ready. Otherwise the first requests would wait for
/// them, and fail if they took too long.
pub(super) async fn warm_up<S: DomainSource>(source: Arc<S>, dependency: Dependency) {
    // All at once: reads one after the other would share one connection.
    while let Err(error) = try_join_all((0..READS_AT_ONCE).map(|_| source.look_up(&[]))).await {
        // The watch over the source may have its connection already, and then does not see the reason.
        dependency.down(error);
        tokio::time::sleep(WARM_UP_INTERVAL).await;
    }
    dependency.up();
}

/// Takes the names that have gathered, reads them in one query and answers every request, forever.
pub(super) async fn read<S: DomainSource>(lookups: Arc<Lookups>, source: Arc<S>) {
    let reads = metrics::counter!("catchall_query_reads_total");
    let failed = metrics::counter!("catchall_query_failed_reads_total");
    let read_seconds = metrics::histogram!("catchall_query_read_seconds");
    let mut failing = Trouble::default();
    loop {
        let flush = lookups.take().await;
        let begun = Instant::now();
        let found = match source.look_up(&flush.items).await {
            Ok(found) => {
                reads.increment(flush.answer.weight() as u64);
                read_seconds.record(begun.elapsed());
                Some(found.into())
            }
            Err(error) => {
                failed.increment(flush.answer.weight() as u64);
                // The next thousand failed reads have nothing new to say.
                if failing.is_news() {
                    tracing::warn!(reason = %error, "cannot read counters: {error}");
                }
                None
            }
        };
        flush.answer.send(found);
    }
}
