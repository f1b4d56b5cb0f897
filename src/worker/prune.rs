//! Upkeep of the claims: sends watermarks through the queue, and prunes the claims that they show to be safe
//! to prune.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::mem;
use std::time::Duration;

use tokio::time::Instant;

use crate::broker::{Message, Priority, PublishError, Publisher};
use crate::store::ledger::{ClaimKind, Ledger, RetentionConfig, Watermark};
use crate::store::postgres::DatabaseError;

/// How long a watermark waits for the broker. If it is not confirmed, the next one will do.
pub(super) const WATERMARK_TIMEOUT: Duration = Duration::from_secs(10);

/// The first pass comes between once and twice this time after the start: soon, because some workers live for
/// less than an hour, but after they have begun to count, and not in the whole fleet at once. A pass that
/// finds nothing to prune takes a few statements, about a millisecond. A failed pass is repeated after the
/// same time.
const SOON: Duration = Duration::from_secs(3);

/// Sends watermarks and prunes claims, forever. Every worker does both, independently of the others: a
/// watermark is sent by the first worker that finds one due, and claims that one worker is pruning are
/// skipped by the others.
pub(super) async fn prune(ledger: Ledger, watermarks: Publisher, config: RetentionConfig) {
    let (mut rest, mut failing) = (soon(), false);
    loop {
        tokio::select! {
            () = tokio::time::sleep(rest) => {}
            // Times recorded by the old clock are dealt with before many claims are made by the new one.
            () = ledger.clock_set_back() => {}
        }
        rest = match pass(&ledger, &watermarks, &config).await {
            Ok(()) => {
                failing = false;
                config.watermark_interval()
            }
            Err(error) => {
                // Whether database and broker are available is reported elsewhere; a right that is missing is
                // not.
                if !mem::replace(&mut failing, true) {
                    tracing::warn!(reason = %error, "cannot prune claims, trying again: {error}");
                }
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

/// Why a pass has to be repeated.
#[derive(Debug, thiserror::Error)]
enum Incomplete {
    #[error(transparent)]
    Database(#[from] DatabaseError),
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
    // Whether it was published or not, earlier watermarks may allow claims to be pruned.
    prune_claims(ledger, config).await?;
    ledger.fold_totals().await?;
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

/// Prunes all claims that may go, in small steps. After each step it rests for as long as the step took, so
/// pruning never takes more than half of what one connection can do.
async fn prune_claims(ledger: &Ledger, config: &RetentionConfig) -> Result<(), DatabaseError> {
    ledger.move_horizon(config).await?;
    for kind in [ClaimKind::Message, ClaimKind::Event] {
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
