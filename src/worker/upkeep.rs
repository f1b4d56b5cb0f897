//! Upkeep of the claims: marks through the queue, and forgetting what they show to be safe.

use std::time::Duration;

use tokio::time::Instant;

use crate::broker::{Message, PublishError, Publisher};
use crate::ledger::{Kind, Ledger, RetentionConfig};
use crate::postgres;

/// How long a mark waits for the broker. The next one will do as well.
pub(super) const MARK_PATIENCE: Duration = Duration::from_secs(10);

/// Sends marks and forgets claims, for ever. Every worker does, and none depends on another: marks are sent by
/// whoever finds one due, and what one is forgetting the others pass over.
pub(super) async fn upkeep(ledger: Ledger, marks: Publisher, config: RetentionConfig) {
    loop {
        tokio::time::sleep(config.mark_interval()).await;
        // Whether database and broker are there is told elsewhere.
        match mark(&ledger, &marks, &config).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(reason = %error, "cannot send a mark: {error}"),
            Err(error) => tracing::debug!(reason = %error, "cannot note a mark: {error}"),
        }
        if let Err(error) = forget(&ledger, &config).await {
            tracing::debug!(reason = %error, "cannot forget claims: {error}");
        }
    }
}

async fn mark(
    ledger: &Ledger,
    marks: &Publisher,
    config: &RetentionConfig,
) -> Result<Result<(), PublishError>, postgres::Error> {
    let Some(id) = ledger.begin_mark(config.mark_interval()).await? else { return Ok(Ok(())) };
    Ok(marks.publish(vec![Message::mark(id)], Instant::now() + MARK_PATIENCE).await)
}

/// Forgets all that may be, in small steps. After each it rests as long as the step took, so that forgetting
/// never takes more than half of what one connection can do.
async fn forget(ledger: &Ledger, config: &RetentionConfig) -> Result<(), postgres::Error> {
    ledger.move_horizon(config).await?;
    for kind in [Kind::Message, Kind::Event] {
        loop {
            let begun = Instant::now();
            let forgotten = ledger.forget_some(kind).await?;
            if forgotten == 0 {
                break;
            }
            metrics::counter!("catchall_worker_forgotten_claims_total").increment(forgotten);
            tokio::time::sleep(begun.elapsed()).await;
        }
    }
    Ok(())
}
