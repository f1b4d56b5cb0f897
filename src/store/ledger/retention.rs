//! Retention: which claims are pruned, and when that is safe.
//!
//! A claim must outlive every copy of what it guards. Copies have two sources:
//!
//! - Publishers send a message again. The *retention* bounds how long they may do so. It is measured from the
//!   last time the claim was met.
//! - The queue keeps copies until a consumer takes them, for any length of time. So time is measured by what
//!   the queue has handed out. A *watermark* is a pair of empty messages, one with the lowest and one with
//!   the highest priority. The ledger notes the pair before it is published, and each of the two when it has
//!   been handed out. Everything handed out before is counted, or recognised (which renews its claim), within
//!   the *ack deadline*: a worker refuses to count a message that it has held for longer.
//!
//! Once both messages of a watermark have arrived, everything published before them, with any priority, has
//! been handed out too. All versions of RabbitMQ hand out returned messages before all others. The order of
//! the others depends on the version:
//!
//! - Up to 3.13 priorities have no effect: each of the two is behind everything published before it.
//! - From 4.0 to 4.2 there are two classes, priorities up to 4 and those above. Each is first in, first out,
//!   and they are served in turns. According to the documentation either class may overtake the other. But
//!   neither of the two overtakes a message of its own class, and each class has one of them. (As released, a
//!   message of the lower class waits for all older ones of the higher class, so the lower of the two would be
//!   enough. The higher class does overtake.)
//! - From 4.3 there are thirty-two classes, and nothing is handed out while a message of a higher class
//!   waits. So when the message with the lowest priority arrives, no message of a higher class waits, whenever
//!   it was published, and everything that waits in the lowest class was published later. (While the queue
//!   never runs empty, nothing is pruned.)
//!
//! An upgrade of the broker moves waiting messages into the new classes in their order, and higher classes
//! stay higher.
//!
//! So a claim that was last met at `t` is pruned once a watermark published after `t` + retention has arrived
//! and the ack deadline has passed since. While no worker runs, no watermark arrives and nothing is pruned,
//! however long that lasts.
//!
//! All times are those of the primary's clock, which may be set back or ahead, also when another primary
//! takes over. A claim is pruned only once the retention has passed both by the clock that dated the
//! watermark and by the present clock. A watermark dated in the future proves nothing and is dropped: it
//! would count for claims that were made after it. A clock that is set ahead makes claims look older than
//! they are. That cannot be told from time that has really passed.

use std::time::{Duration, SystemTime};

use uuid::Uuid;

use super::ack_deadline::AckDeadline;
use super::apply::Ledger;
use crate::store::EventRetention;
use crate::store::postgres::DatabaseError;

/// The statement that prunes claims in this table.
///
/// The horizon, which an earlier clock may have dated, says which claims may be gone. The present clock, and
/// the watermark that is valid by it, decide which ones may go now. (Not `least`, which ignores nulls.)
///
/// A claim that another worker is pruning or renewing at the same moment is skipped: no worker waits here, so
/// none can wait in a circle.
macro_rules! prune {
    ($table:literal) => {
        concat!(
            "-- catchall: prune claims in ",
            $table,
            "
delete from ",
            $table,
            " where id in (
    select id from ",
            $table,
            "
    where claimed_at >= to_timestamp($5)
        and claimed_at < (select used_before from pruned_claims where kind = $1)
        and claimed_at < now() - make_interval(secs => $4)
        and claimed_at < (
            select max(published_at) - make_interval(secs => $4) from queue_progress
            where published_at <= now() and arrived_at < now() - make_interval(secs => $3))
    order by claimed_at limit $2 for update skip locked)
returning extract(epoch from claimed_at)::float8"
        )
    };
}

/// Claims that one statement prunes. It takes some ten milliseconds, so others wait only briefly.
const STEP: i32 = 5_000;

/// Watermarks per retention or ack deadline, whichever is shorter. Claims live longer by one such interval.
const WATERMARKS: u32 = 24;

/// How much longer than the ack deadline a claim is kept, for steps of the clock that are too small to be
/// noticed.
const SLACK: Duration = Duration::from_secs(5);

/// How far ahead of the clock a watermark may be dated. Statements that run at once read the clock some
/// milliseconds apart.
const AHEAD: Duration = Duration::from_secs(10);

/// How long the ledger keeps claims.
#[derive(Clone, Debug, clap::Args)]
#[group(skip)]
#[expect(clippy::doc_markdown, reason = "the help is plain text")]
pub struct RetentionConfig {
    /// How long, in seconds from its last use, a message_id is remembered, so that a repeat is not counted.
    /// Must be longer than publishers may take to repeat a message: three days outlast a weekend. A claim
    /// takes some 100 bytes; ingest makes one for each of its messages
    #[arg(
        long,
        env = "CATCHALL_MESSAGE_RETENTION_SECS",
        value_name = "SECONDS",
        default_value_t = 259_200,
        value_parser = clap::value_parser!(u32).range(1..)
    )]
    message_retention_secs: u32,

    #[command(flatten)]
    event: EventRetention,

    #[command(flatten)]
    ack_deadline: AckDeadline,
}

impl RetentionConfig {
    /// How long a worker may hold a message.
    #[must_use]
    pub fn ack_deadline(&self) -> Duration {
        self.ack_deadline.ack_deadline()
    }

    /// How often a watermark is to be sent.
    #[must_use]
    pub fn watermark_interval(&self) -> Duration {
        let shortest = self.retention(ClaimKind::Message).min(self.event.duration()).min(self.ack_deadline());
        (shortest / WATERMARKS).clamp(Duration::from_secs(1), Duration::from_hours(1))
    }

    fn retention(&self, kind: ClaimKind) -> Duration {
        match kind {
            ClaimKind::Message => Duration::from_secs(self.message_retention_secs.into()),
            ClaimKind::Event => self.event.duration(),
        }
    }
}

/// The two kinds of claims.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClaimKind {
    /// Claims of messages, by `message_id`.
    Message,
    /// Claims of events, by key.
    Event,
}

/// Claims last met before these times may have been pruned. `None`: no claim of that kind ever was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Horizon {
    /// For claims of messages.
    pub messages: Option<SystemTime>,
    /// For claims of events.
    pub events: Option<SystemTime>,
}

/// The ids of the two messages that are published together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watermark {
    /// That with the lowest priority.
    pub lowest: Uuid,
    /// That with the highest priority.
    pub highest: Uuid,
}

impl Ledger {
    /// Records a watermark that is about to be published. Returns `None` if any worker noted one within the
    /// `interval`.
    ///
    /// # Errors
    ///
    /// When the database is unavailable.
    pub async fn begin_watermark(&self, interval: Duration) -> Result<Option<Watermark>, DatabaseError> {
        let watermark = Watermark { lowest: Uuid::now_v7(), highest: Uuid::now_v7() };
        let noted: Vec<Uuid> = self
            .database
            .run(self.timeout, async move |pool| {
                sqlx::query_scalar(BEGIN_WATERMARK)
                    .bind(watermark.lowest)
                    .bind(watermark.highest)
                    .bind(interval.as_secs_f64())
                    .fetch_all(&pool)
                    .await
            })
            .await?;
        Ok((!noted.is_empty()).then_some(watermark))
    }

    /// Removes a watermark that was not published, or is not known to be, so that the next one is due at
    /// once.
    ///
    /// # Errors
    ///
    /// When the database is unavailable.
    pub async fn withdraw_watermark(&self, watermark: Watermark) -> Result<(), DatabaseError> {
        self.database
            .run(self.timeout, async move |pool| {
                sqlx::query(WITHDRAW_WATERMARK).bind(watermark.lowest).execute(&pool).await
            })
            .await
            .map(drop)
    }

    /// Removes the traces of a clock that was ahead: deletes watermarks dated in the future, and moves a
    /// horizon in the future back to now. The claims pruned by that clock were last met before now. (If the
    /// primary's present clock is the wrong one, they were met later than it shows. So "now" is the later of
    /// the primary's clock and this process's own, which is one of those that date dead letters.)
    ///
    /// # Errors
    ///
    /// When the database is unavailable.
    pub async fn discard_future(&self) -> Result<(), DatabaseError> {
        let here = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        self.database
            .run(self.timeout, async move |pool| {
                sqlx::query(DISCARD_FUTURE_WATERMARKS).bind(AHEAD.as_secs_f64()).execute(&pool).await?;
                sqlx::query(DISCARD_FUTURE_HORIZON).bind(here).execute(&pool).await
            })
            .await
            .map(drop)
    }

    /// Moves the horizon as far as the watermarks that have arrived allow, and returns it. This prunes
    /// nothing yet.
    ///
    /// # Errors
    ///
    /// When the database is unavailable.
    pub async fn move_horizon(&self, config: &RetentionConfig) -> Result<Horizon, DatabaseError> {
        let kept = (config.ack_deadline() + SLACK).as_secs_f64();
        let (messages, events) = (config.retention(ClaimKind::Message), config.retention(ClaimKind::Event));
        self.database
            .run(self.timeout, async move |pool| {
                sqlx::query(MOVE_HORIZON)
                    .bind(kept)
                    .bind(messages.as_secs_f64())
                    .bind(events.as_secs_f64())
                    .execute(&pool)
                    .await?;
                sqlx::query(DROP_WATERMARKS).bind(kept).execute(&pool).await
            })
            .await?;
        self.horizon().await
    }

    /// Reads the horizon: how far back claims can be relied on.
    ///
    /// # Errors
    ///
    /// When the database is unavailable.
    pub async fn horizon(&self) -> Result<Horizon, DatabaseError> {
        let rows: Vec<(String, f64)> = self
            .database
            .run(self.timeout, async |pool| sqlx::query_as(HORIZON).fetch_all(&pool).await)
            .await?;
        let of = |kind: ClaimKind| {
            let row = rows.iter().find(|(name, _)| name == kind.name());
            row.map(|(_, epoch)| SystemTime::UNIX_EPOCH + Duration::from_secs_f64(epoch.max(0.0)))
        };
        Ok(Horizon { messages: of(ClaimKind::Message), events: of(ClaimKind::Event) })
    }

    /// Begins to prune the claims that may go, the oldest first.
    #[must_use]
    pub fn prune(&self, kind: ClaimKind, config: &RetentionConfig) -> Pruning {
        let (kept, retention) = (config.ack_deadline() + SLACK, config.retention(kind));
        Pruning { ledger: self.clone(), kind, kept, retention, from: f64::NEG_INFINITY }
    }
}

/// Claims that are being pruned, step by step.
#[derive(Debug)]
pub struct Pruning {
    ledger: Ledger,
    kind: ClaimKind,
    /// How long after its arrival a watermark counts: the ack deadline and the slack.
    kept: Duration,
    retention: Duration,
    /// Where the next step begins, in seconds since 1970. Before it lie only the rows that earlier steps
    /// deleted, until they are vacuumed, and claims that were left to other workers.
    from: f64,
}

impl Pruning {
    /// Prunes some claims and returns how many; zero when none is left.
    ///
    /// # Errors
    ///
    /// When the database is unavailable.
    pub async fn step(&mut self) -> Result<u64, DatabaseError> {
        let statement = match self.kind {
            ClaimKind::Message => prune!("message_claims"),
            ClaimKind::Event => prune!("event_claims"),
        };
        let (kind, kept, retention) =
            (self.kind.name(), self.kept.as_secs_f64(), self.retention.as_secs_f64());
        let from = self.from;
        let pruned: Vec<f64> = self
            .ledger
            .database
            .run(self.ledger.timeout, async move |pool| {
                sqlx::query_scalar(statement)
                    .bind(kind)
                    .bind(STEP)
                    .bind(kept)
                    .bind(retention)
                    .bind(from)
                    .fetch_all(&pool)
                    .await
            })
            .await?;
        // Minus a microsecond, which is the precision of seconds since 1970.
        self.from = pruned.iter().fold(from, |from, claimed_at| from.max(claimed_at - 1e-6));
        Ok(pruned.len() as u64)
    }
}

impl ClaimKind {
    fn name(self) -> &'static str {
        match self {
            Self::Message => "message",
            Self::Event => "event",
        }
    }
}

/// A watermark dated in the near future delays the next one just as one from the recent past does.
const BEGIN_WATERMARK: &str = "\
-- catchall: begin a watermark
insert into watermarks (id, pair)
select id, $1 from unnest(array[$1::uuid, $2]) as pair_of (id) where not exists (
    select from watermarks
    where published_at > now() - make_interval(secs => $3) and published_at < now() + make_interval(secs => $3))
returning id";

const WITHDRAW_WATERMARK: &str = "\
-- catchall: withdraw a watermark
delete from watermarks where pair = $1";

const DISCARD_FUTURE_WATERMARKS: &str = "\
-- catchall: drop watermarks of the future
delete from watermarks where published_at > now() + make_interval(secs => $1)";

const DISCARD_FUTURE_HORIZON: &str = "\
-- catchall: move a horizon of the future to now
update pruned_claims set used_before = greatest(now(), to_timestamp($1))
where used_before > greatest(now(), to_timestamp($1))";

/// The horizon does not move back here: what is pruned stays pruned, also after the retention is raised. Only
/// [`DISCARD_FUTURE_HORIZON`] moves it back.
const MOVE_HORIZON: &str = "\
-- catchall: move the horizon
insert into pruned_claims as f (kind, used_before)
select kind, through.published_at - make_interval(secs => retention)
from (values ('event', $3::float8), ('message', $2::float8)) as kinds (kind, retention),
    -- The last watermark that arrived longer ago than a message may be held.
    (select max(published_at) as published_at from queue_progress
     where published_at <= now() and arrived_at < now() - make_interval(secs => $1)) as through
where through.published_at is not null
on conflict (kind) do update set used_before = excluded.used_before where f.used_before < excluded.used_before";

/// Watermarks older than the one that counts have no further use, whether they arrived or were lost.
const DROP_WATERMARKS: &str = "\
-- catchall: drop old watermarks
delete from watermarks where published_at < (
    select max(published_at) from queue_progress
    where published_at <= now() and arrived_at < now() - make_interval(secs => $1))";

const HORIZON: &str = "\
-- catchall: read the horizon
select kind, extract(epoch from used_before)::float8 from pruned_claims";
