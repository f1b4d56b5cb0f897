//! The schema of the data file: its migrations, and the checks before anything is written to it.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use sqlx::sqlite::SqliteConnection;
use sqlx::{AssertSqlSafe, Connection, Executor};

use super::data_error::DataError;
use super::lock::beside;

/// Marks a file as one of catchall: `CtAl`. <https://www.sqlite.org/fileformat2.html#application_id>
const APPLICATION_ID: u32 = 0x4374_416c;

/// The files in `migrations/sqlite/`, in order. The version of a file is the number of those it has had.
const MIGRATIONS: [&str; 4] = [
    include_str!("../../../migrations/sqlite/0001_data.sql"),
    include_str!("../../../migrations/sqlite/0002_statuses.sql"),
    include_str!("../../../migrations/sqlite/0003_administration.sql"),
    include_str!("../../../migrations/sqlite/0004_feed.sql"),
];

/// The version of the schema that this build needs.
#[expect(clippy::cast_possible_truncation, reason = "there are not that many migrations")]
const VERSION: u32 = MIGRATIONS.len() as u32;

/// The header at the beginning of every SQLite database: <https://www.sqlite.org/fileformat2.html>.
const HEADER: usize = 100;
const MAGIC: &[u8; 16] = b"SQLite format 3\0";

/// The value of the header's byte 18 in a file that never had a WAL, such as a backup. SQLite changes it as
/// soon as it opens the file to write, before there is a WAL.
const WITHOUT_WAL: u8 = 1;

/// Fails if the file does not belong to catchall, or to a newer version of it. This reads the file's header
/// itself, because SQLite might write to a file that it opens. Call it only while no connection of this
/// process has the file open.
pub(super) fn inspect(path: &Path) -> Result<(), DataError> {
    let foreign = |reason| DataError::Foreign { path: path.to_owned(), reason };
    let mut header = Vec::with_capacity(HEADER);
    let read = File::open(path).and_then(|file| file.take(HEADER as u64).read_to_end(&mut header));
    read.map_err(|error| DataError::of_system(path, error))?;
    if header.len() < HEADER || !header.starts_with(MAGIC) {
        return Err(foreign("it is not an SQLite database"));
    }
    let number = |at: usize| header[at..at + 4].iter().fold(0, |number, byte| number << 8 | u32::from(*byte));
    let (found, application_id) = (number(60), number(68));
    if application_id != APPLICATION_ID {
        return Err(foreign("an SQLite database without the application ID of catchall"));
    }
    known(path, found)?;
    let wal = beside(path, "-wal");
    if header[18] == WITHOUT_WAL && std::fs::metadata(&wal).is_ok_and(|wal| wal.len() > 0) {
        let wal = wal.display();
        let reason = format!("{wal} belongs to another file; if this is a restored backup, move {wal} away");
        return Err(DataError::Damaged { path: path.to_owned(), reason, source: None });
    }
    Ok(())
}

/// Fails if this version of the schema is a newer one.
fn known(path: &Path, found: u32) -> Result<(), DataError> {
    if found > VERSION {
        return Err(DataError::Newer { path: path.to_owned(), found, known: VERSION });
    }
    Ok(())
}

/// Whether the file has had all migrations. The version in its header may be an old one: the version in the
/// WAL counts.
///
/// # Errors
///
/// When it has had more than this build knows, or cannot be read.
pub(super) async fn is_current(path: &Path, connection: &mut SqliteConnection) -> Result<bool, DataError> {
    let version = sqlx::query_scalar("pragma user_version").fetch_one(connection).await;
    let version: u32 = version.map_err(|error| DataError::of_sqlite(path, error))?;
    known(path, version)?;
    Ok(version == VERSION)
}

/// Applies the migrations that the file has not had, each in a transaction.
pub(super) async fn migrate(connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
    let version: u32 = sqlx::query_scalar("pragma user_version").fetch_one(&mut *connection).await?;
    for (number, migration) in (1_u32..).zip(MIGRATIONS).skip(version as usize) {
        let mut transaction = connection.begin_with("begin immediate").await?;
        transaction.execute(migration).await?;
        // A pragma takes no parameters.
        let pragmas = format!("pragma application_id = {APPLICATION_ID}; pragma user_version = {number}");
        transaction.execute(AssertSqlSafe(pragmas)).await?;
        transaction.commit().await?;
    }
    Ok(())
}
