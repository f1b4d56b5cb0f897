//! `catchall check`: whether the data file is sound.

use anyhow::bail;

use super::command::CheckConfig;
use crate::process::ExitError;
use crate::shutdown::Shutdown;
use crate::store::sqlite::{self, Checked};

/// Checks the file and prints its sums.
pub(super) async fn check(config: &CheckConfig, shutdown: Shutdown) -> anyhow::Result<()> {
    let checked = tokio::select! {
        checked = sqlite::check(&config.data) => checked,
        () = shutdown => bail!("stopped before the whole file was read"),
    };
    let Checked { path, domains, claims, delivered, bounced } = checked.map_err(ExitError::from)?;
    println!(
        "{} is sound: {domains} domains with {delivered} delivered and {bounced} bounced events, \
         {claims} claims",
        path.display()
    );
    Ok(())
}
