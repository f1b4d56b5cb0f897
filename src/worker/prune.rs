//! Upkeep of the claims: watermarks through the queue, and pruning what they show to be safe.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

use tokio::time::Instant;

use crate::broker::{Message, Priority, PublishError, Publisher};
use crate::store::ledger::{Kind, Ledger, RetentionConfig, Watermark};
use crate::store::postgres::Error;

/// How long a watermark waits for the broker. The next one will do as well.
pub(super) const WATERMARK_TIMEOUT: Duration = Duration::from_secs(10);

/// When the first pass comes, at least, and at most twice that: soon, for there are workers that do not live for an
/// hour, but after they have begun to count, and not for a whole fleet at once. A pass that finds nothing to prune is
/// a few statements that cost about a millisecond. One that failed is tried again as soon.
const SOON: Duration = Duration::from_secs(3);

/// Sends watermarks and prunes claims, for ever. Every worker does, and none depends on another: watermarks are sent by
/// whoever finds one due, and what one is pruning the others pass over.
pub(super) async fn prune(ledger: Ledger, watermarks: Publisher, config: RetentionConfig) {
    let mut rest = soon();
    loop {
        tokio::select! {
            () = tokio::time::sleep(rest) => {}
            // What was noted by the clock as it was is dealt with before much is claimed by the clock as it is.
            () = ledger.clock_set_back() => {}
        }
        rest = match pass(&ledger, &watermarks, &config).await {
            Ok(()) => config.watermark_interval(),
            // Whether database and broker are there is told elsewhere.
            Err(error) => {
                tracing::debug!(reason = %error, "cannot look after the claims: {error}");
                soon().min(config.watermark_interval())
            }
        };
    }
}

/// Between once and twice [`SOON`].
fn soon() -> Duration {
    let random = u32::try_from(RandomState::new().build_hasher().finish() >> 32).unwrap_or(0);
    SOON + SOON.mul_f64(f64::from(random) / f64::from(u32::MAX))
}

/// Why a pass is to be repeated.
#[derive(Debug, thiserror::Error)]
enum Incomplete {
    #[error(transparent)]
    Database(#[from] Error),
    #[error("cannot send a watermark: {0}")]
    Broker(#[from] PublishError),
}

async fn pass(ledger: &Ledger, watermarks: &Publisher, config: &RetentionConfig) -> Result<(), Incomplete> {
    ledger.discard_future().await?;
    let published = match ledger.begin_watermark(config.watermark_interval()).await? {
        Some(watermark) => {
            let published = publish(watermarks, watermark).await;
            if published.is_err() {
                ledger.withdraw_watermark(watermark).await?;
            }
            published
        }
        None => Ok(()),
    };
    // Whether it went or not, those before it may have shown something.
    prune_claims(ledger, config).await?;
    Ok(published?)
}

async fn publish(
    watermarks: &Publisher,
    Watermark { lowest, highest }: Watermark,
) -> Result<(), PublishError> {
    let both =
        vec![Message::watermark(lowest, Priority::Lowest), Message::watermark(highest, Priority::Highest)];
    watermarks.publish(both, Instant::now() + WATERMARK_TIMEOUT).await
}

/// Prunes all that may be, in small steps. After each it rests as long as the step took, so that pruning
/// never takes more than half of what one connection can do.
async fn prune_claims(ledger: &Ledger, config: &RetentionConfig) -> Result<(), Error> {
    ledger.move_horizon(config).await?;
    for kind in [Kind::Message, Kind::Event] {
        let mut pruning = ledger.prune(kind, config);
        loop {
            let begun = Instant::now();
            let pruned = pruning.step().await?;
            if pruned == 0 {
                break;
            }
            metrics::counter!("catchall_worker_pruned_claims_total").increment(pruned);
            tokio::time::sleep(begun.elapsed()).await;
        }
    }
    Ok(())
}
