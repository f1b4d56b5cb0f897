//! Pruning: claims that were not used for the length of the retention are deleted.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sqlx::sqlite::SqliteConnection;
use tokio::time::Instant;

use super::totals;
use crate::store::EventRetention;

/// Claims that one step checks. It takes some milliseconds, so others wait only briefly.
const STEP: i64 = 2_000;

/// A step is followed by this many times its own duration in which the writer is free.
const PAUSE: u32 = 20;

/// Walks through all claims per retention. Claims live longer by one walk.
const WALKS: u32 = 24;

const NEXT: &str = "\
-- catchall: find the end of a step
select max(id) from (select id from event_claims where id > ? order by id limit ?)";

const PRUNE: &str = "\
-- catchall: prune claims
delete from event_claims where id > ? and id <= ? and used_at < ?";

/// Walks through the claims in the order of their ids, a step at a time, again and again.
#[derive(Debug)]
pub(super) struct FilePruning {
    retention: Duration,
    /// The walk has come this far.
    position: Vec<u8>,
    /// When the walk began.
    began: Instant,
    /// When the next step is due.
    pub(super) due: Instant,
}

impl FilePruning {
    pub(super) fn new(retention: &EventRetention) -> Self {
        let now = Instant::now();
        Self { retention: retention.duration(), position: Vec::new(), began: now, due: now }
    }

    /// Prunes some claims and returns how many.
    pub(super) async fn step(&mut self, connection: &mut SqliteConnection) -> Result<u64, sqlx::Error> {
        let begun = Instant::now();
        let next: Option<Vec<u8>> =
            sqlx::query_scalar(NEXT).bind(&self.position).bind(STEP).fetch_one(&mut *connection).await?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let Some(next) = next else {
            // Once for each walk is often enough.
            totals::fold(connection, i64::try_from(now.as_secs()).unwrap_or(i64::MAX)).await?;
            self.position.clear();
            let walk = (self.retention / WALKS).clamp(Duration::from_secs(1), Duration::from_hours(1));
            self.due = begun.max(self.began + walk);
            self.began = self.due;
            return Ok(0);
        };
        let kept = i64::try_from(now.saturating_sub(self.retention).as_secs()).unwrap_or(i64::MAX);
        let pruned =
            sqlx::query(PRUNE).bind(&self.position).bind(&next).bind(kept).execute(connection).await?;
        self.position = next;
        self.due = Instant::now() + begun.elapsed() * PAUSE;
        Ok(pruned.rows_affected())
    }
}
