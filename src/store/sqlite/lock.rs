//! The lock that gives a data file to one process.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use super::data_error::DataError;

/// Holds a data file for this process until it is dropped, or the process ends in any way.
///
/// It is a separate file: a process that closed another descriptor of the data file itself would lose
/// SQLite's locks on it. The file stays when the lock is gone, because a process that removed it could remove
/// a file that another one has just locked.
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock of the data file at `data`.
    pub(super) fn acquire(data: &Path) -> Result<Self, DataError> {
        let path = beside(data, ".lock");
        let failed = |error: std::io::Error| DataError::of_system(data, error);
        let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let mut file = opened.map_err(failed)?;
        match take(&file) {
            Ok(true) => {}
            Ok(false) => {
                let mut pid = String::new();
                // Its holder may not have written it yet.
                let _ = file.read_to_string(&mut pid);
                let pid = if pid.is_empty() { "unknown".into() } else { pid.trim().to_owned() };
                return Err(DataError::InUse { path: data.to_owned(), pid });
            }
            Err(error) => return Err(failed(error)),
        }
        let written = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
        written.map_err(failed)?;
        Ok(Self { _file: file })
    }
}

/// Locks a file until it is closed. `false`: another process has locked it.
pub(super) fn take(file: &File) -> io::Result<bool> {
    match file.try_lock() {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// The path of a file that belongs to the data file at `data`.
pub(super) fn beside(data: &Path, suffix: &str) -> PathBuf {
    let mut path = data.as_os_str().to_owned();
    path.push(suffix);
    path.into()
}
