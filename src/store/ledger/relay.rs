//! Whose turn it is to publish changes, and how far the relay has come.

use std::time::Duration;

use sqlx::PgPool;

use super::apply::Ledger;
use crate::position::Place;
use crate::store::postgres::DatabaseError;
use crate::store::{Portion, feed};

/// The turn of a worker to publish changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelayTurn {
    /// All changes up to here have been published.
    pub place: Place,
}

/// The changes that have not been published yet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Relayed {
    /// Changes that wait to be published, at most a hundred thousand.
    pub waiting: i64,
    /// The last change, whether it waits or not.
    pub last: Place,
}

/// Most changes that are counted as waiting: counting more would take time and tell nothing new.
pub(super) const WAITING: i64 = 100_000;

/// No worker waits for the row: one without the turn finds no row to update.
const TAKE: &str = "\
-- catchall: take the turn to publish changes
update change_relay set holder = $1, held_until = now() + make_interval(secs => $2)
where holder = $1 or held_until < now() or held_until > now() + make_interval(secs => 10 * $2)
returning changed_in, domain";

const END: &str = "\
-- catchall: end the turn to publish changes
update change_relay set holder = null, held_until = now() where holder = $1";

const MOVE: &str = "\
-- catchall: note how far changes are published
update change_relay set changed_in = $2, domain = $3, held_until = now() + make_interval(secs => $4)
where holder = $1
returning true";

const WAIT: &str = "\
-- catchall: look at changes that wait to be published
select changed_in, domain,
    (select count(*)
    from (select 1 from domain_statuses where (changed_in, domain) > ($1, $2)
        order by changed_in, domain limit $3) as waiting)
from domain_statuses order by changed_in desc, domain desc limit 1";

impl Ledger {
    /// Takes or keeps the turn to publish changes for this time. `None`: another worker has it.
    ///
    /// # Errors
    ///
    /// When the database is unavailable.
    pub async fn take_relay(&self, lasts: Duration) -> Result<Option<RelayTurn>, DatabaseError> {
        let holder = self.writer;
        let take = async move |pool: PgPool| {
            sqlx::query_as(TAKE).bind(holder).bind(lasts.as_secs_f64()).fetch_optional(&pool).await
        };
        let row: Option<(i64, String)> = self.database.run(self.timeout, take).await?;
        Ok(row.map(|(transaction, domain)| RelayTurn { place: Place { transaction, domain } }))
    }

    /// Ends the turn to publish changes, if this worker has it: another one may begin at once.
    ///
    /// # Errors
    ///
    /// When the database is unavailable.
    pub async fn end_relay(&self) -> Result<(), DatabaseError> {
        let holder = self.writer;
        let end = async move |pool: PgPool| sqlx::query(END).bind(holder).execute(&pool).await;
        self.database.run(self.timeout, end).await.map(drop)
    }

    /// The next changes after a place, at most `limit`.
    ///
    /// # Errors
    ///
    /// When the database is unavailable.
    pub async fn changes(&self, after: &Place, limit: u32) -> Result<Portion, DatabaseError> {
        let after = after.clone();
        self.database.run(self.timeout, async move |pool| feed::read(&pool, &after, limit).await).await
    }

    /// Records that all changes up to here are published, and keeps the turn. `false`: another worker has
    /// taken it meanwhile.
    ///
    /// # Errors
    ///
    /// When the database is unavailable.
    pub async fn move_relay(&self, to: &Place, lasts: Duration) -> Result<bool, DatabaseError> {
        let (holder, to) = (self.writer, to.clone());
        let note = async move |pool: PgPool| {
            sqlx::query_scalar(MOVE)
                .bind(holder)
                .bind(to.transaction)
                .bind(to.domain)
                .bind(lasts.as_secs_f64())
                .fetch_optional(&pool)
                .await
        };
        let moved: Option<bool> = self.database.run(self.timeout, note).await?;
        Ok(moved.is_some())
    }

    /// Looks at what waits to be published after a place.
    ///
    /// # Errors
    ///
    /// When the database is unavailable.
    pub async fn relayed(&self, after: &Place) -> Result<Relayed, DatabaseError> {
        let after = after.clone();
        let look = async move |pool: PgPool| {
            sqlx::query_as(WAIT)
                .bind(after.transaction)
                .bind(after.domain)
                .bind(WAITING)
                .fetch_optional(&pool)
                .await
        };
        let row: Option<(i64, String, i64)> = self.database.run(self.timeout, look).await?;
        Ok(row.map_or_else(Relayed::default, |(transaction, domain, waiting)| Relayed {
            waiting,
            last: Place { transaction, domain },
        }))
    }
}
