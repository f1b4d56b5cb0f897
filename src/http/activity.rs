//! The requests under way on one connection, and its timeouts.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use axum::http::Version;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::transfer;

/// How long a new connection may take until its first request arrives, TLS included. Without this, silent
/// clients would hold connections forever.
pub(super) const FIRST_REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a connection may take from one request to the end of the next one's head. This includes idle
/// time, and closing a connection that is about to be used costs the client a retry.
const NEXT_REQUEST_TIMEOUT: Duration = Duration::from_secs(75);

/// The same for a connection that has shown no valid token although tokens are required. These are probes,
/// for which another handshake is cheap, and strangers, who must not use up the connection limit.
const STRANGER_TIMEOUT: Duration = Duration::from_secs(10);

/// How often a connection in use is checked. A check takes a microsecond, and a stuck response can wait for
/// the next one.
const LOOK_INTERVAL: Duration = Duration::from_secs(15);

/// What to do with a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// Check again at this time.
    Keep(Instant),
    /// It has been idle for too long.
    Idle,
    /// The client does not read its response.
    Stuck,
}

/// The values of [`Activity::standing`].
const STRANGER: u8 = 0;
const LET_IN: u8 = 1;
const LEAVING: u8 = 2;

/// The requests under way on a connection: one at a time (HTTP/1.1) or many (HTTP/2).
#[derive(Debug)]
pub(super) struct Activity {
    version: OnceLock<Version>,
    /// [`LET_IN`] once a request with a valid token was let in, or tokens are not required.
    standing: AtomicU8,
    state: Mutex<State>,
    give_up: Arc<Notify>,
}

#[derive(Debug)]
struct State {
    requests: usize,
    /// When the last request ended, or when the connection was opened if there was none yet.
    idle_since: Instant,
    /// The deadline of each response that is being sent; unused slots are `None`.
    answers: Vec<Option<Instant>>,
}

impl Activity {
    pub(super) fn new() -> Arc<Self> {
        let state = State { requests: 0, idle_since: Instant::now(), answers: Vec::new() };
        Arc::new(Self {
            version: OnceLock::new(),
            standing: AtomicU8::new(STRANGER),
            state: Mutex::new(state),
            give_up: Arc::default(),
        })
    }

    /// Registers a request whose head has arrived.
    pub(super) fn begin(self: &Arc<Self>, version: Version) -> ActiveRequest {
        self.version.get_or_init(|| version);
        self.state().requests += 1;
        ActiveRequest { activity: Arc::clone(self), place: None }
    }

    /// The HTTP version of the first request, once it has arrived.
    pub(super) fn version(&self) -> Option<Version> {
        self.version.get().copied()
    }

    pub(super) fn is_http2(&self) -> bool {
        self.version() == Some(Version::HTTP_2)
    }

    /// Records that a request with a valid token was let in, or that tokens are not required.
    pub(super) fn let_in(&self) {
        // One that has to leave stays one that has to leave.
        let _ = self.standing.compare_exchange(STRANGER, LET_IN, Ordering::Relaxed, Ordering::Relaxed);
    }

    fn is_let_in(&self) -> bool {
        self.standing.load(Ordering::Relaxed) == LET_IN
    }

    /// Ends the connection, unless a request was let in. Returns whether it does.
    pub(super) fn leave_if_stranger(&self) -> bool {
        let left = self.standing.compare_exchange(STRANGER, LEAVING, Ordering::Relaxed, Ordering::Relaxed);
        if left.is_ok() {
            self.give_up.notify_one();
        }
        left.is_ok()
    }

    /// Whether no request is under way, and since when that has been so, or was so last.
    pub(super) fn quiet(&self) -> (bool, Instant) {
        let state = self.state();
        (state.requests == 0, state.idle_since)
    }

    /// Notified when others need the memory that a slow client holds, or the place of its connection.
    pub(super) fn give_up(&self) -> &Arc<Notify> {
        &self.give_up
    }

    pub(super) fn look(&self) -> Decision {
        let now = Instant::now();
        let state = self.state();
        let stuck = state.answers.iter().flatten().min().copied();
        if stuck.is_some_and(|stuck| stuck <= now) {
            return Decision::Stuck;
        }
        let next = now + LOOK_INTERVAL;
        if state.requests > 0 {
            return Decision::Keep(stuck.map_or(next, |stuck| stuck.min(next)));
        }
        let may_be_idle = match self.version() {
            None => FIRST_REQUEST_TIMEOUT,
            Some(_) if self.is_let_in() => NEXT_REQUEST_TIMEOUT,
            Some(_) => STRANGER_TIMEOUT,
        };
        let end = state.idle_since + may_be_idle;
        if end <= now { Decision::Idle } else { Decision::Keep(end.min(next)) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request, under way until this is dropped.
#[derive(Debug)]
pub(super) struct ActiveRequest {
    activity: Arc<Activity>,
    /// The slot of its response.
    place: Option<usize>,
}

impl ActiveRequest {
    pub(super) fn activity(&self) -> &Activity {
        &self.activity
    }

    /// Records that the response, begun at `begun`, has moved `moved` bytes.
    pub(super) fn answers(&mut self, begun: Instant, moved: u64) {
        let deadline = transfer::deadline(begun, moved);
        let mut state = self.activity.state();
        let place = *self.place.get_or_insert_with(|| {
            let free = state.answers.iter().position(Option::is_none);
            free.unwrap_or_else(|| {
                state.answers.push(None);
                state.answers.len() - 1
            })
        });
        state.answers[place] = Some(deadline);
    }
}

impl ActiveRequest {
    /// Records that the client has taken everything so far and waits for this server to send more.
    pub(super) fn waits(&mut self) {
        // Another response may use the slot meanwhile.
        if let Some(place) = self.place.take() {
            self.activity.state().answers[place] = None;
        }
    }
}

impl Drop for ActiveRequest {
    fn drop(&mut self) {
        let mut state = self.activity.state();
        state.requests -= 1;
        if let Some(place) = self.place {
            state.answers[place] = None;
        }
        if state.requests == 0 {
            state.idle_since = Instant::now();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::advance;

    fn looks_again(activity: &Activity) -> Duration {
        match activity.look() {
            Decision::Keep(until) => until - Instant::now(),
            decision => panic!("{decision:?}"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_without_a_request_is_idle_soon() {
        let activity = Activity::new();
        assert_eq!(looks_again(&activity), FIRST_REQUEST_TIMEOUT);
        advance(FIRST_REQUEST_TIMEOUT).await;
        assert_eq!(activity.look(), Decision::Idle);
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_idle_from_its_last_request_on() {
        for version in [Version::HTTP_11, Version::HTTP_2] {
            let activity = Activity::new();
            let (first, second) = (activity.begin(version), activity.begin(version));
            activity.let_in();
            advance(2 * NEXT_REQUEST_TIMEOUT).await;
            drop(second);
            assert_eq!(looks_again(&activity), LOOK_INTERVAL);
            drop(first);
            advance(Duration::from_secs(74)).await;
            assert_eq!(looks_again(&activity), Duration::from_secs(1));
            advance(Duration::from_secs(1)).await;
            assert_eq!(activity.look(), Decision::Idle);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_stranger_may_be_idle_for_less_time() {
        let activity = Activity::new();
        drop(activity.begin(Version::HTTP_11));
        assert_eq!(looks_again(&activity), STRANGER_TIMEOUT);
        advance(STRANGER_TIMEOUT).await;
        assert_eq!(activity.look(), Decision::Idle);
        activity.let_in();
        assert!(matches!(activity.look(), Decision::Keep(_)));
    }

    #[tokio::test(start_paused = true)]
    async fn one_answer_that_does_not_move_is_enough() {
        let activity = Activity::new();
        let mut quick = activity.begin(Version::HTTP_2);
        let mut stuck = activity.begin(Version::HTTP_2);
        let begun = Instant::now();
        stuck.answers(begun, 100);
        for second in 0..transfer::GRACE.as_secs() {
            quick.answers(begun, (second + 1) * transfer::MIN_RATE);
            assert!(matches!(activity.look(), Decision::Keep(_)));
            advance(Duration::from_secs(1)).await;
        }
        advance(Duration::from_millis(10)).await;
        assert_eq!(activity.look(), Decision::Stuck);
        drop(stuck);
        assert!(matches!(activity.look(), Decision::Keep(_)));
        // The slot is reused.
        let mut next = activity.begin(Version::HTTP_2);
        next.answers(begun, 0);
        assert_eq!(activity.look(), Decision::Stuck);
    }
}
