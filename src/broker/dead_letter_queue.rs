//! Reading dead letters without removing them.

use std::time::Duration;

use futures::future::try_join_all;
use futures::{FutureExt, StreamExt};
use lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicQosOptions, QueueDeclareOptions,
};
use lapin::types::FieldTable;
use lapin::{Channel, Connection, Consumer, Queue};
use tokio::time::Instant;

use super::connect::{connect, connect_limited, describe};
use super::dead_letter::{DeadLetter, DeadLetterTag};
use super::error::BrokerError;
use super::message::DEAD;
use super::topology::check_topology;
use super::url::{BrokerConfig, MessageLimit};

/// Most dead letters that the broker hands out ahead: enough to keep it busy.
const MAX_PREFETCH: u64 = 256;

/// Most bytes of the dead letters handed out ahead: the larger a message may be, the fewer are handed out.
const PREFETCH_BYTES: u64 = 256 << 20;

/// Dead letters left on one channel before another is opened: the broker searches all that a channel holds
/// for each one taken. It allows some two thousand channels per connection.
const CHANNEL_DEAD_LETTERS: u64 = 4096;

/// How long to wait for a dead letter before asking the broker whether any are left. This happens only if
/// another consumer has taken some of those counted at the beginning.
const SILENCE: Duration = Duration::from_secs(1);

/// How long to wait for the dead letters that were only read to return to the queue. It takes milliseconds,
/// unless the broker is busy: then they come all at once, at any time.
const RETURN: Duration = Duration::from_mins(1);

/// How long to wait for more of them while another consumer reads the queue, which may have taken the others.
const RETURN_TO_OTHERS: Duration = Duration::from_secs(5);

/// How often to check whether they are back, at first and in the end.
const RETURN_INTERVALS: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));

/// How long the broker waits for a quorum queue to say how many messages it has. If the queue is too busy to
/// answer in this time, the broker says zero.
const COUNT_TIMEOUT: Duration = Duration::from_millis(250);

/// How long to ask until the queue itself has answered.
const COUNT: Duration = Duration::from_secs(10);

/// Reads the dead-letter queue one dead letter at a time, on its own connection.
///
/// The broker hands them out, and takes them back when the connection ends for any reason, except those that
/// were [taken](Self::take). Meanwhile no other consumer sees them. They are consumed rather than fetched
/// with `basic.get`, because a quorum queue writes each get to its disk; a consumer receives many at once.
#[derive(Debug)]
pub struct DeadLetterQueue {
    config: BrokerConfig,
    connection: Connection,
    /// The last channel consumes; the others hold dead letters until the end.
    channels: Vec<HoldingChannel>,
    pass: Option<Pass>,
    /// How many dead letters are handed out ahead.
    prefetch: u64,
    /// How many dead letters waited at the beginning.
    count: u64,
    /// How many of them have not been read. This ends the loop even if replayed dead letters come back.
    unseen: u64,
}

#[derive(Debug)]
struct HoldingChannel {
    channel: Channel,
    /// The tag of the last dead letter that arrived on it.
    last: u64,
    /// Dead letters that arrived on it and were not taken.
    left: u64,
    /// Whether any was taken.
    taken: bool,
}

impl HoldingChannel {
    /// Returns when the queue has every acknowledgement. The broker's channel buffers acknowledgements that
    /// come faster than the queue processes them, and would lose them when it closes. The queue answers a
    /// consume only after all it was sent before; then the channel sends the buffered rest.
    async fn flush(&self) -> lapin::Result<()> {
        if !self.taken {
            return Ok(());
        }
        self.channel.basic_qos(1, BasicQosOptions::default()).await?;
        // The first answer makes the channel send the rest; the second comes after the rest.
        for _ in 0..2 {
            let options = BasicConsumeOptions::default();
            let consumer =
                self.channel.basic_consume(DEAD.into(), "".into(), options, FieldTable::default()).await?;
            self.channel.basic_cancel(consumer.tag(), BasicCancelOptions::default()).await?;
        }
        Ok(())
    }
}

/// One consumer. Dead letters that are not taken use up its prefetch, which is fixed; then the next pass
/// begins.
#[derive(Debug)]
struct Pass {
    consumer: Consumer,
    prefetch: u64,
    /// The position of the last dead letter before this pass, on the same channel.
    after: DeadLetterTag,
    /// Dead letters of this pass that were read and not taken.
    left: u64,
}

impl DeadLetterQueue {
    /// Connects under `name`, checks the topology, and counts the dead letters.
    ///
    /// # Errors
    ///
    /// When the broker is not available, or an exchange or a queue is missing.
    pub async fn open(config: &BrokerConfig, limit: MessageLimit, name: &str) -> Result<Self, BrokerError> {
        let connection = connect_limited(config, name, limit.max_message_bytes).await?;
        check_topology(&connection, &config.amqp_url).await?;
        let channel = connection.create_channel().await.map_err(|error| failed(config, &error))?;
        let count = waiting(&channel).await.map_err(|error| failed(config, &error))?;
        Ok(Self {
            config: config.clone(),
            connection,
            channels: vec![HoldingChannel { channel, last: 0, left: 0, taken: false }],
            pass: None,
            prefetch: limit.prefetch_within(PREFETCH_BYTES).min(MAX_PREFETCH),
            count,
            unseen: count,
        })
    }

    /// Only counts the dead letters.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open).
    pub async fn waiting(config: &BrokerConfig, name: &str) -> Result<u64, BrokerError> {
        let connection = connect(config, name).await?;
        check_topology(&connection, &config.amqp_url).await?;
        let counted = async {
            // Dropping the channel closes it, so it must live until the count is known.
            let channel = connection.create_channel().await?;
            let count = waiting(&channel).await?;
            connection.close(200, "done".into()).await?;
            Ok(count)
        };
        counted.await.map_err(|error| failed(config, &error))
    }

    /// How many dead letters waited when this was opened. Those that another consumer holds are not counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Reads at most `most` dead letters.
    #[must_use]
    pub fn limited_to(mut self, most: u64) -> Self {
        self.unseen = self.unseen.min(most);
        self
    }

    /// The next dead letter; `None` when all that were counted at the beginning have been read, or none is
    /// left.
    ///
    /// # Errors
    ///
    /// When the connection or the queue is gone. Dead letters that were not taken stay in the queue.
    pub async fn next(&mut self) -> Result<Option<DeadLetter>, BrokerError> {
        while self.unseen > 0 {
            if self.pass.as_ref().is_none_or(|pass| pass.left == pass.prefetch) {
                self.begin_pass().await.map_err(|error| failed(&self.config, &error))?;
            }
            let channel = self.channels.len() - 1;
            let (Some(pass), Some(holder)) = (&mut self.pass, self.channels.last_mut()) else { continue };
            let arrived = tokio::time::timeout(SILENCE, pass.consumer.next()).await;
            let delivery = if let Ok(delivery) = arrived {
                delivery
            } else {
                // The answer arrives after the dead letters that are on their way here.
                let waiting = waiting(&holder.channel).await.map_err(|error| failed(&self.config, &error))?;
                match pass.consumer.next().now_or_never() {
                    Some(delivery) => delivery,
                    None if waiting == 0 => return Ok(None),
                    None => continue,
                }
            };
            let delivery = match delivery {
                Some(Ok(delivery)) => delivery,
                Some(Err(error)) => return Err(failed(&self.config, &error)),
                None => {
                    let reason = "the broker ended the delivery of dead letters";
                    return Err(BrokerError::connection(&self.config.amqp_url, reason));
                }
            };
            pass.left += 1;
            holder.left += 1;
            holder.last = delivery.delivery_tag;
            self.unseen -= 1;
            return Ok(Some(DeadLetter::new(delivery, DeadLetterTag { channel, tag: holder.last })));
        }
        Ok(None)
    }

    /// Removes a dead letter from the queue, for good once [`close`](Self::close) has returned.
    ///
    /// # Errors
    ///
    /// When the connection is gone: the dead letter may or may not be removed.
    pub async fn take(&mut self, tag: DeadLetterTag) -> Result<(), BrokerError> {
        let Some(holder) = self.channels.get_mut(tag.channel) else { return Ok(()) };
        let taken = holder.channel.basic_ack(tag.tag, BasicAckOptions { multiple: false }).await;
        taken.map_err(|error| failed(&self.config, &error))?;
        holder.left -= 1;
        holder.taken = true;
        let of_pass = |pass: &&mut Pass| tag.channel == pass.after.channel && tag.tag > pass.after.tag;
        if let Some(pass) = self.pass.as_mut().filter(of_pass) {
            pass.left -= 1;
        }
        Ok(())
    }

    /// Returns the other dead letters to the queue, and waits until the next reader can see them. Returns how
    /// many it cannot see even so: because the broker is too slow, or another consumer has them.
    ///
    /// # Errors
    ///
    /// When the connection is gone: the last ones taken may still be in the queue.
    pub async fn close(self) -> Result<u64, BrokerError> {
        let Self { config, connection, channels, pass, .. } = self;
        let closed = async {
            let mut held: u64 = channels.iter().map(|holder| holder.left).sum();
            if let (Some(Pass { mut consumer, .. }), Some(holder)) = (pass, channels.last()) {
                holder.channel.basic_cancel(consumer.tag(), BasicCancelOptions::default()).await?;
                while let Some(unread) = consumer.next().await {
                    unread?;
                    held += 1;
                }
            }
            let channel = connection.create_channel().await?;
            let waiting = waiting(&channel).await?;
            try_join_all(channels.iter().map(HoldingChannel::flush)).await?;
            // The broker answers after everything sent over the channel before.
            try_join_all(channels.iter().map(|holder| holder.channel.close(200, "done".into()))).await?;
            // The queue takes its dead letters back a moment later.
            let missing = missing(&channel, waiting + held).await?;
            connection.close(200, "done".into()).await?;
            Ok(missing)
        };
        closed.await.map_err(|error| failed(&config, &error))
    }

    async fn begin_pass(&mut self) -> lapin::Result<()> {
        if let (Some(Pass { consumer, .. }), Some(holder)) = (&self.pass, self.channels.last()) {
            // Dead letters already handed out stay with us until the channel closes.
            holder.channel.basic_cancel(consumer.tag(), BasicCancelOptions::default()).await?;
            if holder.left >= CHANNEL_DEAD_LETTERS {
                let channel = self.connection.create_channel().await?;
                self.channels.push(HoldingChannel { channel, last: 0, left: 0, taken: false });
            }
        }
        let Some(HoldingChannel { channel, last, .. }) = self.channels.last() else { return Ok(()) };
        let prefetch = self.unseen.min(self.prefetch);
        let qos = u16::try_from(prefetch).unwrap_or(u16::MAX);
        channel.basic_qos(qos, BasicQosOptions::default()).await?;
        let options = BasicConsumeOptions::default();
        let consumer = channel.basic_consume(DEAD.into(), "".into(), options, FieldTable::default()).await?;
        let after = DeadLetterTag { channel: self.channels.len() - 1, tag: *last };
        self.pass = Some(Pass { consumer, prefetch, after, left: 0 });
        Ok(())
    }
}

/// How many dead letters no consumer has.
async fn waiting(channel: &Channel) -> lapin::Result<u64> {
    let begun = Instant::now();
    loop {
        let asked = Instant::now();
        let count = queue(channel).await?.message_count();
        if count > 0 || asked.elapsed() < COUNT_TIMEOUT || begun.elapsed() >= COUNT {
            return Ok(count.into());
        }
    }
}

/// Waits until so many dead letters are in the queue. Returns how many are missing in the end.
async fn missing(channel: &Channel, expected: u64) -> lapin::Result<u64> {
    let begun = Instant::now();
    let (mut most, mut risen) = (0, begun);
    loop {
        let queue = queue(channel).await?;
        let count = u64::from(queue.message_count());
        if count > most {
            (most, risen) = (count, Instant::now());
        }
        let taken_by_others = queue.consumer_count() > 0 && risen.elapsed() >= RETURN_TO_OTHERS;
        if count >= expected || taken_by_others || begun.elapsed() >= RETURN {
            return Ok(expected.saturating_sub(count));
        }
        let (first, last) = RETURN_INTERVALS;
        tokio::time::sleep((begun.elapsed() / 10).clamp(first, last)).await;
    }
}

async fn queue(channel: &Channel) -> lapin::Result<Queue> {
    let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    channel.queue_declare(DEAD.into(), options, FieldTable::default()).await
}

fn failed(config: &BrokerConfig, error: &lapin::Error) -> BrokerError {
    BrokerError::of(&config.amqp_url, describe(error), error)
}
