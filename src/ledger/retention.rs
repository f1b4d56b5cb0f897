//! Retention: which claims are forgotten, and when that is safe.
//!
//! A claim must outlive every copy of what it guards. Copies arise in two ways, and each has its bound:
//!
//! - Publishers send again, for as long as they do: the *retention*, measured from the last time the claim was
//!   met.
//! - The queue keeps copies, for as long as nobody takes them: no bound in time at all. So time is told by what
//!   the queue has let through. A *mark* is an empty message with an id; it is noted in the ledger before it is
//!   published and again when it is handed out, and then everything that was published before it has been
//!   handed out too, because the queue is first in, first out and puts what comes back at its head. What had
//!   been handed out by then is counted, or recognised (which renews its claim), within the *hold*: a worker
//!   refuses to count what it has held longer.
//!
//! So a claim that was last met at `t` is forgotten once a mark published after `t` + retention has arrived and
//! the hold has passed since. While no worker works no mark arrives, however long that lasts.

use std::time::{Duration, SystemTime};

use uuid::Uuid;

use super::Ledger;
use crate::postgres::Error;

/// Claims that are forgotten in one statement: some ten milliseconds, so that nobody waits for it for long.
const STEP: i32 = 5_000;

/// Marks per retention or hold, whichever is shorter: claims live longer by one part in so many.
const MARKS: u32 = 24;

/// How long the ledger remembers what it has counted.
#[derive(Clone, Debug, clap::Args)]
#[group(skip)]
#[expect(clippy::struct_field_names, reason = "the unit belongs into the names of the options")]
#[expect(clippy::doc_markdown, reason = "the help is plain text")]
pub struct Config {
    /// How long a message_id counts once, in seconds, from the last message that had it. Longer than publishers
    /// send one message again: three days outlast a weekend. A claim takes some 100 bytes; ingest makes one for
    /// each of its messages
    #[arg(long, env = "CATCHALL_MESSAGE_RETENTION_SECS", value_name = "SECONDS", default_value_t = 259_200)]
    message_retention_secs: u32,

    /// How long an event's id or Idempotency-Key counts once, in seconds, from the last event that had it. A
    /// claim takes some 100 bytes, one for every keyed event: shorten it before the disk fills
    #[arg(long, env = "CATCHALL_EVENT_RETENTION_SECS", value_name = "SECONDS", default_value_t = 259_200)]
    event_retention_secs: u32,

    /// How long a worker may hold a message, in seconds: what it could not count by then it gives back. At least
    /// the broker's consumer_timeout, and the same for all workers; claims are kept for so much longer
    #[arg(long, env = "CATCHALL_MAX_HOLD_SECS", value_name = "SECONDS", default_value_t = 86_400, value_parser = clap::value_parser!(u32).range(1..))]
    max_hold_secs: u32,
}

impl Config {
    /// How long a worker may hold a message.
    #[must_use]
    pub fn max_hold(&self) -> Duration {
        seconds(self.max_hold_secs)
    }

    /// How often a mark is to be sent.
    #[must_use]
    pub fn mark_interval(&self) -> Duration {
        let shortest = self.message_retention_secs.min(self.event_retention_secs).min(self.max_hold_secs);
        (seconds(shortest) / MARKS).clamp(Duration::from_secs(1), Duration::from_hours(1))
    }
}

fn seconds(number: u32) -> Duration {
    Duration::from_secs(number.into())
}

/// The two kinds of claims.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Of messages, by `message_id`.
    Message,
    /// Of events, by key.
    Event,
}

/// Claims last met before these times may have been forgotten; nothing where none ever was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Horizon {
    /// Of messages.
    pub messages: Option<SystemTime>,
    /// Of events.
    pub events: Option<SystemTime>,
}

impl Ledger {
    /// Notes a mark that is about to be published, and returns its id; nothing when one was published within
    /// the `interval`, by whatever worker.
    ///
    /// # Errors
    ///
    /// When the database is not there.
    pub async fn begin_mark(&self, interval: Duration) -> Result<Option<Uuid>, Error> {
        self.database
            .run(self.patience, async move |pool| {
                sqlx::query_scalar(BEGIN_MARK)
                    .bind(Uuid::now_v7())
                    .bind(interval.as_secs_f64())
                    .fetch_optional(&pool)
                    .await
            })
            .await
    }

    /// Moves the horizon to where the marks that have arrived allow it, and returns it. Nothing is forgotten
    /// yet.
    ///
    /// # Errors
    ///
    /// When the database is not there.
    pub async fn move_horizon(&self, config: &Config) -> Result<Horizon, Error> {
        let hold = config.max_hold().as_secs_f64();
        let (messages, events) = (config.message_retention_secs, config.event_retention_secs);
        self.database
            .run(self.patience, async move |pool| {
                sqlx::query(MOVE_HORIZON)
                    .bind(hold)
                    .bind(f64::from(messages))
                    .bind(f64::from(events))
                    .execute(&pool)
                    .await?;
                sqlx::query(DROP_MARKS).bind(hold).execute(&pool).await
            })
            .await?;
        self.horizon().await
    }

    /// How far back claims can be relied on.
    ///
    /// # Errors
    ///
    /// When the database is not there.
    pub async fn horizon(&self) -> Result<Horizon, Error> {
        let rows: Vec<(String, f64)> = self
            .database
            .run(self.patience, async |pool| sqlx::query_as(HORIZON).fetch_all(&pool).await)
            .await?;
        let of = |kind: Kind| {
            let row = rows.iter().find(|(name, _)| name == kind.name());
            row.map(|(_, epoch)| SystemTime::UNIX_EPOCH + Duration::from_secs_f64(epoch.max(0.0)))
        };
        Ok(Horizon { messages: of(Kind::Message), events: of(Kind::Event) })
    }

    /// Forgets some of the claims that are behind the horizon, the oldest, and returns how many; zero when none
    /// is left.
    ///
    /// # Errors
    ///
    /// When the database is not there.
    pub async fn forget_some(&self, kind: Kind) -> Result<u64, Error> {
        let statement = match kind {
            Kind::Message => FORGET_MESSAGES,
            Kind::Event => FORGET_EVENTS,
        };
        let forgotten: Vec<Uuid> = self
            .database
            .run(self.patience, async move |pool| {
                sqlx::query_scalar(statement).bind(kind.name()).bind(STEP).fetch_all(&pool).await
            })
            .await?;
        Ok(forgotten.len() as u64)
    }
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Message => "message",
            Self::Event => "event",
        }
    }
}

const BEGIN_MARK: &str = "\
-- catchall: begin a mark
insert into queue_marks (id)
select $1::uuid where not exists (
    select from queue_marks where published_at > now() - make_interval(secs => $2))
returning id";

/// The horizon never moves back: what is forgotten stays so, also after the retention was raised.
const MOVE_HORIZON: &str = "\
-- catchall: move the horizon
insert into forgotten_claims as f (kind, used_before)
select kind, through.published_at - make_interval(secs => retention)
from (values ('event', $3::float8), ('message', $2::float8)) as kinds (kind, retention),
    -- The last mark that has been through for as long as a message may be held.
    (select max(published_at) as published_at from queue_marks
     where arrived_at < now() - make_interval(secs => $1)) as through
where through.published_at is not null
on conflict (kind) do update set used_before = greatest(f.used_before, excluded.used_before)";

/// Older marks than the one that counts have nothing more to say, whether they arrived or were lost.
const DROP_MARKS: &str = "\
-- catchall: drop old marks
delete from queue_marks where published_at < (
    select max(published_at) from queue_marks where arrived_at < now() - make_interval(secs => $1))";

const HORIZON: &str = "\
-- catchall: read the horizon
select kind, extract(epoch from used_before)::float8 from forgotten_claims";

/// What another worker forgets or renews at the same moment is left to it: nobody waits here, so nobody can
/// wait in a circle.
const FORGET_MESSAGES: &str = "\
-- catchall: forget claims of messages
delete from message_claims where id in (
    select id from message_claims
    where claimed_at < (select used_before from forgotten_claims where kind = $1)
    order by claimed_at limit $2 for update skip locked)
returning id";

const FORGET_EVENTS: &str = "\
-- catchall: forget claims of events
delete from event_claims where id in (
    select id from event_claims
    where claimed_at < (select used_before from forgotten_claims where kind = $1)
    order by claimed_at limit $2 for update skip locked)
returning id";
