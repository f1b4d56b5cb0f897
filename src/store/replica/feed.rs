//! The feed of changes, on the replica.

use super::row::READ_TIMEOUT;
use crate::position::{Place, Position};
use crate::store::Portion;
use crate::store::feed;
use crate::store::postgres::{Database, DatabaseError};

/// The next changes after a place.
pub(super) async fn read(database: &Database, after: &Place, limit: u32) -> Result<Portion, DatabaseError> {
    let after = after.clone();
    database.run(READ_TIMEOUT, async move |pool| feed::read(&pool, &after, limit).await).await
}

/// The latest changes, the latest first.
pub(super) async fn latest(database: &Database, limit: u32) -> Result<Portion, DatabaseError> {
    database.run(READ_TIMEOUT, async move |pool| feed::latest(&pool, limit).await).await
}

/// The present end of the feed.
pub(super) async fn last_change(database: &Database) -> Result<Position, DatabaseError> {
    database.run(READ_TIMEOUT, async |pool| feed::last_change(&pool).await).await
}

/// Before all changes that are still to come.
pub(super) async fn head(database: &Database) -> Result<Position, DatabaseError> {
    database.run(READ_TIMEOUT, async |pool| feed::head(&pool).await).await
}
