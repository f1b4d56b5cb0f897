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

    /// Lets a request wait for what it reads, until the permit is dropped.
    pub(super) fn wait(&self, caller: &Caller) -> Result<FairPermit, Problem> {
        let permit = self.waiting.try_acquire(caller);
        permit.ok_or_else(|| {
            Problem::new(ProblemType::Unavailable, "too many requests are waiting for the database")
        })
    }

    pub(super) async fn look_up(&self, names: &[DomainName]) -> Result<Vec<Classified>, Problem> {
        self.note(self.store.look_up(names).await)
    }

    pub(super) async fn list(&self, page: PageRequest) -> Result<Page, Problem> {
        self.note(self.store.list(page).await)
    }

    pub(super) async fn totals(&self, minutes: u32) -> Result<Totals, Problem> {
        self.note(self.store.totals(minutes).await)
    }

    /// The changes after a position, or a problem if this feed has not given it.
    pub(super) async fn changes(&self, after: &Position, limit: u32) -> Result<Portion, Problem> {
        let portion = self.note(self.store.changes(after.place.clone(), limit).await)?;
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

    pub(super) async fn head(&self) -> Result<Position, Problem> {
        self.note(self.store.head().await)
    }

    pub(super) async fn last_change(&self) -> Result<Position, Problem> {
        self.note(self.store.last_change().await)
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
