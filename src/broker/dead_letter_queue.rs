//! Dead letters, looked at where they are.

use std::time::Duration;

use futures::future::try_join_all;
use futures::{FutureExt, StreamExt};
use lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicQosOptions, QueueDeclareOptions,
};
use lapin::types::FieldTable;
use lapin::{Channel, Connection, Consumer};
use tokio::time::Instant;

use super::connect::{connect, connect_limited, describe};
use super::dead_letter::{DeadLetter, DeadLetterTag};
use super::error::Error;
use super::topology::{DEAD, check_topology};
use super::url::{Config, MessageLimit};

/// Dead letters the broker hands out ahead: enough to keep it busy.
const MAX_WINDOW: u64 = 256;

/// Most bytes of the dead letters that are handed out ahead. The larger they may be, the fewer they are.
const WINDOW_BYTES: u64 = 256 << 20;

/// Dead letters that are left on one channel before another is opened: the broker looks through all that a channel holds
/// for each one that is taken. Of channels it gives some two thousand to a connection.
const CHANNEL_DEAD_LETTERS: u64 = 4096;

/// How long nothing arrives before the broker is asked whether there is anything left: only when somebody else
/// has taken dead letters that were there at the beginning.
const SILENCE: Duration = Duration::from_secs(1);

/// How long the dead letters that were only looked at may take to be back in the queue. It is waited out only where
/// somebody else takes some of them meanwhile.
const RETURN: Duration = Duration::from_secs(5);

/// How often the queue is asked whether they are back.
const RETURN_INTERVAL: Duration = Duration::from_millis(10);

/// The dead letters that are in the dead-letter queue, one after the other, on a connection of its own.
///
/// The broker hands them out and takes them back when the connection ends, however it does, except for those
/// that were [taken](Self::take). Meanwhile nobody else sees them. They are consumed and not got one by one,
/// because a quorum queue writes each get to its disk; a consumer is handed many at once.
#[derive(Debug)]
pub struct DeadLetterQueue {
    config: Config,
    connection: Connection,
    /// The last is the one that is consumed from, the others hold dead letters until the end.
    channels: Vec<Holder>,
    round: Option<Round>,
    /// How many are handed out ahead.
    window: u64,
    /// How many were there at the beginning.
    count: u64,
    /// How many of them have not been looked at. It makes an end where dead letters come back as they are replayed.
    unseen: u64,
    /// How many were taken.
    taken: u64,
}

#[derive(Debug)]
struct Holder {
    channel: Channel,
    /// The tag of the last dead letter that came over it.
    last: u64,
    /// Dead letters that came over it and were not taken.
    left: u64,
    /// Whether any was taken.
    taken: bool,
}

impl Holder {
    /// Returns when the queue has every acceptance. The broker's channel keeps back what comes faster than the
    /// queue takes it, and would forget it when it closes; what the queue answers it answers behind all it was
    /// sent before, and then the channel sends the rest.
    async fn flush(&self) -> lapin::Result<()> {
        if !self.taken {
            return Ok(());
        }
        self.channel.basic_qos(1, BasicQosOptions::default()).await?;
        // The first answer makes the channel send the rest, the second comes behind that.
        for _ in 0..2 {
            let options = BasicConsumeOptions::default();
            let consumer =
                self.channel.basic_consume(DEAD.into(), "".into(), options, FieldTable::default()).await?;
            self.channel.basic_cancel(consumer.tag(), BasicCancelOptions::default()).await?;
        }
        Ok(())
    }
}

/// One consumer. Dead letters that are left in the queue fill its window, which cannot be changed; then the next
/// round begins.
#[derive(Debug)]
struct Round {
    consumer: Consumer,
    window: u64,
    /// The place of the last dead letter before this round, on the same channel.
    after: DeadLetterTag,
    /// Dead letters of this round that were looked at and not taken.
    left: u64,
}

impl DeadLetterQueue {
    /// Connects under `name`, checks that all of the topology is there, and counts the dead letters.
    ///
    /// # Errors
    ///
    /// When there is no broker, or an exchange or a queue is missing.
    pub async fn open(config: &Config, limit: MessageLimit, name: &str) -> Result<Self, Error> {
        let connection = connect_limited(config, name, limit.max_message_bytes).await?;
        check_topology(&connection, &config.amqp_url).await?;
        let channel = connection.create_channel().await.map_err(|error| failed(config, &error))?;
        let count = waiting(&channel).await.map_err(|error| failed(config, &error))?;
        Ok(Self {
            config: config.clone(),
            connection,
            channels: vec![Holder { channel, last: 0, left: 0, taken: false }],
            round: None,
            window: (WINDOW_BYTES / u64::from(limit.max_message_bytes)).clamp(1, MAX_WINDOW),
            count,
            unseen: count,
            taken: 0,
        })
    }

    /// Only counts them.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open).
    pub async fn waiting(config: &Config, name: &str) -> Result<u64, Error> {
        let connection = connect(config, name).await?;
        check_topology(&connection, &config.amqp_url).await?;
        let counted = async {
            // It closes itself when it is dropped, which must not come between.
            let channel = connection.create_channel().await?;
            let count = waiting(&channel).await?;
            connection.close(200, "done".into()).await?;
            Ok(count)
        };
        counted.await.map_err(|error| failed(config, &error))
    }

    /// How many dead letters waited when this was opened. Those that somebody else is looking at do not.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Looks at no more than so many.
    #[must_use]
    pub fn limited_to(mut self, most: u64) -> Self {
        self.unseen = self.unseen.min(most);
        self
    }

    /// The next dead letter; nothing when all that were there at the beginning have been seen, or none is left.
    ///
    /// # Errors
    ///
    /// When the connection or the queue is gone. What was not taken stays in the queue.
    pub async fn next(&mut self) -> Result<Option<DeadLetter>, Error> {
        while self.unseen > 0 {
            if self.round.as_ref().is_none_or(|round| round.left == round.window) {
                self.begin_round().await.map_err(|error| failed(&self.config, &error))?;
            }
            let channel = self.channels.len() - 1;
            let (Some(round), Some(holder)) = (&mut self.round, self.channels.last_mut()) else { continue };
            let arrived = tokio::time::timeout(SILENCE, round.consumer.next()).await;
            let delivery = if let Ok(delivery) = arrived {
                delivery
            } else {
                // The answer comes behind the dead letters that are on their way to here.
                let waiting = waiting(&holder.channel).await.map_err(|error| failed(&self.config, &error))?;
                match round.consumer.next().now_or_never() {
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
                    return Err(Error::connection(&self.config.amqp_url, reason));
                }
            };
            round.left += 1;
            holder.left += 1;
            holder.last = delivery.delivery_tag;
            self.unseen -= 1;
            return Ok(Some(DeadLetter::new(delivery, DeadLetterTag { channel, tag: holder.last })));
        }
        Ok(None)
    }

    /// Takes a dead letter out of the queue, for good once [`close`](Self::close) has returned.
    ///
    /// # Errors
    ///
    /// When the connection is gone: the dead letter may be taken or not.
    pub async fn take(&mut self, tag: DeadLetterTag) -> Result<(), Error> {
        let Some(holder) = self.channels.get_mut(tag.channel) else { return Ok(()) };
        let taken = holder.channel.basic_ack(tag.tag, BasicAckOptions { multiple: false }).await;
        taken.map_err(|error| failed(&self.config, &error))?;
        holder.left -= 1;
        holder.taken = true;
        self.taken += 1;
        let of_round = |round: &&mut Round| tag.channel == round.after.channel && tag.tag > round.after.tag;
        if let Some(round) = self.round.as_mut().filter(of_round) {
            round.left -= 1;
        }
        Ok(())
    }

    /// Gives back what was not taken, and returns when it is there for the next who looks.
    ///
    /// # Errors
    ///
    /// When the connection is gone: what was taken last may still be in the queue.
    pub async fn close(self) -> Result<(), Error> {
        let closed = async {
            try_join_all(self.channels.iter().map(Holder::flush)).await?;
            // The broker answers behind all that was sent over the channel before.
            try_join_all(self.channels.iter().map(|held| held.channel.close(200, "done".into()))).await?;
            // The queue takes its dead letters back a moment after that.
            let channel = self.connection.create_channel().await?;
            let expected = self.count.saturating_sub(self.taken);
            let deadline = Instant::now() + RETURN;
            while waiting(&channel).await? < expected && Instant::now() < deadline {
                tokio::time::sleep(RETURN_INTERVAL).await;
            }
            self.connection.close(200, "done".into()).await
        };
        closed.await.map_err(|error| failed(&self.config, &error))
    }

    async fn begin_round(&mut self) -> lapin::Result<()> {
        if let (Some(Round { consumer, .. }), Some(holder)) = (&self.round, self.channels.last()) {
            // What it has handed out stays out until the channel closes.
            holder.channel.basic_cancel(consumer.tag(), BasicCancelOptions::default()).await?;
            if holder.left >= CHANNEL_DEAD_LETTERS {
                let channel = self.connection.create_channel().await?;
                self.channels.push(Holder { channel, last: 0, left: 0, taken: false });
            }
        }
        let Some(Holder { channel, last, .. }) = self.channels.last() else { return Ok(()) };
        let window = self.unseen.min(self.window);
        let prefetch = u16::try_from(window).unwrap_or(u16::MAX);
        channel.basic_qos(prefetch, BasicQosOptions::default()).await?;
        let options = BasicConsumeOptions::default();
        let consumer = channel.basic_consume(DEAD.into(), "".into(), options, FieldTable::default()).await?;
        let after = DeadLetterTag { channel: self.channels.len() - 1, tag: *last };
        self.round = Some(Round { consumer, window, after, left: 0 });
        Ok(())
    }
}

async fn waiting(channel: &Channel) -> lapin::Result<u64> {
    let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let queue = channel.queue_declare(DEAD.into(), options, FieldTable::default()).await?;
    Ok(queue.message_count().into())
}

fn failed(config: &Config, error: &lapin::Error) -> Error {
    Error::connection(&config.amqp_url, describe(error, &config.amqp_url))
}
