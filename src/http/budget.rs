//! A memory budget that requests share: it bounds the total size of their bodies and parsed contents.
//!
//! A request takes memory in steps, as its body arrives, and returns it when its response is written. A
//! declared length reserves nothing: a client that announces much and sends nothing holds nothing.
//!
//! When the budget is used up, a request waits for at most [`WAIT`]. The wait ends in one of these ways:
//!
//! - Other requests return their memory, as all do whose clients keep up.
//! - The slowest clients are dropped: those that have sent or read the fewest bytes a second, among those
//!   that have had at least [`FAIR_CHANCE`]. So a client that fills the budget and keeps it is the first to
//!   lose it, whatever it does to look busy, because honest clients are not slower.
//! - Small requests go first, and the last eighth of the budget is reserved for them, so many large bodies
//!   only delay other large bodies.
//! - If the waiting requests hold more than half of the budget, they block each other, and some are refused:
//!   first those that hold the most memory for each byte sent, as a body that was compressed to expand hugely
//!   does, and among equals the last to begin.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, sleep, timeout};

/// How long a request waits for memory: long enough to work off a burst, and shorter than clients wait for a
/// response.
const WAIT: Duration = Duration::from_secs(3);

/// How often waiting requests look for clients that have become too slow.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// How long a transfer runs before its speed is judged: a few round trips around the world.
const FAIR_CHANCE: Duration = Duration::from_millis(250);

/// A request of up to this size is small: a bulk request of a thousand events.
const SMALL: usize = 256 * 1024;

/// Bytes of memory for requests. Clones share one budget.
#[derive(Clone, Debug)]
pub struct Budget(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    size: usize,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    free: usize,
    next: u64,
    holders: HashMap<u64, Holder>,
    /// In the order of service.
    waiting: BTreeMap<(Rank, u64), Waiting>,
}

/// Small before large. Of the small requests the smallest comes first; of the large ones the largest, because
/// it is nearest to returning its memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    Small(usize),
    Large(Reverse<usize>),
}

impl Rank {
    /// The rank of a request that holds `total` bytes once it is served.
    fn of(total: usize) -> Self {
        if total <= SMALL { Self::Small(total) } else { Self::Large(Reverse(total)) }
    }
}

#[derive(Debug, Default)]
struct Holder {
    bytes: usize,
    /// The transfer that the client is making, if any.
    transfer: Option<Transfer>,
    /// Whether it was asked to return its memory.
    given_up: bool,
    /// Whether it waits for memory: then its client is not to blame.
    waits: bool,
}

impl Holder {
    /// Whole bytes held for each byte that the client has moved: about the same for all uncompressed bodies.
    fn growth(&self) -> u64 {
        self.transfer.as_ref().map_or(0, |transfer| self.bytes as u64 / transfer.moved.max(1))
    }
}

#[derive(Debug)]
struct Transfer {
    begun: Instant,
    moved: u64,
    give_up: Arc<Notify>,
}

impl Transfer {
    /// Bytes a second from the beginning until now.
    fn rate(&self, now: Instant) -> u128 {
        u128::from(self.moved) * 1_000_000 / now.duration_since(self.begun).as_micros().max(1)
    }
}

#[derive(Debug)]
struct Waiting {
    bytes: usize,
    granted: oneshot::Sender<Grant>,
}

/// Bytes granted to a waiting request. Dropping the grant unused returns them.
#[derive(Debug)]
struct Grant {
    budget: Arc<Shared>,
    bytes: usize,
}

impl Grant {
    /// Gives the bytes to the share with this id.
    fn goes_to(mut self, id: u64) {
        self.budget.state().holder(id).bytes += std::mem::take(&mut self.bytes);
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.budget.state().free += self.bytes;
            self.budget.serve();
        }
    }
}

/// No memory became free in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exhausted;

/// The memory that one request holds. Dropping it returns the memory.
#[derive(Debug)]
pub struct Share {
    budget: Arc<Shared>,
    id: u64,
    bytes: usize,
}

impl Budget {
    /// A budget of `size` bytes.
    #[must_use]
    pub fn new(size: usize) -> Self {
        let state = State { free: size, next: 0, holders: HashMap::new(), waiting: BTreeMap::new() };
        Self(Arc::new(Shared { size, state: Mutex::new(state) }))
    }

    /// A share that holds nothing yet.
    #[must_use]
    pub fn share(&self) -> Share {
        let mut state = self.0.state();
        let id = state.next;
        state.next += 1;
        state.holders.insert(id, Holder::default());
        Share { budget: Arc::clone(&self.0), id, bytes: 0 }
    }

    /// Bytes held at the moment.
    #[must_use]
    pub fn held(&self) -> usize {
        self.0.size - self.0.state().free
    }
}

impl Share {
    /// Changes the share to `bytes` in total: at once if that is less than before or memory is free, else
    /// after a wait.
    ///
    /// # Errors
    ///
    /// When no memory is free after 3 s. The share then keeps its size.
    pub async fn hold(&mut self, bytes: usize) -> Result<(), Exhausted> {
        if bytes <= self.bytes {
            self.shrink_to(bytes);
            return Ok(());
        }
        let more = bytes - self.bytes;
        if let Some(mut waits) = self.budget.take(self.id, bytes, more) {
            let granted = timeout(WAIT, async {
                loop {
                    self.budget.make_room();
                    tokio::select! {
                        granted = &mut waits.granted => return granted,
                        () = sleep(LOOK_INTERVAL) => {}
                    }
                }
            });
            match granted.await {
                Ok(Ok(grant)) => grant.goes_to(self.id),
                _ => return Err(Exhausted),
            }
        }
        self.bytes = bytes;
        Ok(())
    }

    /// Shrinks the share to `bytes`, if it is larger.
    pub fn shrink_to(&mut self, bytes: usize) {
        if bytes < self.bytes {
            self.budget.give_back(self.id, self.bytes - bytes);
            self.bytes = bytes;
        }
    }

    /// The client begins to send or to read. If it is too slow while others need memory, `give_up` is
    /// notified, and the caller must drop this share.
    pub fn begin_transfer(&self, give_up: Arc<Notify>) {
        let transfer = Transfer { begun: Instant::now(), moved: 0, give_up };
        self.budget.state().holder(self.id).transfer = Some(transfer);
    }

    /// Records the bytes moved since the transfer began.
    pub fn moved(&self, bytes: u64) {
        if let Some(transfer) = &mut self.budget.state().holder(self.id).transfer {
            transfer.moved = bytes;
        }
    }

    /// The client's transfer is complete.
    pub fn end_transfer(&self) {
        let mut state = self.budget.state();
        let holder = state.holder(self.id);
        (holder.transfer, holder.given_up) = (None, false);
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut state = self.budget.state();
        state.holders.remove(&self.id);
        state.free += self.bytes;
        drop(state);
        self.budget.serve();
    }
}

impl State {
    fn holder(&mut self, id: u64) -> &mut Holder {
        self.holders.entry(id).or_default()
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The part reserved for small requests.
    fn reserve(&self) -> usize {
        self.size / 8
    }

    /// Bytes that a request of this rank may take.
    fn room(&self, free: usize, rank: Rank) -> usize {
        match rank {
            Rank::Small(_) => free,
            Rank::Large(_) => free.saturating_sub(self.reserve()),
        }
    }

    fn give_back(self: &Arc<Self>, id: u64, bytes: usize) {
        let mut state = self.state();
        state.free += bytes;
        state.holder(id).bytes -= bytes;
        drop(state);
        self.serve();
    }

    /// Takes `more` bytes for a share that then holds `total`. If it cannot, returns a place in the wait
    /// queue.
    fn take(self: &Arc<Self>, id: u64, total: usize, more: usize) -> Option<Waits> {
        let mut state = self.state();
        let place = (Rank::of(total), id);
        let is_first = state.waiting.first_key_value().is_none_or(|(first, _)| place < *first);
        if is_first && self.room(state.free, place.0) >= more {
            state.free -= more;
            state.holder(id).bytes = total;
            return None;
        }
        let (granted, waits) = oneshot::channel();
        state.waiting.insert(place, Waiting { bytes: more, granted });
        state.holder(id).waits = true;
        Some(Waits { budget: Arc::clone(self), place, since: Instant::now(), granted: waits })
    }

    /// Serves waiting requests in order, until not enough is free for the next one.
    fn serve(self: &Arc<Self>) {
        let mut state = self.state();
        let mut unwanted = Vec::new();
        while let Some(((rank, _), Waiting { bytes, .. })) = state.waiting.first_key_value()
            && self.room(state.free, *rank) >= *bytes
            && let Some((_, Waiting { bytes, granted })) = state.waiting.pop_first()
        {
            state.free -= bytes;
            let grant = Grant { budget: Arc::clone(self), bytes };
            unwanted.extend(granted.send(grant).err());
        }
        // Dropping an unwanted grant returns its bytes, for which it locks the state.
        drop(state);
    }

    /// Drops the slowest clients until the memory suffices for all waiting requests and the reserve. If it
    /// still does not, refuses the waiting requests that block each other.
    fn make_room(&self) {
        let mut state = self.state();
        let needed: usize = state.waiting.values().map(|waiting| waiting.bytes).sum();
        let coming: usize = state.holders.values().filter(|held| held.given_up).map(|held| held.bytes).sum();
        let mut short = (needed + self.reserve()).saturating_sub(state.free + coming);
        let now = Instant::now();
        let mut slowest: Vec<(u128, &mut Holder)> = state
            .holders
            .values_mut()
            .filter(|holder| holder.bytes > 0 && !holder.given_up)
            .filter(|holder| !holder.waits)
            .filter_map(|holder| {
                let transfer = holder.transfer.as_ref()?;
                let (had_its_chance, rate) = (transfer.begun + FAIR_CHANCE <= now, transfer.rate(now));
                had_its_chance.then_some((rate, holder))
            })
            .collect();
        slowest.sort_unstable_by_key(|(rate, _)| *rate);
        for (_, holder) in slowest {
            if short == 0 {
                return;
            }
            short = short.saturating_sub(holder.bytes);
            holder.given_up = true;
            if let Some(transfer) = &holder.transfer {
                transfer.give_up.notify_one();
            }
        }
        if short > 0 {
            self.refuse_in_the_way(&mut state);
        }
    }

    /// Refuses waiting requests, until the others hold at most half of the budget.
    fn refuse_in_the_way(&self, state: &mut State) {
        let mut waiting: Vec<(u64, u64, Rank, usize)> = state
            .waiting
            .keys()
            .filter_map(|(rank, id)| {
                let holder = state.holders.get(id)?;
                Some((holder.growth(), *id, *rank, holder.bytes))
            })
            .collect();
        waiting.sort_unstable();
        let mut in_the_way: usize = waiting.iter().map(|(.., bytes)| bytes).sum();
        while in_the_way > self.size / 2
            && let Some((_, id, rank, bytes)) = waiting.pop()
        {
            in_the_way -= bytes;
            // This drops the sender, which ends the wait with an error.
            state.waiting.remove(&(rank, id));
        }
    }
}

/// A place in the wait queue.
#[derive(Debug)]
struct Waits {
    budget: Arc<Shared>,
    place: (Rank, u64),
    since: Instant,
    granted: oneshot::Receiver<Grant>,
}

impl Drop for Waits {
    fn drop(&mut self) {
        let mut state = self.budget.state();
        let gone = state.waiting.remove(&self.place);
        let holder = state.holder(self.place.1);
        holder.waits = false;
        if let Some(transfer) = &mut holder.transfer {
            transfer.begun += self.since.elapsed();
        }
        drop(state);
        // The next in the queue may fit into the free memory.
        if gone.is_some() {
            self.budget.serve();
        }
    }
}

#[cfg(test)]
mod tests;
