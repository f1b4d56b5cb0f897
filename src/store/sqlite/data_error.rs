//! What can be wrong with the data file.

use std::path::{Path, PathBuf};

use crate::excerpt::excerpt;
use crate::process::ExitError;

/// Why a data file cannot be used. Each kind ends the process with an exit status of its own.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// There is no such directory.
    #[error("the directory of the data file {0} does not exist: create it, or choose another with --data")]
    NoDirectory(PathBuf),
    /// There is no such file.
    #[error("the data file {0} does not exist")]
    Missing(PathBuf),
    /// The directory or the file does not let this user write.
    #[error("the data file {path} cannot be written: {reason}")]
    NotWritable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// The file is something else.
    #[error("{path} belongs to another program ({reason}); it was left as it is")]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What it is instead.
        reason: &'static str,
    },
    /// SQLite cannot make sense of the file.
    #[error("the data file {path} is damaged ({reason}): restore a backup")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What SQLite or the check said.
        reason: String,
    },
    /// A later build has written the file.
    #[error(
        "the data file {path} comes from a newer catchall (its schema is {found}, this build knows {known}); \
         it was left as it is"
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
    /// There is no room.
    #[error("the disk of the data file {0} is full")]
    Full(PathBuf),
    /// The file is where processes do not share memory.
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
    #[error("the content of {path} {state} to {to}: it is not served any more")]
    Moved {
        /// The file.
        path: PathBuf,
        /// Whether all of it has gone.
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
    },
}

/// SQLite's result codes, without the extension in their upper bytes.
/// <https://www.sqlite.org/rescode.html>
mod code {
    pub(super) const PERM: i32 = 3;
    pub(super) const BUSY: i32 = 5;
    pub(super) const READONLY: i32 = 8;
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

/// Whether a commit that failed with this is certain to have written nothing that counts: the disk was full
/// before the record that ends a transaction, or the transaction did not begin.
pub(super) fn is_certain(error: &sqlx::Error) -> bool {
    matches!(code(error), Some(code::FULL | code::BUSY))
}

/// Whether another process has the file for a moment.
pub(super) fn is_busy(error: &sqlx::Error) -> bool {
    code(error) == Some(code::BUSY)
}

/// The sentence for an error of SQLite: its own, without the words around it.
pub(super) fn describe(error: &sqlx::Error) -> String {
    match code(error) {
        Some(code::FULL | code::IOERR_SHMSIZE) => "the disk is full".into(),
        _ => error.as_database_error().map_or_else(|| error.to_string(), |error| error.message().into()),
    }
}

impl DataError {
    /// What an error of SQLite means for the file at `path`.
    pub(super) fn of_sqlite(path: &Path, error: &sqlx::Error) -> Self {
        let (path, reason) = (path.to_owned(), describe(error));
        match code(error) {
            Some(code::CORRUPT | code::NOTADB) => Self::Damaged { path, reason },
            Some(code::FULL | code::IOERR_SHMSIZE) => Self::Full(path),
            Some(code::PERM | code::READONLY | code::CANTOPEN) => Self::NotWritable { path, reason },
            _ => Self::Other { path, reason },
        }
    }

    /// What an error of the operating system means for the file at `path`.
    pub(super) fn of_system(path: &Path, error: &std::io::Error) -> Self {
        use std::io::ErrorKind;
        let (path, reason) = (path.to_owned(), error.to_string());
        match error.kind() {
            ErrorKind::NotFound | ErrorKind::NotADirectory => Self::NoDirectory(path),
            ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem | ErrorKind::IsADirectory => {
                Self::NotWritable { path, reason }
            }
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Self::Full(path),
            _ => Self::Other { path, reason },
        }
    }

    /// A name in the file that is none.
    pub(in crate::store) fn invalid_domain(path: &Path, name: &str) -> Self {
        let reason = excerpt(format_args!("{name:?} is not a domain name"));
        Self::Damaged { path: path.to_owned(), reason }
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
            Self::Full(_) => 16,
            Self::Network { .. } => 17,
            Self::Moved { .. } => 18,
        }
    }
}

impl From<DataError> for ExitError {
    fn from(error: DataError) -> Self {
        Self { status: error.exit_status(), sentence: error.to_string() }
    }
}
