//! How late the replica is, and by which threshold it answers.

use std::time::Duration;

use sqlx::PgPool;

use super::READ_TIMEOUT;
use super::row::count;
use crate::store::Standing;
use crate::store::postgres::{Database, DatabaseError};

/// How late a replica is: `lag_seconds` is how old answers may be at most. It is zero on a primary, and on a
/// replica that is connected and has replayed all it received. Otherwise it is the time since the last replayed
/// transaction, which overstates the lag if the primary is idle. `receives` says whether it is connected to its
/// primary.
macro_rules! lag {
    () => {
        "(select case when not standby or (receiving and pg_last_wal_receive_lsn() = pg_last_wal_replay_lsn()) then 0
        else extract(epoch from now() - coalesce(pg_last_xact_replay_timestamp(), pg_postmaster_start_time()))
    end::float8 as lag_seconds,
    receiving or not standby as receives
from (select pg_is_in_recovery() as standby,
    -- Everybody may see the pid in this view, and no other column.
    exists (select from pg_stat_wal_receiver where pid is not null) as receiving) as state) as lag"
    };
}

/// `read_only` says whether the session can only read.
pub(super) const LOOK: &str = concat!(
    "-- catchall: look at the replica
select lag_seconds, receives, current_setting('transaction_read_only')::bool as read_only from ",
    lag!()
);

const READ: &str = concat!(
    "-- catchall: read the standing
select threshold, lag_seconds from classification, ",
    lag!()
);

pub(super) async fn read(database: &Database) -> Result<Standing, DatabaseError> {
    let read = async |pool: PgPool| sqlx::query_as::<_, (i64, f64)>(READ).fetch_one(&pool).await;
    let (threshold, lag) = database.run(READ_TIMEOUT, read).await?;
    let lag = Duration::try_from_secs_f64(lag).unwrap_or_default();
    Ok(Standing { threshold: count(threshold), lag: Some(lag) })
}
