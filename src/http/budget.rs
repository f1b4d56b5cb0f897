//! Memory that requests share: how much their bodies, and what is made of them, take in all.
//!
//! What a request holds is taken from the budget in steps, as its body arrives, and given back when its answer has
//! been written. A declared length reserves nothing: who says much and sends nothing holds nothing.
//!
//! When the budget is used up there is a wait, which ends in one of these ways, and always within [`WAIT`]:
//!
//! - Others give back what they hold, as all do whose clients keep up.
//! - The slowest clients are given up: those which have moved the fewest bytes a second, whether they send or read, of
//!   those which have had [`FAIR_CHANCE`] to move any. So whoever fills the budget and keeps it is the first to lose
//!   it, whatever he does to look busy, and the honest are not slower than he is.
//! - Requests that hold little go first, and the last eighth of the budget is theirs, so that a crowd of large bodies is
//!   in the way of large bodies.
//! - Where those who wait hold more than half, they are in each other's way, and the last to begin is refused.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, sleep, timeout};

/// How long a request waits for memory: long enough for a burst to be worked off, and shorter than clients wait for an
/// answer.
const WAIT: Duration = Duration::from_secs(3);

/// How often those who wait look for who has become too slow.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// How long a transfer goes on before its speed says anything: some round trips around the world.
const FAIR_CHANCE: Duration = Duration::from_millis(250);

/// A request that holds no more than this is small: a bulk request of a thousand events.
const SMALL: usize = 256 * 1024;

/// Bytes of memory for requests. Clones are the same budget.
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
    /// In the order in which they are served.
    waiting: BTreeMap<(Rank, u64), Waiting>,
}

/// Small before large; of the small ones the smallest first, of the large ones those which hold the most, for they are
/// nearest to giving it back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    Small(usize),
    Large(Reverse<usize>),
}

impl Rank {
    /// That of a request which then holds so many bytes.
    fn of(total: usize) -> Self {
        if total <= SMALL { Self::Small(total) } else { Self::Large(Reverse(total)) }
    }
}

#[derive(Debug, Default)]
struct Holder {
    bytes: usize,
    /// What its client does that it could be too slow at.
    transfer: Option<Transfer>,
    /// It has been asked to give back what it holds.
    given_up: bool,
    /// It waits for more, which is not its client's fault.
    waits: bool,
}

#[derive(Debug)]
struct Transfer {
    begun: Instant,
    moved: u64,
    give_up: Arc<Notify>,
}

impl Transfer {
    /// Bytes a second until now.
    fn rate(&self, now: Instant) -> u128 {
        u128::from(self.moved) * 1_000_000 / now.duration_since(self.begun).as_micros().max(1)
    }
}

#[derive(Debug)]
struct Waiting {
    bytes: usize,
    granted: oneshot::Sender<Grant>,
}

/// Bytes on their way to who waited for them. Where nobody takes them they go back.
#[derive(Debug)]
struct Grant {
    budget: Arc<Shared>,
    bytes: usize,
}

impl Grant {
    /// They are this share's from now on.
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

/// There is no memory, and none came in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exhausted;

/// What one request holds of a budget. It goes back when this is dropped.
#[derive(Debug)]
pub struct Share {
    budget: Arc<Shared>,
    id: u64,
    bytes: usize,
}

impl Budget {
    /// A budget of so many bytes.
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

    /// Bytes that are held at the moment.
    #[must_use]
    pub fn held(&self) -> usize {
        self.0.size - self.0.state().free
    }
}

impl Share {
    /// Holds so many bytes in all from now on: at once if that is less than before or there is room, else after a wait.
    ///
    /// # Errors
    ///
    /// When there is still no room after 3 s. What was held before still is.
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

    /// Holds so many bytes from now on, if that is less than before.
    pub fn shrink_to(&mut self, bytes: usize) {
        if bytes < self.bytes {
            self.budget.give_back(self.id, self.bytes - bytes);
            self.bytes = bytes;
        }
    }

    /// Its client is to send or to read from now on. Where it is too slow at it while others need the room,
    /// `give_up` is notified; this share is then to be dropped.
    pub fn begin_transfer(&self, give_up: Arc<Notify>) {
        let transfer = Transfer { begun: Instant::now(), moved: 0, give_up };
        self.budget.state().holder(self.id).transfer = Some(transfer);
    }

    /// So many bytes have moved since the transfer began.
    pub fn moved(&self, bytes: u64) {
        if let Some(transfer) = &mut self.budget.state().holder(self.id).transfer {
            transfer.moved = bytes;
        }
    }

    /// Its client has done its part.
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

    /// What is kept for small requests.
    fn reserve(&self) -> usize {
        self.size / 8
    }

    /// What a request of this rank may take.
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

    /// Takes `more` bytes for a share that then has `total`, or a place among those who wait for it.
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

    /// Serves those who wait in their order, until there is not enough for the next.
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
        // A grant that nobody takes gives itself back, for which it needs the state.
        drop(state);
    }

    /// Asks the slowest for what they hold until it would do for all who wait, with the reserve; where it does not,
    /// ends the wait of those who are in each other's way.
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

    /// Refuses the last to begin of those who wait, until these hold no more than half of the budget.
    fn refuse_in_the_way(&self, state: &mut State) {
        let held = |id: &u64| state.holders.get(id).map_or(0, |holder| holder.bytes);
        let mut waiting: Vec<(u64, Rank, usize)> =
            state.waiting.keys().map(|(rank, id)| (*id, *rank, held(id))).collect();
        waiting.sort_unstable();
        let mut in_the_way: usize = waiting.iter().map(|(.., bytes)| bytes).sum();
        while in_the_way > self.size / 2
            && let Some((id, rank, bytes)) = waiting.pop()
        {
            in_the_way -= bytes;
            // Its sender goes with it, which tells who waits.
            state.waiting.remove(&(rank, id));
        }
    }
}

/// A place among those who wait.
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
        // Who was behind may be served with what is free.
        if gone.is_some() {
            self.budget.serve();
        }
    }
}

#[cfg(test)]
mod tests;
