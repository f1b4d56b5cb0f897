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
    /// Told when the open group weighs what somebody waits for.
    reached: Notify,
    capacity: usize,
}

#[derive(Debug)]
struct Open<T, A: Clone> {
    items: T,
    weight: usize,
    since: Instant,
    answer: oneshot::Sender<A>,
    gate: Gate<A>,
    /// The weight of the rounds that have no answer yet.
    taken: usize,
    /// The weight that somebody waits for.
    wanted: usize,
}

/// Resolves with the answer to a whole group; one allocation serves all who wait for it. It resolves with an
/// error if the round was lost without an answer.
pub type Gate<A> = Shared<oneshot::Receiver<A>>;

/// A group that no longer grows, and the duty to answer all who are in it.
#[derive(Debug)]
pub struct Round<'a, T: Default, A: Clone> {
    /// What was gathered.
    pub items: T,
    /// When its first item came.
    pub since: Instant,
    /// Opens the gate for all who wait.
    pub answer: Responder<'a, T, A>,
}

/// The duty to answer a round. Until it is answered or given up, what is in it counts as waiting.
#[derive(Debug)]
pub struct Responder<'a, T: Default, A: Clone> {
    group: &'a Group<T, A>,
    weight: usize,
    sender: Option<oneshot::Sender<A>>,
}

impl<T: Default, A: Clone> Responder<'_, T, A> {
    /// The weight of all that is answered.
    #[must_use]
    pub fn weight(&self) -> usize {
        self.weight
    }

    /// Answers all who wait.
    pub fn send(mut self, answer: A) {
        if let Some(sender) = self.sender.take() {
            // Nobody is left to hear it when every client has gone.
            let _ = sender.send(answer);
        }
    }
}

impl<T: Default, A: Clone> Drop for Responder<'_, T, A> {
    fn drop(&mut self) {
        self.group.open().taken -= self.weight;
    }
}

/// The open group holds all it may: the rounds do not keep up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

impl<T: Default, A: Clone> Open<T, A> {
    fn new() -> Self {
        let (answer, gate) = oneshot::channel();
        let (weight, taken, wanted) = (0, 0, usize::MAX);
        Self {
            items: T::default(),
            weight,
            since: Instant::now(),
            answer,
            gate: gate.shared(),
            taken,
            wanted,
        }
    }
}

impl<T: Default, A: Clone> Group<T, A> {
    /// A group of which up to `capacity` of weight waits at a time, gathering or in rounds without an answer. It
    /// bounds the memory of all that wait.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self { open: Mutex::new(Open::new()), filled: Notify::new(), reached: Notify::new(), capacity }
    }

    /// Adds to the open group and returns the gate to wait at. An item of any weight fits where nothing waits.
    ///
    /// # Errors
    ///
    /// When as much waits as may: [`Full`].
    pub fn join(&self, weight: usize, add: impl FnOnce(&mut T)) -> Result<Gate<A>, Full> {
        let mut open = self.open();
        let waiting = open.taken + open.weight;
        if waiting > 0 && waiting + weight > self.capacity {
            return Err(Full);
        }
        if open.weight == 0 {
            open.since = Instant::now();
            self.filled.notify_one();
        }
        let before = open.weight;
        open.weight += weight;
        if before < open.wanted && open.weight >= open.wanted {
            self.reached.notify_one();
        }
        add(&mut open.items);
        Ok(open.gate.clone())
    }

    /// Waits until there is something in the open group, and takes it. It may be dropped while it waits.
    pub async fn take(&self) -> Round<'_, T, A> {
        loop {
            // Registered before the look: what is added in between is not missed.
            let filled = self.filled.notified();
            if let Some(round) = self.take_now() {
                return round;
            }
            filled.await;
        }
    }

    /// Waits until the open group weighs so much. It may be dropped while it waits; one may wait at a time.
    pub async fn reaches(&self, weight: usize) {
        loop {
            let reached = self.reached.notified();
            {
                let mut open = self.open();
                if open.weight >= weight {
                    return;
                }
                open.wanted = weight;
            }
            reached.await;
        }
    }

    fn take_now(&self) -> Option<Round<'_, T, A>> {
        let mut open = self.open();
        if open.weight == 0 {
            return None;
        }
        let taken = open.taken + open.weight;
        let Open { items, weight, since, answer, .. } = std::mem::replace(&mut *open, Open::new());
        open.taken = taken;
        Some(Round { items, since, answer: Responder { group: self, weight, sender: Some(answer) } })
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
        let group = Group::<Vec<u8>, &str>::new(10);
        let gates = [group.join(1, |items| items.push(1)), group.join(1, |items| items.push(2))];
        let round = group.take().await;
        let late = group.join(1, |items| items.push(3)).unwrap();
        assert_eq!((round.items, round.answer.weight()), (vec![1, 2], 2));
        round.answer.send("done");
        for gate in gates {
            assert_eq!(gate.unwrap().await, Ok("done"));
        }
        assert_eq!(late.now_or_never(), None);
    }

    #[tokio::test]
    async fn it_is_bounded_and_takes_anything_when_empty() {
        let group = Group::<Vec<u8>, ()>::new(3);
        drop(group.join(5, |_| {}).unwrap());
        assert_eq!(group.join(1, |_| {}).map(drop), Err(Full));
        drop(group.take().await);
        drop(group.join(2, |_| {}).unwrap());
        drop(group.join(1, |_| {}).unwrap());
        assert_eq!(group.join(1, |_| {}).map(drop), Err(Full));
    }

    #[tokio::test]
    async fn what_has_no_answer_yet_waits_too() {
        let group = Group::<Vec<u8>, ()>::new(3);
        drop(group.join(2, |_| {}).unwrap());
        let first = group.take().await;
        drop(group.join(1, |_| {}).unwrap());
        let second = group.take().await;
        assert_eq!(group.join(1, |_| {}).map(drop), Err(Full));
        second.answer.send(());
        drop(group.join(1, |_| {}).unwrap());
        assert_eq!(group.join(1, |_| {}).map(drop), Err(Full));
        drop(first);
        drop(group.join(2, |_| {}).unwrap());
    }

    #[tokio::test]
    async fn a_round_that_is_lost_lets_nobody_wait_for_ever() {
        let group = Group::<Vec<u8>, ()>::new(3);
        let gate = group.join(1, |_| {}).unwrap();
        drop(group.take().await);
        assert!(gate.await.is_err());
    }

    #[tokio::test]
    async fn a_round_waits_for_the_first_to_join() {
        let group = Group::<Vec<u8>, ()>::new(3);
        let (round, _gate) = tokio::join!(group.take(), async { group.join(1, |items| items.push(7)) });
        assert_eq!(round.items, [7]);
        assert!(group.take().now_or_never().is_none());
    }

    #[tokio::test]
    async fn who_waits_for_a_weight_is_told_when_it_is_there() {
        let group = Group::<Vec<u8>, ()>::new(9);
        drop(group.join(2, |_| {}).unwrap());
        assert!(group.reaches(3).now_or_never().is_none());
        let ((), _gate) = tokio::join!(group.reaches(3), async { group.join(1, |_| {}) });
        assert_eq!(group.take().await.answer.weight(), 3);
        assert!(group.reaches(3).now_or_never().is_none());
        drop(group.join(5, |_| {}).unwrap());
        assert!(group.reaches(3).now_or_never().is_some());
        assert!(group.reaches(6).now_or_never().is_none());
        let ((), _gate) = tokio::join!(group.reaches(7), async {
            drop(group.join(1, |_| {}));
            group.join(1, |_| {})
        });
    }
}
