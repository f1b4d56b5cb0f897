//! The errors of the data file.

use std::path::{Path, PathBuf};

use crate::cause::Cause;
use crate::excerpt::excerpt;
use crate::process::ExitError;

/// Why a data file cannot be used. Each kind ends the process with a different exit status.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// There is no such directory.
    #[error("the directory of the data file {0} does not exist: create it, or choose another with --data")]
    NoDirectory(PathBuf),
    /// There is no such file.
    #[error("the data file {0} does not exist")]
    Missing(PathBuf),
    /// This user may not write to the directory or the file.
    #[error("the data file {path} cannot be written: {reason}")]
    NotWritable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        reason: String,
        /// The error, if it was one.
        source: Option<Cause>,
    },
    /// The file belongs to another program.
    #[error("{path} belongs to another program ({reason}); it was left unchanged")]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What it is instead.
        reason: &'static str,
    },
    /// SQLite cannot read the file.
    #[error("the data file {path} is damaged ({reason}): restore a backup")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What SQLite or the check said.
        reason: String,
        /// The error, if it was one.
        source: Option<Cause>,
    },
    /// A later build has written the file.
    #[error(
        "the data file {path} comes from a newer catchall (its schema is {found}, this build knows {known}); \
         it was left unchanged"
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// The version of its schema.
        found: u32,
        /// The latest version that this build knows.
        known: u32,
    },
    /// Another process holds the file.
    #[error("the data file {path} is in use by another process (pid {pid})")]
    InUse {
        /// The file.
        path: PathBuf,
        /// The process, as it wrote it down.
        pid: String,
    },
    /// The disk is full.
    #[error("the disk of the data file {0} is full")]
    Full(PathBuf, #[source] Cause),
    /// The file is on a file system on which processes cannot share memory.
    #[error(
        "the data file {path} is on a network file system ({kind}), where SQLite's WAL is not safe: choose a \
         local directory with --data"
    )]
    Network {
        /// The file.
        path: PathBuf,
        /// The file system's type.
        kind: String,
    },
    /// The content went to a Postgres.
    #[error("the content of {path} {state} to {to}: it is no longer served")]
    Moved {
        /// The file.
        path: PathBuf,
        /// Whether all of it was moved.
        state: &'static str,
        /// Where to.
        to: String,
    },
    /// Anything else.
    #[error("the data file {path} cannot be used: {reason}")]
    Other {
        /// The file.
        path: PathBuf,
        /// What the system or SQLite said.
        reason: String,
        /// The error, if it was one.
        source: Option<Cause>,
    },
}

/// SQLite's result codes, without the extension in their upper bytes.
/// <https://www.sqlite.org/rescode.html>
mod code {
    pub(super) const PERM: i32 = 3;
    pub(super) const BUSY: i32 = 5;
    pub(super) const READONLY: i32 = 8;
    pub(super) const IOERR: i32 = 10;
    pub(super) const CORRUPT: i32 = 11;
    pub(super) const FULL: i32 = 13;
    pub(super) const CANTOPEN: i32 = 14;
    pub(super) const NOTADB: i32 = 26;
    /// With its extension: the index to the WAL could not grow.
    pub(super) const IOERR_SHMSIZE: i32 = 4874;
}

fn code(error: &sqlx::Error) -> Option<i32> {
    let code: i32 = error.as_database_error()?.code()?.parse().ok()?;
    Some(if code == code::IOERR_SHMSIZE { code } else { code & 0xff })
}

/// Whether a commit that failed with this has certainly counted nothing: the disk was full before the record
/// that ends a transaction, or the transaction did not begin.
pub(super) fn is_certain(error: &sqlx::Error) -> bool {
    matches!(code(error), Some(code::FULL | code::BUSY))
}

/// Whether another process holds the file temporarily.
pub(super) fn is_busy(error: &sqlx::Error) -> bool {
    code(error) == Some(code::BUSY)
}

/// The sentence for an error of SQLite: its own, without the words around it. The sentence for an I/O error
/// is always the same; only the code tells which call failed.
pub(super) fn describe(error: &sqlx::Error) -> String {
    let Some(reported) = error.as_database_error() else { return error.to_string() };
    match (code(error), reported.code()) {
        (Some(code::FULL | code::IOERR_SHMSIZE), _) => "the disk is full".into(),
        (Some(code::IOERR), Some(extended)) => format!("{} (SQLite {extended})", reported.message()),
        _ => reported.message().into(),
    }
}

/// An error of SQLite in [the words](describe) that operators read.
#[derive(Debug, thiserror::Error)]
#[error("{}", describe(.0))]
pub(super) struct SqliteError(#[source] pub(super) sqlx::Error);

impl DataError {
    /// The error for the file at `path` that an error of SQLite means.
    pub(super) fn of_sqlite(path: &Path, error: sqlx::Error) -> Self {
        let (path, reason, code) = (path.to_owned(), describe(&error), code(&error));
        let cause = Cause::new(error);
        match code {
            Some(code::FULL | code::IOERR_SHMSIZE) => Self::Full(path, cause),
            Some(code::CORRUPT | code::NOTADB) => Self::Damaged { path, reason, source: Some(cause) },
            Some(code::PERM | code::READONLY | code::CANTOPEN) => {
                Self::NotWritable { path, reason, source: Some(cause) }
            }
            _ => Self::Other { path, reason, source: Some(cause) },
        }
    }

    /// The error for the file at `path` that an error of the operating system means.
    pub(super) fn of_system(path: &Path, error: std::io::Error) -> Self {
        use std::io::ErrorKind;
        let (path, reason, kind) = (path.to_owned(), error.to_string(), error.kind());
        let cause = Cause::new(error);
        match kind {
            ErrorKind::NotFound | ErrorKind::NotADirectory => Self::NoDirectory(path),
            ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem | ErrorKind::IsADirectory => {
                Self::NotWritable { path, reason, source: Some(cause) }
            }
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Self::Full(path, cause),
            _ => Self::Other { path, reason, source: Some(cause) },
        }
    }

    /// A name in the file that is not a domain name.
    pub(in crate::store) fn invalid_domain(path: &Path, name: &str) -> Self {
        let reason = excerpt(format_args!("{name:?} is not a domain name"));
        Self::Damaged { path: path.to_owned(), reason, source: None }
    }

    /// The exit status of a process that ends because of this. They are listed in `catchall --help`.
    #[must_use]
    pub fn exit_status(&self) -> u8 {
        match self {
            Self::Other { .. } => 1,
            Self::NoDirectory(_) | Self::Missing(_) => 10,
            Self::NotWritable { .. } => 11,
            Self::Foreign { .. } => 12,
            Self::Damaged { .. } => 13,
            Self::Newer { .. } => 14,
            Self::InUse { .. } => 15,
            Self::Full(..) => 16,
            Self::Network { .. } => 17,
            Self::Moved { .. } => 18,
        }
    }
}

impl From<DataError> for ExitError {
    fn from(error: DataError) -> Self {
        Self::of(error.exit_status(), error)
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error;

    use sqlx::Connection;
    use sqlx::sqlite::SqliteConnection;

    use super::*;

    #[tokio::test]
    async fn it_leads_to_what_was_reported_and_shows_no_more_than_its_sentences() {
        let path = Path::new("/data/catchall.db");
        // The system lets nobody read what is at the beginning of the memory of a process.
        let reported = SqliteConnection::connect("sqlite:/proc/self/mem?mode=ro").await.unwrap_err();
        let sentence = reported.to_string();
        let error = DataError::of_sqlite(path, reported);
        let (said, shown) = (error.to_string(), format!("{error:?}"));
        assert!(
            said.starts_with("the data file /data/catchall.db cannot be used: disk I/O error (SQLite "),
            "{said}"
        );
        assert!(shown.contains(&format!("Some({sentence})")), "{shown}");
        let driver = error.source().and_then(Error::source).unwrap();
        assert!(driver.is::<sqlx::Error>(), "{driver}");
        let full = DataError::of_system(path, std::io::ErrorKind::StorageFull.into());
        assert!(full.source().and_then(Error::source).is_some_and(<dyn Error>::is::<std::io::Error>));
        let ended = ExitError::from(full);
        assert_eq!(
            (ended.status, ended.to_string()),
            (16, "the disk of the data file /data/catchall.db is full".into())
        );
        assert!(ended.source().and_then(Error::source).is_some_and(<dyn Error>::is::<DataError>));
    }
}
