//! The content of a data file, read from one end to the other, for a move to a Postgres.

use std::path::Path;

use sqlx::sqlite::SqliteConnection;
use uuid::Uuid;

use super::data_error::DataError;
use super::data_file::{DataConfig, DataFile, Purpose};
use super::{audit, checkpoint};
use crate::cause::Cause;
use crate::counters::{Counters, Status};
use crate::store::maintenance::AuditEntry;
use crate::utc_time::UtcTime;

/// How far a file has been moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) enum MoveState {
    /// Nothing of it was moved, and no move has begun.
    None,
    /// A move is about to begin. Nothing was moved yet.
    Planned,
    /// Some of it may have been moved.
    Begun,
    /// All of it was moved.
    Done,
}

impl MoveState {
    const ALL: [Self; 4] = [Self::None, Self::Planned, Self::Begun, Self::Done];

    /// The name of the state in the file.
    fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Planned => "planned",
            Self::Begun => "begun",
            Self::Done => "done",
        }
    }
}

/// How far a file has been moved, and where to.
pub(super) async fn state(connection: &mut SqliteConnection) -> Result<(MoveState, String), sqlx::Error> {
    let (name, to): (String, Option<String>) =
        sqlx::query_as("select move_state, moving_to from data_file").fetch_one(connection).await?;
    // The table allows no other name. If there is one, the file must not be served.
    let state = MoveState::ALL.into_iter().find(|state| state.name() == name).unwrap_or(MoveState::Begun);
    Ok((state, to.unwrap_or_default()))
}

/// The status that a domain reached, and when.
#[derive(Clone, Debug)]
pub(in crate::store) struct Noted {
    pub(in crate::store) domain: String,
    pub(in crate::store) status: Status,
    pub(in crate::store) since: UtcTime,
}

/// How far a file was imported.
#[derive(Clone, Debug)]
pub(in crate::store) struct Imported {
    pub(in crate::store) digest: Vec<u8>,
    pub(in crate::store) name: String,
    /// Its bytes and those that are counted, and the rows, delivered and bounced events in these.
    pub(in crate::store) numbers: [i64; 5],
    /// In milliseconds since 1970, as the end.
    pub(in crate::store) begun_at: i64,
    pub(in crate::store) finished_at: Option<i64>,
}

/// A data file that is read as a whole. No other process can use it meanwhile.
#[derive(Debug)]
pub(in crate::store) struct FileExport {
    file: DataFile,
    connection: SqliteConnection,
    /// The identity of the file, which copies of it share.
    pub(in crate::store) id: Uuid,
}

impl FileExport {
    pub(in crate::store) async fn open(config: &DataConfig) -> Result<Self, DataError> {
        let file = DataFile::open_existing(config).await?;
        let mut connection = file.connect(Purpose::Write).await?;
        let id: Result<Vec<u8>, _> =
            sqlx::query_scalar("select id from data_file").fetch_one(&mut connection).await;
        let id = id.map_err(|error| DataError::of_sqlite(&file.path, error))?;
        let id = Uuid::from_slice(&id).map_err(|error| DataError::Damaged {
            path: file.path.clone(),
            reason: error.to_string(),
            source: Some(Cause::new(error)),
        })?;
        Ok(Self { file, connection, id })
    }

    pub(in crate::store) fn path(&self) -> &Path {
        &self.file.path
    }

    pub(in crate::store) async fn state(&mut self) -> Result<(MoveState, String), DataError> {
        let state = state(&mut self.connection).await;
        state.map_err(|error| DataError::of_sqlite(&self.file.path, error))
    }

    /// The threshold by which the domains of the file are classified.
    pub(in crate::store) async fn threshold(&mut self) -> Result<u64, DataError> {
        let threshold = super::reader::threshold(&mut self.connection).await;
        threshold.map_err(|error| DataError::of_sqlite(&self.file.path, error))
    }

    pub(in crate::store) async fn set_state(&mut self, state: MoveState, to: &str) -> Result<(), DataError> {
        let set = sqlx::query("update data_file set move_state = ?, moving_to = ?")
            .bind(state.name())
            .bind(to)
            .execute(&mut self.connection)
            .await;
        set.map(drop).map_err(|error| DataError::of_sqlite(&self.file.path, error))
    }

    /// How many claims and domains there are.
    pub(in crate::store) async fn totals(&mut self) -> Result<(u64, u64), DataError> {
        let counted: Result<(i64, i64), _> = sqlx::query_as(
            "select (select count(*) from event_claims), (select count(*) from domain_counters)",
        )
        .fetch_one(&mut self.connection)
        .await;
        let (claims, domains) = counted.map_err(|error| DataError::of_sqlite(&self.file.path, error))?;
        Ok((claims.unsigned_abs(), domains.unsigned_abs()))
    }

    /// The next claims after `id`, in order, each with the time of its last use in seconds since 1970.
    pub(in crate::store) async fn claims_after(
        &mut self,
        id: Option<Uuid>,
        limit: u32,
    ) -> Result<Vec<(Uuid, i64)>, DataError> {
        let after = id.map(|id| id.as_bytes().to_vec()).unwrap_or_default();
        let rows: Result<Vec<(Vec<u8>, i64)>, _> =
            sqlx::query_as("select id, used_at from event_claims where id > ? order by id limit ?")
                .bind(after)
                .bind(limit)
                .fetch_all(&mut self.connection)
                .await;
        let rows = rows.map_err(|error| DataError::of_sqlite(&self.file.path, error))?;
        let claim = |(id, used_at): (Vec<u8>, i64)| Some((Uuid::from_slice(&id).ok()?, used_at));
        rows.into_iter().map(claim).collect::<Option<_>>().ok_or_else(|| DataError::Damaged {
            path: self.file.path.clone(),
            reason: "a claim's id is not 16 bytes long".into(),
            source: None,
        })
    }

    /// The counters of the next domains after `domain`, in order.
    pub(in crate::store) async fn counters_after(
        &mut self,
        domain: &str,
        limit: u32,
    ) -> Result<Vec<(String, Counters)>, DataError> {
        let rows: Result<Vec<(String, i64, i64)>, _> = sqlx::query_as(
            "select domain, delivered, bounced from domain_counters where domain > ? order by domain limit ?",
        )
        .bind(domain)
        .bind(limit)
        .fetch_all(&mut self.connection)
        .await;
        let rows = rows.map_err(|error| DataError::of_sqlite(&self.file.path, error))?;
        let counters = |(domain, delivered, bounced): (String, i64, i64)| {
            (domain, Counters { delivered: delivered.unsigned_abs(), bounced: bounced.unsigned_abs() })
        };
        Ok(rows.into_iter().map(counters).collect())
    }

    /// The recorded statuses of the domains after one and up to another.
    pub(in crate::store) async fn noted_between(
        &mut self,
        after: &str,
        through: &str,
    ) -> Result<Vec<Noted>, DataError> {
        let rows: Result<Vec<(String, i16, i64)>, _> = sqlx::query_as(
            "select domain, status, since from domain_statuses
            where domain > ? and domain <= ? and status <> 0 order by domain",
        )
        .bind(after)
        .bind(through)
        .fetch_all(&mut self.connection)
        .await;
        let rows = rows.map_err(|error| DataError::of_sqlite(&self.file.path, error))?;
        let noted = |(domain, status, since)| Noted {
            domain,
            status: Status::from_number(status),
            since: UtcTime(since),
        };
        Ok(rows.into_iter().map(noted).collect())
    }

    /// The files that were imported, completely or in part.
    pub(in crate::store) async fn imports(&mut self) -> Result<Vec<Imported>, DataError> {
        type Row = (Vec<u8>, String, i64, i64, i64, i64, i64, i64, Option<i64>);
        let rows: Result<Vec<Row>, _> = sqlx::query_as(
            "select digest, name, bytes, bytes_through, rows, delivered, bounced, begun_at, finished_at
            from imports",
        )
        .fetch_all(&mut self.connection)
        .await;
        let rows = rows.map_err(|error| DataError::of_sqlite(&self.file.path, error))?;
        let imported = |(digest, name, bytes, through, rows, delivered, bounced, begun_at, finished_at)| {
            let numbers = [bytes, through, rows, delivered, bounced];
            Imported { digest, name, numbers, begun_at, finished_at }
        };
        Ok(rows.into_iter().map(imported).collect())
    }

    /// The audit log, the oldest entry first.
    pub(in crate::store) async fn audit(&mut self) -> Result<Vec<AuditEntry>, DataError> {
        let read = audit::read(&mut self.connection, u32::MAX).await;
        let mut entries = read.map_err(|error| DataError::of_sqlite(&self.file.path, error))?;
        entries.reverse();
        Ok(entries)
    }

    /// Copies the WAL into the file.
    pub(in crate::store) async fn close(self) {
        checkpoint::finish(&self.file).await;
    }
}
