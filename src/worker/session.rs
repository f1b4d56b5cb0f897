//! A session: from the first message that a connection hands out until that connection is lost, or until the
//! shutdown.

use std::mem;
use std::pin::pin;
use std::time::Duration;

use tokio::time::Instant;

use super::apply::AckDeadlinePassed;
use super::delivery_batch::{DeliveryBatch, linger};
use super::handed_out::HandedOut;
use super::prefetch_throttle::PrefetchThrottle;
use super::settle::{Settled, Settler};
use crate::broker::{self, Deliveries};
use crate::shutdown::{GRACE, Shutdown};
use crate::store::ledger::Moment;

/// How often a worker without messages checks whether to renew its consumer, and whether there is something
/// to be told. The primary's clock is read no more often.
const IDLE_LOOK: Duration = Duration::from_secs(1);

/// How long transactions wait for more messages, and how long messages may be held.
#[derive(Clone, Copy, Debug)]
pub(super) struct Times {
    pub(super) least_linger: Duration,
    pub(super) most_linger: Duration,
    pub(super) ack_deadline: Duration,
}

/// One connection that consumes, and its messages that are not acknowledged yet.
pub(super) struct Session<'a> {
    deliveries: Deliveries,
    handed_out: HandedOut,
    /// The delivery batch that gathers while the previous one is being settled.
    gathering: DeliveryBatch,
    /// How many messages the broker hands out ahead.
    prefetch: u16,
    /// How long the last delivery batch took to settle.
    took: Duration,
    stopping: bool,
    times: Times,
    throttle: &'a mut PrefetchThrottle,
    settler: &'a mut Settler,
    shutdown: Shutdown,
}

impl<'a> Session<'a> {
    /// Nothing was handed out before the moment `asked`.
    pub(super) fn new(
        (deliveries, asked): (Deliveries, Moment),
        times: Times,
        throttle: &'a mut PrefetchThrottle,
        settler: &'a mut Settler,
        shutdown: Shutdown,
    ) -> Self {
        let prefetch = throttle.prefetch();
        Self {
            deliveries,
            handed_out: HandedOut::new(prefetch, asked),
            gathering: DeliveryBatch::default(),
            prefetch,
            took: Duration::ZERO,
            stopping: false,
            times,
            throttle,
            settler,
            shutdown,
        }
    }

    /// The loop: while one delivery batch is being settled, the next one gathers. It returns when the
    /// shutdown is done, the connection to the broker is lost, or the held messages must be returned.
    pub(super) async fn run(mut self) -> Result<(), Ended> {
        let shutdown = self.shutdown.clone();
        let mut grace = pin!(async {
            shutdown.await;
            tokio::time::sleep(GRACE).await;
        });
        loop {
            let Some(batch) = self.gather().await? else { return Ok(()) };
            tokio::select! {
                biased;
                settled = self.settle_and_acknowledge(batch) => settled?,
                () = &mut grace => return Ok(()),
            }
        }
    }

    /// The next delivery batch; `None` when the shutdown has begun and no batch has.
    async fn gather(&mut self) -> Result<Option<DeliveryBatch>, Ended> {
        let Times { least_linger, most_linger, ack_deadline } = self.times;
        let max_rows = self.settler.max_rows();
        while self.gathering.is_empty() {
            tokio::select! {
                () = self.shutdown.clone() => return Ok(None),
                gathered = self.gathering.gather(&mut self.deliveries, max_rows) => gathered?,
                () = tokio::time::sleep(IDLE_LOOK.min(ack_deadline / 8)) => self.look().await?,
            }
        }
        if !self.stopping {
            let linger = linger(self.took, least_linger, most_linger);
            let enough = usize::from(self.prefetch) / 2;
            tokio::select! {
                () = self.shutdown.clone() => self.stopping = true,
                grown = self.gathering.grow(&mut self.deliveries, max_rows, enough, linger) => grown?,
            }
        }
        let mut batch = mem::take(&mut self.gathering);
        batch.request.before = Some(self.handed_out.since(batch.first).after(ack_deadline));
        Ok(Some(batch))
    }

    /// What a worker without messages has to do: it renews the consumer if it has become uncertain when the
    /// next message was handed out.
    async fn look(&mut self) -> Result<(), broker::BrokerError> {
        self.settler.lines.tell();
        let now = self.settler.now();
        if self.handed_out.is_stale(self.deliveries.seen(), now, self.times.ack_deadline) {
            let before = renew(&mut self.deliveries, None, self.prefetch).await?;
            self.handed_out.renew(self.prefetch, before, now);
        }
        Ok(())
    }

    async fn settle_and_acknowledge(&mut self, batch: DeliveryBatch) -> Result<(), Ended> {
        let begun = Instant::now();
        let settled = self.settle(batch).await?;
        self.took = begun.elapsed();
        Ok(self.acknowledge(settled).await?)
    }

    /// Settles a delivery batch while the next one gathers.
    async fn settle(&mut self, batch: DeliveryBatch) -> Result<Settled, Ended> {
        let Self { settler, gathering, deliveries, stopping, shutdown, .. } = self;
        let max_rows = settler.max_rows();
        let mut settling = pin!(settler.settle(batch));
        loop {
            let arriving = async {
                if *stopping || gathering.is_full(max_rows) {
                    return Err(deliveries.lost().await);
                }
                gathering.gather(deliveries, max_rows).await
            };
            tokio::select! {
                biased;
                settled = &mut settling => return Ok(settled?),
                () = shutdown.clone(), if !*stopping => *stopping = true,
                gathered = arriving => gathered?,
            }
        }
    }

    /// Acknowledges the settled messages, and renews the consumer if that is due.
    async fn acknowledge(&mut self, settled: Settled) -> Result<(), broker::BrokerError> {
        let now = self.settler.now();
        let stale = self.handed_out.is_stale(self.deliveries.seen(), now, self.times.ack_deadline);
        self.handed_out.ack(settled.through, now);
        self.throttle.settled();
        if self.stopping || !stale && self.prefetch >= self.throttle.prefetch() {
            return ack(&self.deliveries, settled).await;
        }
        self.prefetch = self.throttle.prefetch();
        let before = renew(&mut self.deliveries, Some(settled), self.prefetch).await?;
        self.handed_out.renew(self.prefetch, before, now);
        Ok(())
    }
}

/// Why a session ended before the shutdown.
#[derive(Debug, thiserror::Error)]
pub(super) enum Ended {
    #[error(transparent)]
    Lost(#[from] broker::BrokerError),
    #[error(transparent)]
    GaveBack(#[from] AckDeadlinePassed),
}

/// Acknowledges the settled messages and renews the consumer: with another prefetch, or to be certain that
/// the next messages are new. Returns the tag of the last message that arrived before.
async fn renew(
    deliveries: &mut Deliveries,
    settled: Option<Settled>,
    prefetch: u16,
) -> Result<u64, broker::BrokerError> {
    deliveries.pause().await?;
    // Acknowledge before more is handed out: a message that ends the process would otherwise bring these back
    // with it.
    if let Some(settled) = settled {
        ack(deliveries, settled).await?;
    }
    deliveries.resume(prefetch).await
}

/// Acknowledges the settled messages. The rejections go first: an acknowledgement of everything up to a tag
/// would drop these messages.
async fn ack(deliveries: &Deliveries, settled: Settled) -> Result<(), broker::BrokerError> {
    for tag in settled.rejected {
        deliveries.reject(tag).await?;
    }
    match settled.acked {
        Some(tag) => deliveries.ack_through(tag).await,
        None => Ok(()),
    }
}
