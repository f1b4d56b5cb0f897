//! The source for handlers that read more than a name: one type for every store.

use std::sync::{Arc, Mutex, PoisonError};

use axum::http::{HeaderValue, header};
use futures::future::BoxFuture;

use crate::classified::Classified;
use crate::domain_name::DomainName;
use crate::http::{Caller, FairPermit, FairSemaphore, Problem, ProblemType};
use crate::position::{Place, Position};
use crate::store::{DomainSource, Page, PageRequest, Portion, Standing, Unreadable};
use crate::totals::Totals;
use crate::trouble::Trouble;

/// Requests of a thread that may wait for pages, totals and changes: their turns come within a second, as such
/// a read takes some milliseconds.
const WAITING_READS: usize = 256;

/// Any [`DomainSource`].
trait AnySource: Send + Sync {
    fn is_copy(&self) -> bool;
    fn finishes_reads(&self) -> bool;
    fn look_up<'a>(&'a self, names: &'a [DomainName]) -> BoxFuture<'a, Result<Vec<Classified>, Unreadable>>;
    fn list(&self, page: PageRequest) -> BoxFuture<'_, Result<Page, Unreadable>>;
    fn totals(&self, minutes: u32) -> BoxFuture<'_, Result<Totals, Unreadable>>;
    fn changes(&self, after: Place, limit: u32) -> BoxFuture<'_, Result<Portion, Unreadable>>;
    fn latest(&self, limit: u32) -> BoxFuture<'_, Result<Portion, Unreadable>>;
    fn standing(&self) -> BoxFuture<'_, Result<Standing, Unreadable>>;
    fn head(&self) -> BoxFuture<'_, Result<Position, Unreadable>>;
    fn last_change(&self) -> BoxFuture<'_, Result<Position, Unreadable>>;
}

impl<S: DomainSource> AnySource for S {
    fn is_copy(&self) -> bool {
        S::IS_COPY
    }

    fn finishes_reads(&self) -> bool {
        S::FINISHES_READS
    }

    fn look_up<'a>(&'a self, names: &'a [DomainName]) -> BoxFuture<'a, Result<Vec<Classified>, Unreadable>> {
        Box::pin(DomainSource::look_up(self, names))
    }

    fn list(&self, page: PageRequest) -> BoxFuture<'_, Result<Page, Unreadable>> {
        Box::pin(DomainSource::list(self, page))
    }

    fn totals(&self, minutes: u32) -> BoxFuture<'_, Result<Totals, Unreadable>> {
        Box::pin(DomainSource::totals(self, minutes))
    }

    fn changes(&self, after: Place, limit: u32) -> BoxFuture<'_, Result<Portion, Unreadable>> {
        Box::pin(DomainSource::changes(self, after, limit))
    }

    fn latest(&self, limit: u32) -> BoxFuture<'_, Result<Portion, Unreadable>> {
        Box::pin(DomainSource::latest(self, limit))
    }

    fn standing(&self) -> BoxFuture<'_, Result<Standing, Unreadable>> {
        Box::pin(DomainSource::standing(self))
    }

    fn head(&self) -> BoxFuture<'_, Result<Position, Unreadable>> {
        Box::pin(DomainSource::head(self))
    }

    fn last_change(&self) -> BoxFuture<'_, Result<Position, Unreadable>> {
        Box::pin(DomainSource::last_change(self))
    }
}

/// The source, for handlers: a failed read becomes a problem. Clones share it.
#[derive(Clone)]
pub(super) struct Source {
    store: Arc<dyn AnySource>,
    waiting: FairSemaphore,
    /// The next thousand failed reads have nothing new to say.
    failing: Arc<Mutex<Trouble>>,
}

impl Source {
    pub(super) fn new<S: DomainSource>(source: Arc<S>) -> Self {
        Self { store: source, waiting: FairSemaphore::new(WAITING_READS), failing: Arc::default() }
    }

    /// Lets a request wait for what it reads, until the permit is dropped. The read gets the permit: a client
    /// that goes away may leave a read behind, and could otherwise begin any number of them.
    pub(super) fn wait(&self, caller: &Caller) -> Result<FairPermit, Problem> {
        let permit = self.waiting.try_acquire(caller);
        permit.ok_or_else(|| {
            Problem::new(ProblemType::Unavailable, "too many requests are waiting for the database")
        })
    }

    /// Reads, and returns `held` with what was read. If this future is dropped, `held` is dropped when the
    /// store no longer works for it.
    async fn read<T, F, H>(
        &self,
        held: H,
        read: impl FnOnce(Arc<dyn AnySource>) -> F,
    ) -> Result<(T, H), Problem>
    where
        T: Send + 'static,
        H: Send + 'static,
        F: Future<Output = Result<T, Unreadable>> + Send + 'static,
    {
        let read = read(Arc::clone(&self.store));
        let read = async move { (read.await, held) };
        let (done, held) = if self.store.finishes_reads() {
            tokio::spawn(read).await.expect("a read does not panic")
        } else {
            read.await
        };
        Ok((self.note(done)?, held))
    }

    pub(super) async fn look_up<H: Send + 'static>(
        &self,
        names: Vec<DomainName>,
        held: H,
    ) -> Result<(Vec<Classified>, H), Problem> {
        self.read(held, |store| async move { store.look_up(&names).await }).await
    }

    pub(super) async fn list(&self, page: PageRequest, held: impl Send + 'static) -> Result<Page, Problem> {
        let read = self.read(held, |store| async move { store.list(page).await });
        read.await.map(|(read, _)| read)
    }

    pub(super) async fn totals(&self, minutes: u32, held: impl Send + 'static) -> Result<Totals, Problem> {
        let read = self.read(held, |store| async move { store.totals(minutes).await });
        read.await.map(|(read, _)| read)
    }

    /// The changes after a position, or a problem if this feed has not given it.
    pub(super) async fn changes(
        &self,
        after: &Position,
        limit: u32,
        held: impl Send + 'static,
    ) -> Result<Portion, Problem> {
        let place = after.place.clone();
        let (portion, _) = self.read(held, |store| async move { store.changes(place, limit).await }).await?;
        self.check(after, &Position { feed: Some(portion.feed), place: portion.head.clone() })?;
        Ok(portion)
    }

    /// Fails if the feed with this head cannot have given the position: what came after it would be missed.
    pub(super) fn check(&self, position: &Position, head: &Position) -> Result<(), Problem> {
        let is_of_it = position.feed == head.feed || *position == Position::beginning();
        if is_of_it && (self.is_copy() || position.place <= head.place) {
            return Ok(());
        }
        let detail = "the position is of another feed, from before the database was moved or restored: begin \
            at the beginning, without since";
        // A cache may keep such an answer, if nobody says otherwise.
        Err(Problem::new(ProblemType::UnknownPosition, detail)
            .with_header(header::CACHE_CONTROL, HeaderValue::from_static("no-store")))
    }

    /// Whether a position may be ahead of what is read here, and another copy has given it.
    pub(super) fn is_copy(&self) -> bool {
        self.store.is_copy()
    }

    pub(super) async fn latest(&self, limit: u32) -> Result<Portion, Problem> {
        self.note(self.store.latest(limit).await)
    }

    pub(super) async fn standing(&self) -> Result<Standing, Problem> {
        self.note(self.store.standing().await)
    }

    pub(super) async fn head(&self, held: impl Send + 'static) -> Result<Position, Problem> {
        let read = self.read(held, |store| async move { store.head().await });
        read.await.map(|(read, _)| read)
    }

    pub(super) async fn last_change(&self, held: impl Send + 'static) -> Result<Position, Problem> {
        let read = self.read(held, |store| async move { store.last_change().await });
        read.await.map(|(read, _)| read)
    }

    fn note<T>(&self, read: Result<T, Unreadable>) -> Result<T, Problem> {
        read.map_err(|error| {
            if self.failing.lock().unwrap_or_else(PoisonError::into_inner).is_news() {
                tracing::warn!(reason = %error, "cannot read counters: {error}");
            }
            Problem::new(ProblemType::Unavailable, "the database cannot be read")
        })
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use tokio::sync::Notify;

    use super::*;

    /// A store that answers one list when it is told to, and whether or not anybody waits for it.
    struct Slow(Arc<Notify>);

    impl DomainSource for Slow {
        const IS_COPY: bool = true;
        const FINISHES_READS: bool = true;

        async fn look_up(&self, _: &[DomainName]) -> Result<Vec<Classified>, Unreadable> {
            pending().await
        }

        async fn list(&self, _: PageRequest) -> Result<Page, Unreadable> {
            self.0.notified().await;
            Ok(Page::default())
        }

        async fn totals(&self, _: u32) -> Result<Totals, Unreadable> {
            pending().await
        }

        async fn changes(&self, _: Place, _: u32) -> Result<Portion, Unreadable> {
            pending().await
        }

        async fn latest(&self, _: u32) -> Result<Portion, Unreadable> {
            pending().await
        }

        async fn standing(&self) -> Result<Standing, Unreadable> {
            pending().await
        }

        async fn head(&self) -> Result<Position, Unreadable> {
            pending().await
        }

        async fn last_change(&self) -> Result<Position, Unreadable> {
            pending().await
        }
    }

    #[tokio::test]
    async fn a_read_that_nobody_waits_for_keeps_its_permit_until_it_has_ended() {
        let end = Arc::new(Notify::new());
        let source = Source::new(Arc::new(Slow(Arc::clone(&end))));
        let caller = Caller::at("192.0.2.1");
        let free = || std::iter::from_fn(|| source.wait(&caller).ok()).collect::<Vec<_>>().len();
        let all = free();
        let permit = source.wait(&caller).unwrap();
        let request = PageRequest { status: None, prefix: String::new(), after: None, limit: 1 };
        let reading = tokio::spawn({
            let source = source.clone();
            async move { source.list(request, permit).await.map(drop) }
        });
        tokio::task::yield_now().await;
        reading.abort();
        assert!(reading.await.unwrap_err().is_cancelled());
        assert_eq!(free(), all - 1);
        end.notify_one();
        while free() < all {
            tokio::task::yield_now().await;
        }
    }
}
