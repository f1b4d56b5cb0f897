//! Group commit without a timer: while one batch is made durable, the next one gathers.
//!
//! A lone caller never waits for others, and a flood batches itself: the longer a flush takes, the more the
//! next one gathers. It serves events on the way to the broker or to the data file, and names on the way to
//! the replica or to that file.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use futures::FutureExt;
use futures::future::Shared;
use tokio::sync::{Notify, oneshot};

/// Callers add items to the open batch; a flush takes the whole batch.
#[derive(Debug)]
pub struct Batcher<T, A: Clone> {
    open: Mutex<Open<T, A>>,
    filled: Notify,
    /// Notified when the open batch reaches the wanted weight.
    reached: Notify,
    capacity: usize,
}

#[derive(Debug)]
struct Open<T, A: Clone> {
    items: T,
    weight: usize,
    since: Instant,
    answer: oneshot::Sender<A>,
    ticket: Ticket<A>,
    /// The weight of the flushes that are not answered yet.
    taken: usize,
    /// The weight for which [`Batcher::reaches`] waits.
    wanted: usize,
}

/// Resolves with the answer to a whole batch; one allocation serves all tickets. It resolves with an error if
/// the flush is dropped without an answer.
pub type Ticket<A> = Shared<oneshot::Receiver<A>>;

/// A batch that no longer grows, and the duty to answer its callers.
#[derive(Debug)]
pub struct Flush<'a, T: Default, A: Clone> {
    /// The gathered items.
    pub items: T,
    /// When the first item came.
    pub since: Instant,
    /// Answers all who wait.
    pub answer: Responder<'a, T, A>,
}

/// The duty to answer a flush. Until it is answered or dropped, its items count as waiting.
#[derive(Debug)]
pub struct Responder<'a, T: Default, A: Clone> {
    batcher: &'a Batcher<T, A>,
    weight: usize,
    sender: Option<oneshot::Sender<A>>,
}

impl<T: Default, A: Clone> Responder<'_, T, A> {
    /// The weight of the flush.
    #[must_use]
    pub fn weight(&self) -> usize {
        self.weight
    }

    /// Answers all who wait.
    pub fn send(mut self, answer: A) {
        if let Some(sender) = self.sender.take() {
            // Sending fails if every client has gone.
            let _ = sender.send(answer);
        }
    }
}

impl<T: Default, A: Clone> Drop for Responder<'_, T, A> {
    fn drop(&mut self) {
        self.batcher.open().taken -= self.weight;
    }
}

/// The batcher is full: the flushes do not keep up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

impl<T: Default, A: Clone> Open<T, A> {
    fn new() -> Self {
        let (answer, ticket) = oneshot::channel();
        let (weight, taken, wanted) = (0, 0, usize::MAX);
        Self {
            items: T::default(),
            weight,
            since: Instant::now(),
            answer,
            ticket: ticket.shared(),
            taken,
            wanted,
        }
    }
}

impl<T: Default, A: Clone> Batcher<T, A> {
    /// A batcher in which items of up to `capacity` in weight wait, in the open batch or in unanswered
    /// flushes. The capacity bounds their memory.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self { open: Mutex::new(Open::new()), filled: Notify::new(), reached: Notify::new(), capacity }
    }

    /// Adds to the open batch and returns a ticket to wait with. While nothing waits, an item of any weight
    /// fits.
    ///
    /// # Errors
    ///
    /// [`Full`] when the capacity is reached.
    pub fn submit(&self, weight: usize, add: impl FnOnce(&mut T)) -> Result<Ticket<A>, Full> {
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
        Ok(open.ticket.clone())
    }

    /// Waits until the open batch has an item, and takes the batch. Cancel-safe.
    pub async fn take(&self) -> Flush<'_, T, A> {
        loop {
            // Registered before the check, so an item added in between is not missed.
            let filled = self.filled.notified();
            if let Some(flush) = self.flush_now() {
                return flush;
            }
            filled.await;
        }
    }

    /// Waits until the open batch has at least this weight. Cancel-safe; only one caller may wait at a time.
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

    fn flush_now(&self) -> Option<Flush<'_, T, A>> {
        let mut open = self.open();
        if open.weight == 0 {
            return None;
        }
        let taken = open.taken + open.weight;
        let Open { items, weight, since, answer, .. } = std::mem::replace(&mut *open, Open::new());
        open.taken = taken;
        Some(Flush { items, since, answer: Responder { batcher: self, weight, sender: Some(answer) } })
    }

    fn open(&self) -> MutexGuard<'_, Open<T, A>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn all_who_submitted_to_one_flush_get_its_answer() {
        let batcher = Batcher::<Vec<u8>, &str>::new(10);
        let tickets = [batcher.submit(1, |items| items.push(1)), batcher.submit(1, |items| items.push(2))];
        let flush = batcher.take().await;
        let late = batcher.submit(1, |items| items.push(3)).unwrap();
        assert_eq!((flush.items, flush.answer.weight()), (vec![1, 2], 2));
        flush.answer.send("done");
        for ticket in tickets {
            assert_eq!(ticket.unwrap().await, Ok("done"));
        }
        assert_eq!(late.now_or_never(), None);
    }

    #[tokio::test]
    async fn it_is_bounded_and_takes_anything_when_empty() {
        let batcher = Batcher::<Vec<u8>, ()>::new(3);
        drop(batcher.submit(5, |_| {}).unwrap());
        assert_eq!(batcher.submit(1, |_| {}).map(drop), Err(Full));
        drop(batcher.take().await);
        drop(batcher.submit(2, |_| {}).unwrap());
        drop(batcher.submit(1, |_| {}).unwrap());
        assert_eq!(batcher.submit(1, |_| {}).map(drop), Err(Full));
    }

    #[tokio::test]
    async fn unanswered_flushes_count_towards_the_capacity() {
        let batcher = Batcher::<Vec<u8>, ()>::new(3);
        drop(batcher.submit(2, |_| {}).unwrap());
        let first = batcher.take().await;
        drop(batcher.submit(1, |_| {}).unwrap());
        let second = batcher.take().await;
        assert_eq!(batcher.submit(1, |_| {}).map(drop), Err(Full));
        second.answer.send(());
        drop(batcher.submit(1, |_| {}).unwrap());
        assert_eq!(batcher.submit(1, |_| {}).map(drop), Err(Full));
        drop(first);
        drop(batcher.submit(2, |_| {}).unwrap());
    }

    #[tokio::test]
    async fn a_flush_that_is_lost_lets_nobody_wait_for_ever() {
        let batcher = Batcher::<Vec<u8>, ()>::new(3);
        let ticket = batcher.submit(1, |_| {}).unwrap();
        drop(batcher.take().await);
        assert!(ticket.await.is_err());
    }

    #[tokio::test]
    async fn a_flush_waits_for_the_first_item() {
        let batcher = Batcher::<Vec<u8>, ()>::new(3);
        let (flush, _ticket) =
            tokio::join!(batcher.take(), async { batcher.submit(1, |items| items.push(7)) });
        assert_eq!(flush.items, [7]);
        assert!(batcher.take().now_or_never().is_none());
    }

    #[tokio::test]
    async fn who_waits_for_a_weight_is_told_when_it_is_there() {
        let batcher = Batcher::<Vec<u8>, ()>::new(9);
        drop(batcher.submit(2, |_| {}).unwrap());
        assert!(batcher.reaches(3).now_or_never().is_none());
        let ((), _ticket) = tokio::join!(batcher.reaches(3), async { batcher.submit(1, |_| {}) });
        assert_eq!(batcher.take().await.answer.weight(), 3);
        assert!(batcher.reaches(3).now_or_never().is_none());
        drop(batcher.submit(5, |_| {}).unwrap());
        assert!(batcher.reaches(3).now_or_never().is_some());
        assert!(batcher.reaches(6).now_or_never().is_none());
        let ((), _ticket) = tokio::join!(batcher.reaches(7), async {
            drop(batcher.submit(1, |_| {}));
            batcher.submit(1, |_| {})
        });
    }
}
