//! Group commit without a timer: while one group is being made durable the next one gathers.
//!
//! A lone caller never waits for company, and a flood groups itself: the longer a round takes, the more is
//! gathered for the next. The two loops that use it are ingest's (events on the way to the broker) and
//! query's (names on the way to the replica).

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use futures::FutureExt;
use futures::future::Shared;
use tokio::sync::{Notify, oneshot};

/// Where callers add to the group that is open, and rounds take it.
#[derive(Debug)]
pub struct Group<T, A: Clone> {
    open: Mutex<Open<T, A>>,
    filled: Notify,
    filled_enough: Notify,
    enough: usize,
    capacity: usize,
}

#[derive(Debug)]
struct Open<T, A: Clone> {
    items: T,
    weight: usize,
    since: Instant,
    answer: oneshot::Sender<A>,
    gate: Gate<A>,
}

/// Resolves with the answer to a whole group; one allocation serves all who wait for it. It resolves with an
/// error if the round was lost without an answer.
pub type Gate<A> = Shared<oneshot::Receiver<A>>;

/// A group that no longer grows, and the duty to answer all who are in it.
#[derive(Debug)]
pub struct Round<T, A> {
    /// What was gathered.
    pub items: T,
    /// The weight of all of it.
    pub weight: usize,
    /// When its first item came.
    pub since: Instant,
    /// Opens the gate for all who wait.
    pub answer: oneshot::Sender<A>,
}

/// The open group holds all it may: the rounds do not keep up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

impl<T: Default, A: Clone> Open<T, A> {
    fn new() -> Self {
        let (answer, gate) = oneshot::channel();
        Self { items: T::default(), weight: 0, since: Instant::now(), answer, gate: gate.shared() }
    }
}

impl<T: Default, A: Clone> Group<T, A> {
    /// A group that gathers up to `capacity` of weight at a time, which bounds its memory, and of which
    /// `enough` is worth a round at once, whatever else that round could wait for.
    #[must_use]
    pub fn new(enough: usize, capacity: usize) -> Self {
        Self {
            open: Mutex::new(Open::new()),
            filled: Notify::new(),
            filled_enough: Notify::new(),
            enough,
            capacity,
        }
    }

    /// Adds to the open group and returns the gate to wait at. An item of any weight fits into an empty
    /// group.
    ///
    /// # Errors
    ///
    /// When the open group is [`Full`].
    pub fn join(&self, weight: usize, add: impl FnOnce(&mut T)) -> Result<Gate<A>, Full> {
        let mut open = self.open();
        if open.weight == 0 {
            open.since = Instant::now();
            self.filled.notify_one();
        } else if open.weight + weight > self.capacity {
            return Err(Full);
        }
        let before = open.weight;
        open.weight += weight;
        if before < self.enough && open.weight >= self.enough {
            self.filled_enough.notify_one();
        }
        add(&mut open.items);
        Ok(open.gate.clone())
    }

    /// Waits until there is something in the open group, and takes it. It may be dropped while it waits.
    pub async fn take(&self) -> Round<T, A> {
        loop {
            // Registered before the look: what is added in between is not missed.
            let filled = self.filled.notified();
            if let Some(round) = self.take_now() {
                return round;
            }
            filled.await;
        }
    }

    /// Waits until there is enough in the open group. It may be dropped while it waits.
    pub async fn enough(&self) {
        loop {
            let filled = self.filled_enough.notified();
            if self.open().weight >= self.enough {
                return;
            }
            filled.await;
        }
    }

    fn take_now(&self) -> Option<Round<T, A>> {
        let mut open = self.open();
        if open.weight == 0 {
            return None;
        }
        let Open { items, weight, since, answer, gate: _ } = std::mem::replace(&mut *open, Open::new());
        Some(Round { items, weight, since, answer })
    }

    fn open(&self) -> MutexGuard<'_, Open<T, A>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn all_who_joined_one_round_get_its_answer() {
        let group = Group::<Vec<u8>, &str>::new(1, 10);
        let gates = [group.join(1, |items| items.push(1)), group.join(1, |items| items.push(2))];
        let round = group.take().await;
        let late = group.join(1, |items| items.push(3)).unwrap();
        assert_eq!((round.items, round.weight), (vec![1, 2], 2));
        round.answer.send("done").unwrap();
        for gate in gates {
            assert_eq!(gate.unwrap().await, Ok("done"));
        }
        assert_eq!(late.now_or_never(), None);
    }

    #[tokio::test]
    async fn it_is_bounded_and_takes_anything_when_empty() {
        let group = Group::<Vec<u8>, ()>::new(1, 3);
        drop(group.join(5, |_| {}).unwrap());
        assert_eq!(group.join(1, |_| {}).map(drop), Err(Full));
        drop(group.take().await);
        drop(group.join(2, |_| {}).unwrap());
        drop(group.join(1, |_| {}).unwrap());
        assert_eq!(group.join(1, |_| {}).map(drop), Err(Full));
    }

    #[tokio::test]
    async fn a_round_that_is_lost_lets_nobody_wait_for_ever() {
        let group = Group::<Vec<u8>, ()>::new(1, 3);
        let gate = group.join(1, |_| {}).unwrap();
        drop(group.take().await);
        assert!(gate.await.is_err());
    }

    #[tokio::test]
    async fn a_round_waits_for_the_first_to_join() {
        let group = Group::<Vec<u8>, ()>::new(1, 3);
        let (round, _gate) = tokio::join!(group.take(), async { group.join(1, |items| items.push(7)) });
        assert_eq!(round.items, [7]);
        assert!(group.take().now_or_never().is_none());
    }

    #[tokio::test]
    async fn enough_is_told_when_it_is_there() {
        let group = Group::<Vec<u8>, ()>::new(3, 9);
        drop(group.join(2, |_| {}).unwrap());
        assert!(group.enough().now_or_never().is_none());
        let ((), _gate) = tokio::join!(group.enough(), async { group.join(1, |_| {}) });
        assert_eq!(group.take().await.weight, 3);
        assert!(group.enough().now_or_never().is_none());
        drop(group.join(5, |_| {}).unwrap());
        assert!(group.enough().now_or_never().is_some());
        assert!(group.take().now_or_never().is_some());
    }
}
