//! The source for handlers that read more than a name: one type for every store.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures::future::BoxFuture;

use crate::classified::Classified;
use crate::domain_name::DomainName;
use crate::http::{Problem, ProblemType};
use crate::position::Position;
use crate::store::{Change, DomainSource, Page, PageRequest, Standing, Unreadable};
use crate::totals::Totals;

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

/// The source, for handlers: a failed read becomes a problem. Clones share it.
#[derive(Clone)]
pub(super) struct Source {
    source: Arc<dyn AnySource>,
    /// Logged once per outage: the next thousand failed reads have nothing new to say.
    away: Arc<AtomicBool>,
}

impl Source {
    pub(super) fn new<S: DomainSource>(source: Arc<S>) -> Self {
        Self { source, away: Arc::default() }
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
        let was_away = self.away.swap(read.is_err(), Ordering::Relaxed);
        read.map_err(|error| {
            if !was_away {
                tracing::warn!(reason = %error, "cannot read counters: {error}");
            }
            Problem::new(ProblemType::Unavailable, "the database cannot be read")
        })
    }
}
