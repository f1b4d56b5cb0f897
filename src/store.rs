//! The two seams of the system: where accepted batches go, and how data about domains is read.
//!
//! Roles know only these traits. Each has two implementations: in a cluster the broker, from which a worker
//! counts into the [`ledger`] on the Postgres primary, and the Postgres [`replica`]; in the standalone the
//! one [data file](sqlite). Every method has a caller.

mod applied;
mod event_retention;
mod schema;
pub mod maintenance;
pub mod postgres;
mod feed;
pub mod ledger;
pub mod replica;
pub mod sqlite;
pub mod moving;

use std::error::Error;
use std::time::Duration;

use tokio::time::Instant;

use crate::batch::Batch;
use crate::cause::Cause;
use crate::classified::{Classified, DomainReport};
use crate::counters::Status;
use crate::domain_name::DomainName;
use crate::position::{FeedId, Place, Position};
use crate::totals::Totals;

pub use applied::Applied;
pub use event_retention::EventRetention;

/// Where batches go to be counted.
pub trait BatchSink: Send + Sync + 'static {
    /// Takes the events of a batch. Once this returns `Ok`, all of them are durable, and each will be counted
    /// exactly once. The future may be dropped while it waits; the batch may then be counted or not.
    ///
    /// # Errors
    ///
    /// Says what is known about the batch at the deadline, or sooner when waiting is useless.
    fn accept(&self, batch: Batch, deadline: Instant)
    -> impl Future<Output = Result<(), NotAccepted>> + Send;
}

/// What is known of a batch that was not accepted. The cause is for operators. The sender of the events is
/// told only the variant.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAccepted {
    /// Nothing of it was counted, or will be.
    #[error("nothing was counted: {0}")]
    NotCounted(#[source] Cause),
    /// It may have been counted, or may still be: sending it again is safe only under the same keys.
    #[error("it may have been counted: {0}")]
    MaybeCounted(#[source] Cause),
    /// The sink is full at present. If the batch became several messages, some of them may have been counted.
    #[error("the queue is full: {0}")]
    Full(#[source] Cause),
}

/// Reads what is known about domains.
pub trait DomainSource: Send + Sync + 'static {
    /// Whether this source is a copy, which may lag behind another copy that a client has already read.
    const IS_COPY: bool;

    /// Whether a read goes on to its end when its future is dropped.
    const FINISHES_READS: bool;

    /// What is known of each name, in the order of `names`. A name that was never seen has had no events.
    ///
    /// # Errors
    ///
    /// When it cannot be read at present.
    fn look_up(
        &self,
        names: &[DomainName],
    ) -> impl Future<Output = Result<Vec<Classified>, Unreadable>> + Send;

    /// The next domains of a selection, in key order.
    ///
    /// # Errors
    ///
    /// When they cannot be read at present.
    fn list(&self, page: PageRequest) -> impl Future<Output = Result<Page, Unreadable>> + Send;

    /// Totals over all domains, with the events of each of the last `minutes`.
    ///
    /// # Errors
    ///
    /// When they cannot be read at present.
    fn totals(&self, minutes: u32) -> impl Future<Output = Result<Totals, Unreadable>> + Send;

    /// The first changes after a place, at most `limit`. A domain appears once, at its latest change. Changes
    /// that become visible later have later places. The caller has to check that the place belongs to this
    /// feed.
    ///
    /// # Errors
    ///
    /// When they cannot be read at present.
    fn changes(&self, after: Place, limit: u32) -> impl Future<Output = Result<Portion, Unreadable>> + Send;

    /// The last changes, at most `limit`, the last one first. Whatever becomes visible later comes after the
    /// end.
    ///
    /// # Errors
    ///
    /// When they cannot be read at present.
    fn latest(&self, limit: u32) -> impl Future<Output = Result<Portion, Unreadable>> + Send;

    /// The threshold that applies, and how old answers can be.
    ///
    /// # Errors
    ///
    /// When it cannot be read at present.
    fn standing(&self) -> impl Future<Output = Result<Standing, Unreadable>> + Send;

    /// The position between all changes so far and all later ones.
    ///
    /// # Errors
    ///
    /// When it cannot be read at present.
    fn head(&self) -> impl Future<Output = Result<Position, Unreadable>> + Send;

    /// A position that changes whenever the status of a domain changes, and stays the same while events
    /// change no status. It is the beginning of the feed if no status has changed yet.
    ///
    /// # Errors
    ///
    /// When it cannot be read at present.
    fn last_change(&self) -> impl Future<Output = Result<Position, Unreadable>> + Send;
}

/// The threshold of a source, and how old its answers can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Delivered events that a domain without a bounce must exceed to be a catch-all.
    pub threshold: u64,
    /// How old answers can be, if they come from a copy.
    pub lag: Option<Duration>,
}

/// Which domains to list, and how many.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageRequest {
    /// Only those of this status.
    pub status: Option<Status>,
    /// Only names that begin with this: lower case ASCII.
    pub prefix: String,
    /// Only names after this one.
    pub after: Option<DomainName>,
    /// The most domains.
    pub limit: u32,
}

/// Some domains of a selection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// The domains, in key order.
    pub domains: Vec<DomainReport>,
    /// Where the next page begins: after this name. `None`: this was the last one. A page can have fewer
    /// domains than were asked for, or none, and not be the last.
    pub next: Option<DomainName>,
}

impl Page {
    /// Makes the page from `rows`, of which at most `most` were asked for. Rows without a report are skipped:
    /// this build rejects their names. `Err` means that all `most` rows came and none has a report; it holds
    /// the last name, after which to continue.
    fn of<'a>(
        request: &PageRequest,
        rows: impl Iterator<Item = (&'a str, Option<DomainReport>)>,
        most: u32,
    ) -> Result<Self, String> {
        let (mut page, mut seen, mut last, mut through) = (Self::default(), 0, None, "");
        for (name, report) in rows {
            (seen, through) = (seen + 1, name);
            let Some(report) = report else { continue };
            last = Some(report.domain.clone());
            if request.status.is_none_or(|status| status == report.status) {
                if page.domains.len() == request.limit as usize {
                    page.next = page.domains.last().map(|last| last.domain.clone());
                    return Ok(page);
                }
                page.domains.push(report);
            }
        }
        if last.is_none() && seen >= most {
            return Err(through.to_owned());
        }
        page.next = last.filter(|_| seen >= most);
        Ok(page)
    }
}

impl PageRequest {
    /// How many rows to read for the page: one more than it has, which shows whether there is a next one.
    /// Most domains may have a status other than `unknown`, so a page of unknown ones needs more rows.
    fn rows(&self) -> u32 {
        let one_more = self.limit.saturating_add(1);
        if self.status == Some(Status::Unknown) { one_more.max(ROWS_OF_A_PAGE) } else { one_more }
    }

    /// A text that comes after all names that begin with the prefix: no name has that character.
    fn end(&self) -> String {
        format!("{}\u{7f}", self.prefix)
    }
}

/// The latest change of a domain's status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// What is known about the domain now.
    pub report: DomainReport,
    /// Its position in the feed.
    pub place: Place,
}

/// A part of the feed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Portion {
    /// Which feed it is of.
    pub feed: FeedId,
    /// All changes so far are before it, and all later ones after.
    pub head: Place,
    /// The changes.
    pub changes: Vec<Change>,
    /// The place after every row that was read, including rows left out because this build rejects their
    /// names.
    pub end: Place,
    /// Whether there may be more.
    pub is_full: bool,
}

impl Portion {
    /// Where the next portion begins.
    #[must_use]
    pub fn position(&self) -> Position {
        Position { feed: Some(self.feed), place: self.end.clone() }
    }
}

/// Rows that are read for a page of unknown domains, whose status is not stored. It takes some tens of
/// milliseconds.
const ROWS_OF_A_PAGE: u32 = 20_000;

/// Something could not be read. The reason is for operators.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct Unreadable(#[source] Cause);

impl Unreadable {
    /// An error with this reason.
    pub(crate) fn new(reason: impl Error + Send + Sync + 'static) -> Self {
        Self(Cause::new(reason))
    }
}
