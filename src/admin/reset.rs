//! `catchall-admin reset`: the count of a domain starts again at zero.

use anyhow::bail;

use super::command::Reset;
use crate::counters::Counters;
use crate::store::maintenance::{Maintenance, ResetDomain};

/// Forgets the events of a domain and prints what they were.
pub(super) async fn reset<S: Maintenance>(store: &mut S, command: &Reset) -> anyhow::Result<()> {
    let Reset { domain, reason, author, .. } = command;
    let signature = author.sign(Some(reason))?;
    let Some(ResetDomain { counters, status }) = store.reset(domain, &signature).await? else {
        bail!("{domain} has had no events: there is nothing to reset");
    };
    let Counters { delivered, bounced } = counters;
    let status = status.name();
    println!(
        "{domain} starts again at 0: it was {status}, with {delivered} delivered and {bounced} bounced events"
    );
    Ok(())
}
