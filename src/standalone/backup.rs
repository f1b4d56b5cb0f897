//! `catchall backup`: a consistent copy of the data file.

use anyhow::bail;

use super::command::BackupConfig;
use crate::process::ExitError;
use crate::shutdown::Shutdown;
use crate::store::sqlite;

/// Writes the copy and prints its path.
pub(super) async fn back_up(config: &BackupConfig, shutdown: Shutdown) -> anyhow::Result<()> {
    let copied = tokio::select! {
        copied = sqlite::back_up(&config.data, &config.file) => copied,
        () = shutdown => bail!("stopped before the copy was complete: nothing has changed"),
    };
    let (path, bytes) = copied.map_err(ExitError::from)?;
    println!("{} is a complete copy, of {bytes} bytes", path.display());
    Ok(())
}
