//! The books of a budget: what is free, who holds what, who waits, and the sums of these. Every change
//! updates the sums, so they need not be added up anew while many requests wait.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

/// How long a transfer runs before its speed is judged: a few round trips around the world.
pub(super) const FAIR_CHANCE: Duration = Duration::from_millis(250);

/// A request of up to this size is small: a bulk request of a thousand events.
pub(super) const SMALL: usize = 256 * 1024;

/// The records of a budget.
#[derive(Debug, Default)]
pub(super) struct Books {
    pub(super) free: usize,
    /// Bytes that requests were asked to return and have not returned yet.
    pub(super) coming: usize,
    /// Bytes that waiting requests ask for.
    pub(super) needed: usize,
    /// Bytes that waiting requests hold.
    pub(super) blocked: usize,
    /// Alive for as long as a task looks for slow clients.
    pub(super) looking: Weak<()>,
    next: u64,
    /// Requests that hold memory, wait for it or transfer something. One that has sent nothing of its body is
    /// not among them.
    holders: HashMap<u64, Account>,
    /// In the order of service.
    waiting: BTreeMap<InLine, Waiting>,
    /// Entries that were visited to find slow clients or requests to refuse.
    #[cfg(test)]
    pub(super) visits: usize,
}

/// A place in the queue of waiting requests. Within a rank, the first to begin comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct InLine {
    rank: Rank,
    pub(super) id: u64,
}

/// Small requests come before large ones. Of the small ones, those whose clients owe nothing come first: they
/// return their memory soon, whatever others do. Of the large ones, the largest comes first, because it is
/// nearest to returning its memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    Whole,
    Small,
    Large(Reverse<usize>),
}

#[derive(Debug, Default)]
struct Account {
    bytes: usize,
    /// The transfer that the client is making, if any.
    transfer: Option<Transfer>,
    /// Whether it was asked to return its memory.
    given_up: bool,
    /// Whether it waits for memory, which is not its client's fault.
    waits: bool,
}

impl Account {
    /// Bytes held for each byte that the client has moved, rounded down. It is about the same for all bodies
    /// that are not packed.
    fn growth(&self) -> u64 {
        self.transfer.as_ref().map_or(0, |transfer| self.bytes as u64 / transfer.moved.max(1))
    }

    /// Bytes that it was asked to return.
    fn coming(&self) -> usize {
        if self.given_up { self.bytes } else { 0 }
    }

    /// Whether the client still has to send or to read something.
    fn owes(&self) -> bool {
        self.transfer.as_ref().is_some_and(|transfer| !transfer.arrived)
    }

    /// The rate of a client that may be given up.
    fn rate(&self, now: Instant) -> Option<u128> {
        let judged = self.bytes > 0 && !self.given_up && !self.waits && self.owes();
        let transfer = self.transfer.as_ref().filter(|_| judged)?;
        (transfer.begun + FAIR_CHANCE <= now).then(|| transfer.rate(now))
    }

    fn is_done(&self) -> bool {
        self.bytes == 0 && self.transfer.is_none() && !self.waits
    }
}

#[derive(Debug)]
struct Transfer {
    begun: Instant,
    moved: u64,
    /// Whether the client has sent everything, so that only unpacking is left.
    arrived: bool,
    give_up: Arc<Notify>,
}

impl Transfer {
    /// Bytes per second from the beginning until now.
    fn rate(&self, now: Instant) -> u128 {
        u128::from(self.moved) * 1_000_000 / now.duration_since(self.begun).as_micros().max(1)
    }
}

#[derive(Debug)]
struct Waiting {
    more: usize,
    holds: usize,
    granted: oneshot::Sender<()>,
}

impl Books {
    pub(super) fn new(free: usize) -> Self {
        Self { free, ..Self::default() }
    }

    /// The number of a new share, which holds nothing yet.
    pub(super) fn open(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Closes a share and takes back what it held.
    pub(super) fn close(&mut self, id: u64) {
        let held = self.holders.get(&id).map_or(0, |holder| holder.bytes);
        self.give_back(id, held);
        self.end_transfer(id);
    }

    pub(super) fn give_back(&mut self, id: u64, bytes: usize) {
        self.change(id, |holder| holder.bytes -= bytes);
        self.free += bytes;
    }

    fn lend(&mut self, id: u64, bytes: usize) {
        self.free -= bytes;
        self.change(id, |holder| holder.bytes += bytes);
    }

    pub(super) fn begin_transfer(&mut self, id: u64, begun: Instant, give_up: Arc<Notify>) {
        let transfer = Transfer { begun, moved: 0, arrived: false, give_up };
        self.change(id, |holder| holder.transfer = Some(transfer));
    }

    pub(super) fn moved(&mut self, id: u64, bytes: u64) {
        self.change_transfer(id, |transfer| transfer.moved = bytes);
    }

    pub(super) fn arrived(&mut self, id: u64) {
        self.change_transfer(id, |transfer| transfer.arrived = true);
    }

    pub(super) fn end_transfer(&mut self, id: u64) {
        self.change(id, |holder| (holder.transfer, holder.given_up) = (None, false));
    }

    fn change_transfer(&mut self, id: u64, change: impl FnOnce(&mut Transfer)) {
        if let Some(transfer) = self.holders.get_mut(&id).and_then(|holder| holder.transfer.as_mut()) {
            change(transfer);
        }
    }

    /// Changes a holder. Every change that the sums depend on is made here.
    fn change(&mut self, id: u64, change: impl FnOnce(&mut Account)) {
        let holder = self.holders.entry(id).or_default();
        self.coming -= holder.coming();
        change(holder);
        self.coming += holder.coming();
        if holder.is_done() {
            self.holders.remove(&id);
        }
    }

    /// The place of a share that will hold `total` bytes.
    pub(super) fn place(&self, id: u64, total: usize) -> InLine {
        let owes = self.holders.get(&id).is_some_and(Account::owes);
        let rank = match total {
            0..=SMALL if owes => Rank::Small,
            0..=SMALL => Rank::Whole,
            _ => Rank::Large(Reverse(total)),
        };
        InLine { rank, id }
    }

    /// Bytes that a request in this place may take.
    fn room(&self, place: InLine, reserve: usize) -> usize {
        match place.rank {
            Rank::Whole | Rank::Small => self.free,
            Rank::Large(_) => self.free.saturating_sub(reserve),
        }
    }

    /// Lends `more` bytes, unless they are not free or others come first.
    pub(super) fn take(&mut self, place: InLine, more: usize, reserve: usize) -> bool {
        let comes_first = self.waiting.first_key_value().is_none_or(|(first, _)| place < *first);
        let takes = comes_first && self.room(place, reserve) >= more;
        if takes {
            self.lend(place.id, more);
        }
        takes
    }

    /// Waits in the queue, which has room for `most`. If there are more, the last one is refused.
    pub(super) fn enqueue(&mut self, place: InLine, more: usize, most: usize) -> oneshot::Receiver<()> {
        self.change(place.id, |holder| holder.waits = true);
        let holds = self.holders.get(&place.id).map_or(0, |holder| holder.bytes);
        let (granted, waits) = oneshot::channel();
        self.needed += more;
        self.blocked += holds;
        self.waiting.insert(place, Waiting { more, holds, granted });
        if self.waiting.len() > most
            && let Some((last, _)) = self.waiting.last_key_value()
        {
            self.dequeue(*last);
        }
        waits
    }

    /// Takes a request out of the queue, if it is still there. Dropping this end of its channel refuses it.
    fn dequeue(&mut self, place: InLine) -> Option<Waiting> {
        let waiting = self.waiting.remove(&place)?;
        self.needed -= waiting.more;
        self.blocked -= waiting.holds;
        Some(waiting)
    }

    /// Ends a wait that began at `since`. `unused` bytes were granted without the request noticing.
    pub(super) fn end_wait(&mut self, place: InLine, since: Instant, unused: usize) {
        self.dequeue(place);
        self.change_transfer(place.id, |transfer| transfer.begun += since.elapsed());
        self.change(place.id, |holder| holder.waits = false);
        if unused > 0 {
            self.give_back(place.id, unused);
        }
    }

    pub(super) fn nobody_waits(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Serves waiting requests in order, until not enough is free for the next one.
    pub(super) fn serve(&mut self, reserve: usize) {
        while let Some((&place, &Waiting { more, .. })) = self.waiting.first_key_value()
            && self.room(place, reserve) >= more
            && let Some(waiting) = self.dequeue(place)
        {
            self.lend(place.id, more);
            // A waiting request leaves the queue before it stops listening.
            let _ = waiting.granted.send(());
        }
    }

    /// Asks the slowest clients to return their memory, until `short` bytes come back. Returns how many bytes
    /// are still missing.
    pub(super) fn give_up_slowest(&mut self, mut short: usize) -> usize {
        let now = Instant::now();
        #[cfg(test)]
        {
            self.visits += self.holders.len();
        }
        let rates = self.holders.iter().filter_map(|(id, holder)| Some((holder.rate(now)?, *id)));
        let mut slowest: Vec<(u128, u64)> = rates.collect();
        slowest.sort_unstable();
        for (_, id) in slowest {
            if short == 0 {
                break;
            }
            self.change(id, |holder| {
                short = short.saturating_sub(holder.bytes);
                holder.given_up = true;
                if let Some(transfer) = &holder.transfer {
                    transfer.give_up.notify_one();
                }
            });
        }
        short
    }

    /// Refuses waiting requests, until those left hold at most `most` bytes.
    pub(super) fn refuse_down_to(&mut self, most: usize) {
        if self.blocked <= most {
            return;
        }
        #[cfg(test)]
        {
            self.visits += self.waiting.len();
        }
        let growth = |place: &InLine| self.holders.get(&place.id).map_or(0, Account::growth);
        let mut waiting: Vec<_> =
            self.waiting.keys().map(|place| (growth(place), place.id, *place)).collect();
        waiting.sort_unstable();
        while self.blocked > most
            && let Some((.., place)) = waiting.pop()
        {
            self.dequeue(place);
        }
    }

    /// Adds up the sums anew, and compares them with those that are kept.
    #[cfg(test)]
    pub(super) fn check(&self, size: usize) {
        let sum = |bytes: &dyn Fn(&Account) -> usize| self.holders.values().map(bytes).sum::<usize>();
        assert_eq!(self.free + sum(&|holder| holder.bytes), size);
        assert_eq!(self.coming, sum(&Account::coming));
        assert_eq!(self.needed, self.waiting.values().map(|waiting| waiting.more).sum::<usize>());
        assert_eq!(self.blocked, self.waiting.values().map(|waiting| waiting.holds).sum::<usize>());
    }
}
