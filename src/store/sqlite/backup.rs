//! A consistent copy of the file, written while it is served.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};

use super::data_error::DataError;
use super::data_file::{DataConfig, Purpose, connect, existing};
use super::lock::{self, beside};
use super::schema;

/// Copies the data file to `to`, and returns the absolute path and the size of the copy in bytes.
///
/// The copy is written under another name, brought to the disk and renamed, so that under `to` there is a
/// complete copy or what was there before. While it is written, the WAL of the data file cannot begin anew
/// and grows.
///
/// # Errors
///
/// When the data file cannot be read, or the copy not be written, or `to` is anything but a former copy.
pub async fn back_up(config: &DataConfig, to: &Path) -> Result<(PathBuf, u64), DataError> {
    let from = existing(config)?;
    schema::inspect(&from)?;
    let to = DataConfig { data: to.to_owned() }.absolute_path()?;
    if to == from {
        let reason = "it is the data file itself".into();
        return Err(DataError::NotWritable { path: to, reason });
    }
    if to.exists() {
        schema::inspect(&to)?;
    }
    let new = beside(&to, ".new");
    let failed = |error: &std::io::Error| DataError::of_system(&to, error);
    // A backup that was killed has left its file. One that is still being written has locked it.
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&new);
    let file = file.map_err(|error| failed(&error))?;
    if !lock::take(&file).map_err(|error| failed(&error))? {
        let reason = "another backup is being written there".into();
        return Err(DataError::NotWritable { path: to, reason });
    }
    file.set_len(0).map_err(|error| failed(&error))?;
    let copied = copy(&from, &new, &to).await;
    if let Err(error) = copied {
        // What is left of it would only take room.
        let _ = fs::remove_file(&new);
        return Err(error);
    }
    let size = file.metadata().map(|metadata| metadata.len());
    let directory = to.parent().unwrap_or(Path::new("/"));
    let renamed =
        file.sync_all().and_then(|()| fs::rename(&new, &to)).and_then(|()| File::open(directory)?.sync_all());
    renamed.and(size).map(|size| (to.clone(), size)).map_err(|error| failed(&error))
}

async fn copy(from: &Path, new: &Path, to: &Path) -> Result<(), DataError> {
    let mut connection = connect(from, Purpose::Read).await?;
    let copied = sqlx::query("vacuum into ?").bind(new.display().to_string()).execute(&mut connection).await;
    // Whatever failed, reading or writing: the sentence names the copy.
    copied.map(drop).map_err(|error| DataError::of_sqlite(to, &error))
}
