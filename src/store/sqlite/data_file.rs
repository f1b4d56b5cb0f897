//! The data file, its lock, and connections to it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection};

use super::data_error::DataError;
use super::lock::{Lock, beside};
use super::{mount, schema, statuses};

/// Bytes of a page: see `migrations/sqlite/0001_data.sql`.
const PAGE: u32 = 1024;

/// How long a connection waits for the locks of another one. Writers take turns and readers never wait, so
/// only another program can hold a lock for this long.
const BUSY_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a checkpoint waits for readers to leave the WAL, while the writer waits for the checkpoint. A
/// look-up takes less.
const READER_TIMEOUT: Duration = Duration::from_millis(50);

/// Pages of a WAL that a maintenance tool copies into the file: while no process serves the file, no other
/// one does it. The serving process keeps the WAL shorter.
const LONG_WAL: u32 = 128 * 1024;

/// Where the data is.
#[derive(Clone, Debug, clap::Args)]
#[group(skip)]
pub struct DataConfig {
    /// The file with all data, created if it does not exist. Beside it are its WAL (-wal), the index of the
    /// WAL (-shm) and the lock (.lock). It must be on a local file system
    #[arg(long, env = "CATCHALL_DATA", value_name = "FILE", default_value = "./catchall.db")]
    pub data: PathBuf,
}

impl DataConfig {
    /// The absolute path of the file: two names of the same file give the same path.
    ///
    /// # Errors
    ///
    /// When its directory does not exist, or is on a network file system.
    pub fn path(&self) -> Result<PathBuf, DataError> {
        let path = self.absolute_path()?;
        match path.parent().and_then(mount::network) {
            Some(kind) => Err(DataError::Network { path, kind }),
            None => Ok(path),
        }
    }

    /// The same for a file that may be anywhere.
    pub(super) fn absolute_path(&self) -> Result<PathBuf, DataError> {
        // The file itself may be a link to somewhere else.
        let path = match self.data.canonicalize() {
            Ok(path) => path,
            Err(_) => absent(&self.data)?,
        };
        if path.is_dir() {
            let reason = "it is a directory".into();
            return Err(DataError::NotWritable { path, reason, source: None });
        }
        Ok(path)
    }
}

/// The absolute path of a file that does not exist yet.
fn absent(file: &Path) -> Result<PathBuf, DataError> {
    // A new file in place of the link would hide the data when the target of the link is there again.
    if let Ok(target) = fs::read_link(file) {
        let reason = format!("it is a link to {}, which does not exist", target.display());
        return Err(DataError::NotWritable { path: file.to_owned(), reason, source: None });
    }
    let parent = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let directory = parent.canonicalize().map_err(|error| DataError::of_system(file, error))?;
    let name = file.file_name().ok_or_else(|| DataError::NoDirectory(file.to_owned()))?;
    Ok(directory.join(name))
}

/// The purpose of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Bringing the file up to date before anything is counted. It has a WAL or not, as before.
    Prepare,
    /// Counting and pruning.
    Write,
    /// Counting beside the process that serves the file, or while none does.
    Maintain,
    /// Reclassifying beside the writer of the same process: it passes each page once.
    Walk,
    /// Copying the WAL into the file.
    Checkpoint,
    /// Looking up counters, or all of the file.
    Read,
}

/// A data file that belongs to this process.
#[derive(Debug)]
pub(super) struct DataFile {
    pub(super) path: PathBuf,
    _lock: Lock,
}

impl DataFile {
    /// Takes the file for this process and brings its schema up to date; creates it if it does not exist.
    pub(super) async fn open(config: &DataConfig) -> Result<Self, DataError> {
        let path = config.path()?;
        let lock = Lock::acquire(&path)?;
        if !exists(&path) {
            create(&path).await?;
        }
        Self::with(path, lock).await
    }

    /// Takes the file for this process and brings its schema up to date.
    pub(super) async fn open_existing(config: &DataConfig) -> Result<Self, DataError> {
        let path = existing(config)?;
        let lock = Lock::acquire(&path)?;
        Self::with(path, lock).await
    }

    async fn with(path: PathBuf, lock: Lock) -> Result<Self, DataError> {
        schema::inspect(&path)?;
        // SQLite would open a file without permission to write, and then refuse each event.
        let writable = fs::OpenOptions::new().write(true).open(&path);
        writable.map_err(|error| DataError::of_system(&path, error))?;
        // Read only, so that a file that is too new stays unchanged.
        let is_current = schema::is_current(&path, &mut connect(&path, Purpose::Read).await?).await?;
        let file = Self { path, _lock: lock };
        prepare(&file.path, is_current).await?;
        // Tells now whether the file can be written with a WAL.
        file.connect(Purpose::Write).await?;
        Ok(file)
    }

    /// Opens a connection.
    pub(super) async fn connect(&self, purpose: Purpose) -> Result<SqliteConnection, DataError> {
        connect(&self.path, purpose).await
    }
}

/// Brings the schema up to date. A file that has never had a WAL, by its header, is new or a
/// [copy](super::back_up), and gets a new feed. This does not give it one, so if the process is killed before
/// it has one, the next run does the same again.
async fn prepare(path: &Path, is_current: bool) -> Result<(), DataError> {
    let failed = |error: sqlx::Error| DataError::of_sqlite(path, error);
    let mut connection = connect(path, Purpose::Prepare).await?;
    if !is_current {
        schema::migrate(&mut connection).await.map_err(failed)?;
    }
    let mode = sqlx::query_scalar("pragma journal_mode").fetch_one(&mut connection).await;
    let mode: String = mode.map_err(failed)?;
    if mode != "wal" {
        let renew = "-- catchall: begin another feed
            update data_file set feed = random() & 4294967295";
        sqlx::raw_sql(renew).execute(&mut connection).await.map_err(failed)?;
    }
    connection.close().await.map_err(failed)
}

/// The path of a file that must exist and that another process may serve. If nobody does, its schema is
/// brought up to date.
pub(super) async fn existing_current(config: &DataConfig) -> Result<PathBuf, DataError> {
    let path = existing(config)?;
    schema::inspect(&path)?;
    if !schema::is_current(&path, &mut connect(&path, Purpose::Read).await?).await? {
        let _lock = Lock::acquire(&path)?;
        prepare(&path, false).await?;
    }
    Ok(path)
}

/// Opens a connection that counts to a file that another process may serve.
pub(super) async fn connect_prepared(config: &DataConfig) -> Result<(PathBuf, SqliteConnection), DataError> {
    let path = existing_current(config).await?;
    // A file that is served has its WAL already.
    prepare(&path, true).await?;
    let failed = |error: sqlx::Error| DataError::of_sqlite(&path, error);
    let mut connection = connect(&path, Purpose::Maintain).await?;
    statuses::prepare(&mut connection).await.map_err(failed)?;
    Ok((path, connection))
}

fn exists(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|file| file.len() > 0)
}

/// The path of a file that must exist.
pub(super) fn existing(config: &DataConfig) -> Result<PathBuf, DataError> {
    let path = config.path()?;
    if exists(&path) { Ok(path) } else { Err(DataError::Missing(path)) }
}

/// Opens a connection to the file at `path`, which must exist.
pub(super) async fn connect(path: &Path, purpose: Purpose) -> Result<SqliteConnection, DataError> {
    let cache_kib = match purpose {
        Purpose::Write | Purpose::Maintain => 64 * 1024,
        Purpose::Prepare | Purpose::Checkpoint => 64,
        Purpose::Walk | Purpose::Read => 8 * 1024,
    };
    let reads = purpose == Purpose::Read;
    let options = SqliteConnectOptions::new().filename(path).read_only(reads);
    let is_as_before = reads || purpose == Purpose::Prepare;
    let options = if is_as_before { options } else { options.journal_mode(SqliteJournalMode::Wal) };
    let checkpoint = if purpose == Purpose::Maintain { LONG_WAL } else { 0 };
    let options = options
        // A commit returns when its WAL is on the disk.
        .synchronous(SqliteSynchronous::Full)
        // Where fsync does not reach the disk itself, as on macOS.
        .pragma("fullfsync", "on")
        .pragma("checkpoint_fullfsync", "on")
        .pragma("wal_autocheckpoint", checkpoint.to_string())
        .pragma("cache_size", format!("-{cache_kib}"))
        .pragma("temp_store", "memory")
        .busy_timeout(if purpose == Purpose::Checkpoint { READER_TIMEOUT } else { BUSY_TIMEOUT })
        .disable_statement_logging();
    options.connect().await.map_err(|error| DataError::of_sqlite(path, error))
}

/// Creates the file under another name and renames it, so that it is there with its schema or not at all.
async fn create(path: &Path) -> Result<(), DataError> {
    let wal = beside(path, "-wal");
    if exists(&wal) {
        // SQLite would take it for the WAL of the new file.
        let reason = format!("the file is missing, but its WAL {} exists", wal.display());
        return Err(DataError::Damaged { path: path.to_owned(), reason, source: None });
    }
    let failed = |error: std::io::Error| DataError::of_system(path, error);
    let new = beside(path, ".new");
    for leftover in [&new, &beside(&new, "-journal")] {
        match fs::remove_file(leftover) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
    }
    let made = async {
        let options = SqliteConnectOptions::new().filename(&new).create_if_missing(true).page_size(PAGE);
        let mut connection = options.disable_statement_logging().connect().await?;
        schema::migrate(&mut connection).await?;
        connection.close().await
    };
    made.await.map_err(|error| DataError::of_sqlite(path, error))?;
    let directory = path.parent().unwrap_or(Path::new("/"));
    let renamed = fs::rename(&new, path).and_then(|()| fs::File::open(directory)?.sync_all());
    renamed.map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn text(connection: &mut SqliteConnection, pragma: &'static str) -> String {
        let value: String = sqlx::query_scalar(pragma).fetch_one(connection).await.unwrap();
        value
    }

    async fn number(connection: &mut SqliteConnection, pragma: &'static str) -> i64 {
        sqlx::query_scalar(pragma).fetch_one(connection).await.unwrap()
    }

    #[tokio::test]
    async fn a_commit_waits_for_the_disk_and_sqlite_is_built_as_it_should_be() {
        let directory = std::env::temp_dir().join(format!("catchall-{}", uuid::Uuid::now_v7()));
        fs::create_dir(&directory).unwrap();
        let file = DataFile::open(&DataConfig { data: directory.join("catchall.db") }).await.unwrap();
        for purpose in [Purpose::Write, Purpose::Checkpoint, Purpose::Read] {
            let connection = &mut file.connect(purpose).await.unwrap();
            assert_eq!(text(connection, "pragma journal_mode").await, "wal");
            assert_eq!(number(connection, "pragma synchronous").await, 2, "full");
            assert_eq!(number(connection, "pragma wal_autocheckpoint").await, 0);
            assert_eq!(number(connection, "pragma page_size").await, i64::from(PAGE));
            let written = sqlx::raw_sql("update data_file set moving_to = null").execute(connection).await;
            assert_eq!(written.is_err(), purpose == Purpose::Read);
        }
        let connection = &mut file.connect(Purpose::Read).await.unwrap();
        let built: Vec<String> =
            sqlx::query_scalar("pragma compile_options").fetch_all(connection).await.unwrap();
        let has = |option: &str| built.iter().any(|built| built == option);
        assert!(has("DEFAULT_MEMSTATUS=0") && has("OMIT_LOAD_EXTENSION"), "{built:?}");
        assert!(!has("ENABLE_MEMORY_MANAGEMENT") && !has("ENABLE_FTS5"), "{built:?}");
        fs::remove_dir_all(&directory).unwrap();
    }
}
