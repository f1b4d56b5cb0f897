//! The feed of changes: `GET /changes`, as pages, with a wait for news, or as server-sent events.

use std::fmt::Write;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Extension, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use tokio::sync::broadcast::{self, error::RecvError};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{Instant, timeout_at};
use utoipa::{IntoParams, IntoResponses, ToSchema};

use super::answer::held;
use super::feed::{Feed, News, READ};
use super::parameters::{Parameters, any_number, invalid, limit, wait};
use super::rows::preferred;
use crate::classified::DomainReport;
use crate::http::{self, Budget, Caller, FairPermit, FairSemaphore, Problem, ProblemType};
use crate::position::{NoPosition, Position, PositionText};
use crate::shutdown::Shutdown;
use crate::store::{Change, Portion};

/// Changes on a page: the default, and the most.
const LIMIT: u32 = 100;
const MAX_LIMIT: u32 = 1000;

/// The longest wait for news.
const MAX_WAIT: Duration = Duration::from_mins(1);

/// The longest silence for a subscriber: a proxy would take a longer one for a dead connection.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// Clients of one thread that wait for news at a time. Each takes a few kilobytes. One that does not keep up
/// also takes the text of two reads: one being sent, and one in the channel.
const FOLLOWERS: usize = 2000;

/// Followers of one thread that may read what they have missed at the same time. They share two connections
/// with lists, totals and the page, and leave one of them free, however many come at once.
const CATCHING_UP: usize = 1;

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// What the handlers of the feed share.
#[derive(Clone)]
pub(super) struct Changes {
    feed: Feed,
    budget: Budget,
    followers: FairSemaphore,
    /// For followers that are behind.
    turns: Arc<Semaphore>,
    shutdown: Shutdown,
}

impl Changes {
    pub(super) fn new(feed: Feed, budget: Budget, shutdown: Shutdown) -> Self {
        let (followers, turns) = (FairSemaphore::new(FOLLOWERS), Arc::new(Semaphore::new(CATCHING_UP)));
        Self { feed, budget, followers, turns, shutdown }
    }

    /// Lets a client follow the feed, until the permit is dropped.
    fn let_follow(&self, caller: &Caller) -> Result<FairPermit, Problem> {
        let permit = self.followers.try_acquire(caller);
        permit.ok_or_else(|| Problem::new(ProblemType::Unavailable, "too many clients wait for changes"))
    }

    /// The next changes for a follower that is behind, once it is its turn. The turn ends with the read, so a
    /// slow follower holds up nobody.
    /// `None`: its turn did not come before the next heartbeat is due.
    async fn catch_up(&self, position: &Position, heartbeat: Instant) -> Result<Option<Portion>, Problem> {
        let turn = timeout_at(heartbeat, Arc::clone(&self.turns).acquire_owned()).await;
        let Ok(turn) = turn else { return Ok(None) };
        self.feed.source.changes(position, READ, turn).await.map(Some)
    }
}

/// The parameters of the feed, for the API's document.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "it only describes")]
struct ChangesParameters {
    /// Only changes after this position, or after `now`. Without it: from the beginning.
    since: Option<PositionText>,
    /// The most changes of a page. Default 100. Values are limited to 1 to 1,000.
    #[param(schema_with = any_number)]
    limit: Option<u32>,
    /// How many seconds to wait for a change if there is none yet, at most 60.
    #[param(schema_with = any_number)]
    wait: Option<u32>,
}

/// The header of event streams, for the API's document.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
#[expect(dead_code, reason = "it only describes")]
struct LastEvent {
    /// For event streams: the position to continue after, instead of `since`.
    #[param(rename = "Last-Event-ID", value_type = PositionText, required = false)]
    id: Option<PositionText>,
}

/// A page of the feed.
#[derive(Serialize, ToSchema)]
struct ChangesAnswer {
    /// The changes in order, each with what is now known about the domain.
    changes: Vec<DomainReport>,
    /// Where the next page begins, even if it has no changes yet.
    #[schema(value_type = PositionText)]
    position: Position,
}

/// The problems of the feed, for the API's document.
struct ChangesProblems;

impl IntoResponses for ChangesProblems {
    fn responses() -> http::Responses {
        use ProblemType::{InvalidParameter, MethodNotAllowed, Unavailable, UnknownPosition};
        http::problem_responses(&[InvalidParameter, MethodNotAllowed, Unavailable, UnknownPosition])
    }
}

/// `GET /changes`
#[utoipa::path(
    get,
    path = "/changes",
    summary = "Follow the changes of statuses",
    description = "Tells which domains changed their status, in order. A domain is in the feed once, at its \
        latest change. A client that starts at the beginning hears of every domain whose status is or was \
        known; one that continues hears of each change, or of a later one of the same domain. After a failure, \
        ask again with the last position: a change may come twice, and none is lost. A position of another \
        feed, as after a restore or a move of the database, is refused with 410: start again without `since`. \
        With `Accept: text/event-stream` the feed never ends: each event has a change as its `data` and its \
        position as its `id`, which a browser sends as `Last-Event-ID` when it reconnects.",
    tag = "Changes",
    params(
        ChangesParameters,
        LastEvent
    ),
    responses(
        (status = 200, description = "The changes after the position.",
            content(
                (ChangesAnswer = "application/json", example = json!({
                    "changes": [{"domain": "example.com", "status": "catch-all", "delivered": 1234,
                        "bounced": 0, "since": "2026-11-28T10:47:04.125Z"}],
                    "position": "48213.9f3a6c01-example.com"
                })),
                (String = "text/event-stream")
            )
        ),
        ChangesProblems
    ),
    security((), ("token" = ["read"]))
)]
pub(super) async fn get_changes(
    State(changes): State<Changes>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    mut parameters: Parameters,
) -> Result<Response, Problem> {
    let since: Option<Since> = parameters.take("since")?;
    let limit = limit(&mut parameters, LIMIT, MAX_LIMIT)?;
    let wait = wait(&mut parameters)?.min(MAX_WAIT);
    parameters.end()?;
    let formats = [("text/event-stream", true), ("application/json", false), ("*/*", false)];
    if preferred(&headers, &formats).unwrap_or_default() {
        let last = headers.get(LAST_EVENT_ID).map(|last| {
            let text = last.to_str().unwrap_or_default();
            text.parse().map_err(|error: NoPosition| invalid("Last-Event-ID", error))
        });
        let since = last.transpose()?.map(Since::Position).or(since);
        let permit = changes.let_follow(&caller)?;
        return subscribe(changes, permit, since).await;
    }
    page(&changes, &caller, since, limit, wait).await
}

/// Where to begin.
enum Since {
    Now,
    Position(Position),
}

impl FromStr for Since {
    type Err = NoPosition;

    fn from_str(text: &str) -> Result<Self, NoPosition> {
        if text == "now" { Ok(Self::Now) } else { text.parse().map(Self::Position) }
    }
}

async fn beginning(
    feed: &Feed,
    since: Option<Since>,
    held: impl Send + 'static,
) -> Result<Position, Problem> {
    match since {
        None => Ok(Position::beginning()),
        Some(Since::Now) => feed.source.head(held).await,
        Some(Since::Position(position)) => Ok(position),
    }
}

async fn page(
    changes: &Changes,
    caller: &Caller,
    since: Option<Since>,
    limit: u32,
    wait: Duration,
) -> Result<Response, Problem> {
    let waiting = changes.feed.source.wait(caller)?;
    let position = beginning(&changes.feed, since, waiting.clone()).await?;
    let (read, position) = if wait.is_zero() {
        told(changes.feed.source.changes(&position, limit, waiting).await?)
    } else {
        wait_for_changes(changes, caller, waiting, position, limit, wait).await?
    };
    let reports = read.into_iter().map(|change| change.report).collect();
    held(&changes.budget, &ChangesAnswer { changes: reports, position }).await
}

/// What a client is told: changes, and the position after them.
type Told = (Vec<Change>, Position);

fn told(portion: Portion) -> Told {
    let position = portion.position();
    (portion.changes, position)
}

/// The first changes after a position, or nothing if none comes in time. The changes come from the news,
/// which is in the order of the feed: a client that waits at its end, or at a position that it has not
/// reached, causes no read, however much changes.
async fn wait_for_changes(
    changes: &Changes,
    caller: &Caller,
    for_a_read: FairPermit,
    mut position: Position,
    limit: u32,
    wait: Duration,
) -> Result<Told, Problem> {
    let end = Instant::now() + wait;
    let source = &changes.feed.source;
    let (mut news, mut is_full) = (changes.feed.follow(&position, for_a_read.clone()).await?, true);
    while is_full && position.place < news.1 {
        let read = source.changes(&position, limit, for_a_read.clone()).await?;
        (is_full, position) = (read.is_full, read.position());
        if !read.changes.is_empty() {
            return Ok(told(read));
        }
    }
    // A client that need not wait is answered even if too many others wait.
    drop(for_a_read);
    let _permit = changes.let_follow(caller)?;
    let mut has_missed = false;
    loop {
        let more = tokio::select! {
            more = timeout_at(end, news.0.recv()) => more,
            () = changes.shutdown.clone() => return Ok((Vec::new(), position)),
        };
        match more {
            // What was missed came before this, so it is not after the position either.
            Ok(Ok(read)) if read.end <= position.place => has_missed = false,
            Ok(Ok(_)) if has_missed => {
                let for_a_read = source.wait(caller)?;
                return source.changes(&position, limit, for_a_read).await.map(told);
            }
            Ok(Ok(read)) => {
                let after = read.changes.iter().filter(|change| change.place > position.place);
                let after: Vec<_> = after.take(limit as usize).cloned().collect();
                position = read.position();
                if let Some(last) = after.last() {
                    if after.len() == limit as usize {
                        position.place.clone_from(&last.place);
                    }
                    return Ok((after, position));
                }
            }
            Ok(Err(RecvError::Lagged(_))) => has_missed = true,
            Ok(Err(RecvError::Closed)) | Err(_) => return Ok((Vec::new(), position)),
        }
    }
}

async fn subscribe(changes: Changes, permit: FairPermit, since: Option<Since>) -> Result<Response, Problem> {
    let position = beginning(&changes.feed, since, permit.clone()).await?;
    // Follow before the first read: what the read does not see is in the news.
    let (news, told) = changes.feed.follow(&position, permit.clone()).await?;
    let is_behind = position.place < told;
    let (events, sent) = mpsc::channel::<Bytes>(1);
    tokio::spawn(async move {
        let _permit = permit;
        let subscribers = metrics::gauge!("catchall_query_subscribers");
        subscribers.increment(1.0);
        let end = changes.shutdown.clone();
        tokio::select! {
            () = send(&changes, news, position, is_behind, &events) => {}
            () = events.closed() => {}
            () = end => {}
        }
        subscribers.decrement(1.0);
    });
    let body = futures::stream::unfold(sent, async |mut sent| {
        let part = sent.recv().await?;
        Some((Ok::<_, std::convert::Infallible>(part), sent))
    });
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
        // A proxy that buffers answers would hold events back.
        (HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no")),
    ];
    Ok((headers, Body::from_stream(body)).into_response())
}

/// Sends changes until the subscriber has gone: first what it has missed, then the news. Nothing is read or
/// written before there is room, so a slow subscriber holds no more than what is on its way to it.
async fn send(
    changes: &Changes,
    mut news: broadcast::Receiver<News>,
    mut position: Position,
    mut is_behind: bool,
    events: &mpsc::Sender<Bytes>,
) {
    // An event without data: the client notes its position, and dispatches nothing.
    let begins = format!("id: {position}\n\n");
    if events.send(begins.into()).await.is_err() {
        return;
    }
    let mut text = String::new();
    let mut heartbeat = Instant::now() + HEARTBEAT;
    loop {
        let Ok(room) = events.reserve().await else { return };
        if is_behind {
            match changes.catch_up(&position, heartbeat).await {
                Ok(Some(read)) => {
                    is_behind = read.is_full;
                    write(&mut text, &mut position, &read);
                }
                Ok(None) => {}
                Err(_) => return,
            }
        } else {
            match timeout_at(heartbeat, news.recv()).await {
                Ok(Ok(read)) => write(&mut text, &mut position, &read),
                Ok(Err(RecvError::Lagged(_))) => is_behind = true,
                Ok(Err(RecvError::Closed)) => return,
                Err(_) => {}
            }
        }
        // News may keep coming without any of it being after the position of this subscriber.
        if text.is_empty() && heartbeat <= Instant::now() {
            text.push_str(":\n\n");
        }
        if !text.is_empty() {
            text.shrink_to_fit();
            room.send(std::mem::take(&mut text).into());
            heartbeat = Instant::now() + HEARTBEAT;
        }
    }
}

/// Appends the changes after the position as events, and moves it.
fn write(text: &mut String, position: &mut Position, read: &Portion) {
    if read.end <= position.place {
        return;
    }
    position.feed = Some(read.feed);
    for change in &read.changes {
        if change.place > position.place {
            position.place.clone_from(&change.place);
            let data =
                serde_json::to_string(&change.report).expect("a report is made of strings and numbers");
            write!(text, "id: {position}\ndata: {data}\n\n").expect("a string grows as it must");
        }
    }
    position.place.clone_from(&read.end);
}
