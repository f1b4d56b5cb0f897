//! The source behind the handlers that read more than a name: one type, whatever the store.

use std::sync::{Arc, Mutex, PoisonError};

use futures::future::BoxFuture;

use crate::classified::Classified;
use crate::domain_name::DomainName;
use crate::http::{Caller, FairPermit, FairSemaphore, Problem, ProblemType};
use crate::position::Position;
use crate::store::{Change, DomainSource, Page, PageRequest, Standing, Unreadable};
use crate::totals::Totals;
use crate::trouble::Trouble;

/// Requests of a thread that may wait for pages, totals and changes: their turns come within a second, as such
/// a read takes some milliseconds.
const WAITING_READS: usize = 256;

/// Any [`DomainSource`].
trait AnySource: Send + Sync {
    fn look_up<'a>(&'a self, names: &'a [DomainName]) -> BoxFuture<'a, Result<Vec<Classified>, Unreadable>>;
    fn list(&self, page: PageRequest) -> BoxFuture<'_, Result<Page, Unreadable>>;
    fn totals(&self, minutes: u32) -> BoxFuture<'_, Result<Totals, Unreadable>>;
    fn changes(&self, after: Position, limit: u32) -> BoxFuture<'_, Result<Vec<Change>, Unreadable>>;
    fn latest(&self, limit: u32) -> BoxFuture<'_, Result<Vec<Change>, Unreadable>>;
    fn standing(&self) -> BoxFuture<'_, Result<Standing, Unreadable>>;
    fn head(&self) -> BoxFuture<'_, Result<Position, Unreadable>>;
    fn last_change(&self) -> BoxFuture<'_, Result<Position, Unreadable>>;
}

impl<S: DomainSource> AnySource for S {
    fn look_up<'a>(&'a self, names: &'a [DomainName]) -> BoxFuture<'a, Result<Vec<Classified>, Unreadable>> {
        Box::pin(DomainSource::look_up(self, names))
    }

    fn list(&self, page: PageRequest) -> BoxFuture<'_, Result<Page, Unreadable>> {
        Box::pin(DomainSource::list(self, page))
    }

    fn totals(&self, minutes: u32) -> BoxFuture<'_, Result<Totals, Unreadable>> {
        Box::pin(DomainSource::totals(self, minutes))
    }

    fn changes(&self, after: Position, limit: u32) -> BoxFuture<'_, Result<Vec<Change>, Unreadable>> {
        Box::pin(DomainSource::changes(self, after, limit))
    }

    fn latest(&self, limit: u32) -> BoxFuture<'_, Result<Vec<Change>, Unreadable>> {
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

/// The source, for handlers: what cannot be read is a problem. Clones share it.
#[derive(Clone)]
pub(super) struct Source {
    source: Arc<dyn AnySource>,
    waiting: FairSemaphore,
    /// The next thousand failed reads have nothing new to say.
    failing: Arc<Mutex<Trouble>>,
}

impl Source {
    pub(super) fn new<S: DomainSource>(source: Arc<S>) -> Self {
        Self { source, waiting: FairSemaphore::new(WAITING_READS), failing: Arc::default() }
    }

    /// Lets a request wait for what it reads, until the permit is dropped.
    pub(super) fn wait(&self, caller: &Caller) -> Result<FairPermit, Problem> {
        let permit = self.waiting.try_acquire(caller);
        permit.ok_or_else(|| {
            Problem::new(ProblemType::Unavailable, "too many requests are waiting for the database")
        })
    }

    pub(super) async fn look_up(&self, names: &[DomainName]) -> Result<Vec<Classified>, Problem> {
        self.note(self.source.look_up(names).await)
    }

    pub(super) async fn list(&self, page: PageRequest) -> Result<Page, Problem> {
        self.note(self.source.list(page).await)
    }

    pub(super) async fn totals(&self, minutes: u32) -> Result<Totals, Problem> {
        self.note(self.source.totals(minutes).await)
    }

    pub(super) async fn changes(&self, after: Position, limit: u32) -> Result<Vec<Change>, Problem> {
        self.note(self.source.changes(after, limit).await)
    }

    pub(super) async fn latest(&self, limit: u32) -> Result<Vec<Change>, Problem> {
        self.note(self.source.latest(limit).await)
    }

    pub(super) async fn standing(&self) -> Result<Standing, Problem> {
        self.note(self.source.standing().await)
    }

    pub(super) async fn head(&self) -> Result<Position, Problem> {
        self.note(self.source.head().await)
    }

    pub(super) async fn last_change(&self) -> Result<Position, Problem> {
        self.note(self.source.last_change().await)
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
