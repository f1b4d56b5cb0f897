//! How far the replica is behind, and the threshold of its answers.

use std::time::Duration;

use sqlx::PgPool;

use super::row::READ_TIMEOUT;
use super::row::count;
use crate::store::Standing;
use crate::store::postgres::{Database, DatabaseError};

/// `lag_seconds` is how old responses may be at most. It is zero on a primary, and on a replica that is
/// connected and has replayed all it received. Otherwise it is the time since the last replayed transaction,
/// which overstates the lag if the primary is idle. `receiving` says whether the replica is connected to its
/// primary, `read_only` whether the session can only read.
pub(super) const LOOK: &str = "\
-- catchall: look at the replica
select
    case when not standby or (receiving and pg_last_wal_receive_lsn() = pg_last_wal_replay_lsn()) then 0
        else extract(epoch from now() - coalesce(pg_last_xact_replay_timestamp(), pg_postmaster_start_time()))
    end::float8 as lag_seconds,
    receiving or not standby as receiving,
    current_setting('transaction_read_only')::bool as read_only,
    threshold
from classification, (select pg_is_in_recovery() as standby,
    -- Everybody may see the pid in this view, and no other column.
    exists (select from pg_stat_wal_receiver where pid is not null) as receiving) as state";

/// The result of [`LOOK`].
pub(super) type Look = (f64, bool, bool, i64);

/// The threshold of the replica's answers, and how old they can be.
pub(super) async fn read(database: &Database) -> Result<Standing, DatabaseError> {
    let read = async |pool: PgPool| sqlx::query_as::<_, Look>(LOOK).fetch_one(&pool).await;
    let (lag_seconds, _, _, threshold) = database.run(READ_TIMEOUT, read).await?;
    let lag = Duration::try_from_secs_f64(lag_seconds).unwrap_or_default();
    Ok(Standing { threshold: count(threshold), lag: Some(lag) })
}
