//! A consistent copy of the file, written while it is served.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::data_error::DataError;
use super::data_file::{DataConfig, Purpose, connect, existing};
use super::lock::{self, Lock, beside};
use super::schema;

/// Copies the data file to `to`, and returns the absolute path and the size of the copy in bytes.
///
/// The copy is written under another name, synced to disk and renamed, so that `to` is either a complete copy
/// or the previous file. While it is written, the WAL of the data file cannot be reset and grows.
///
/// # Errors
///
/// When the data file cannot be read, the copy cannot be written, or `to` is anything but an unused former
/// copy.
pub async fn back_up(config: &DataConfig, to: &Path) -> Result<(PathBuf, u64), DataError> {
    let from = existing(config)?;
    schema::inspect(&from)?;
    let to = DataConfig { data: to.to_owned() }.absolute_path()?;
    let refused =
        |reason: &str| DataError::NotWritable { path: to.clone(), reason: reason.into(), source: None };
    if to == from {
        return Err(refused("it is the data file itself"));
    }
    let new = beside(&to, ".new");
    // SQLite takes a name as text.
    let Some(name) = new.to_str() else { return Err(refused("its path is not UTF-8")) };
    let _unused = unused(&to)?;
    let failed = |error: std::io::Error| DataError::of_system(&to, error);
    // A backup that was killed has left its file. One that is still being written has locked it.
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&new);
    let file = file.map_err(failed)?;
    let is_ours = lock::take(&file).map_err(failed)?;
    // The process that had locked it may have renamed it meanwhile.
    let is_there = fs::metadata(&new).ok().map(|file| (file.dev(), file.ino()));
    if !is_ours || is_there != file.metadata().ok().map(|file| (file.dev(), file.ino())) {
        return Err(refused("another backup is being written there"));
    }
    file.set_len(0).map_err(failed)?;
    let copied = copy(&from, name, &to).await;
    if let Err(error) = copied {
        // An incomplete copy would only take space.
        let _ = fs::remove_file(&new);
        return Err(error);
    }
    let size = file.metadata().map(|metadata| metadata.len());
    let directory = to.parent().unwrap_or(Path::new("/"));
    let renamed =
        file.sync_all().and_then(|()| fs::rename(&new, &to)).and_then(|()| File::open(directory)?.sync_all());
    renamed.and(size).map(|size| (to.clone(), size)).map_err(failed)
}

/// Fails if a process uses the former copy at `to`: it would go on with a file that has no name, or its WAL
/// would be taken for that of the new copy. The lock of a copy that was served before is held until the new
/// one is in place.
fn unused(to: &Path) -> Result<Option<Lock>, DataError> {
    let lock = if beside(to, ".lock").exists() { Some(Lock::acquire(to)?) } else { None };
    if to.exists() {
        schema::inspect(to)?;
    }
    let wal = beside(to, "-wal");
    if fs::metadata(&wal).is_ok_and(|wal| wal.len() > 0) {
        let reason = format!("its WAL {} exists, so it was in use; choose another name", wal.display());
        return Err(DataError::NotWritable { path: to.to_owned(), reason, source: None });
    }
    Ok(lock)
}

async fn copy(from: &Path, new: &str, to: &Path) -> Result<(), DataError> {
    let mut connection = connect(from, Purpose::Read).await?;
    let copied = sqlx::query("vacuum into ?").bind(new).execute(&mut connection).await;
    // Whatever failed, reading or writing: the sentence names the copy.
    copied.map(drop).map_err(|error| DataError::of_sqlite(to, error))
}
