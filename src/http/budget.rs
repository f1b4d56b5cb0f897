//! A memory budget that requests share: it bounds the total size of their bodies and parsed contents.
//!
//! A request takes memory in steps, as its body arrives, and returns it when its response is written. A
//! declared length reserves nothing: a client that announces much and sends nothing holds nothing.
//!
//! When the budget is used up, a request waits for at most [`WAIT`]. The wait ends in one of these ways:
//!
//! - Other requests return their memory, as all do whose clients keep up.
//! - The slowest clients are dropped: those that have sent or read the fewest bytes a second, among those
//!   that have had at least [`FAIR_CHANCE`](books::FAIR_CHANCE). So a client that fills the budget and keeps
//!   it is the first to lose it, whatever it does to look busy, because honest clients are not slower.
//! - Small requests go first, and the last eighth of the budget is reserved for them, so many large bodies
//!   only delay other large bodies. Of the small ones, those that have arrived whole go before those whose
//!   clients have yet to send, and otherwise the first to begin: nobody gets ahead by asking for less.
//! - If the waiting requests hold more than half of the budget, they block each other, and some are refused:
//!   first those that hold the most memory for each byte sent, as a body does that was packed to grow, and of
//!   equals the last to begin.
//! - If more wait than there are [places](WAITS_IN), the last in the line is refused at once.
//!
//! However many wait, the work stays small: the sums are kept, and one task looks for all of them.

mod books;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, sleep, timeout};

use books::{Books, InLine};

/// How long a request waits for memory: long enough to work off a burst, and shorter than clients wait for a
/// response.
const WAIT: Duration = Duration::from_secs(3);

/// How often slow clients are looked for while requests wait.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// One request may wait for each 64 KiB of the budget: 4,096 with 256 MiB. A waiting request holds up to 16
/// KiB that are not counted yet, so they add at most a quarter of the budget. If strangers fill the line,
/// each asking for the most memory that one byte of a body can ask for, serving it takes some four times the
/// budget. But they lose that memory after [`FAIR_CHANCE`](books::FAIR_CHANCE), so each request in the line
/// gets its turn within [`WAIT`].
const WAITS_IN: usize = 64 * 1024;

/// Bytes of memory for requests. Clones share one budget.
#[derive(Clone, Debug)]
pub struct Budget(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    size: usize,
    books: Mutex<Books>,
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
        Self(Arc::new(Shared { size, books: Mutex::new(Books::new(size)) }))
    }

    /// A share that holds nothing yet.
    #[must_use]
    pub fn share(&self) -> Share {
        Share { id: self.0.books().open(), budget: Arc::clone(&self.0), bytes: 0 }
    }

    /// Bytes held at the moment.
    #[must_use]
    pub fn held(&self) -> usize {
        self.0.size - self.0.books().free
    }
}

impl Share {
    /// Changes the share to `bytes` in total: at once if that is less than before or memory is free, else
    /// after a wait.
    ///
    /// # Errors
    ///
    /// When no memory is free after 3 s, or too many others wait. The share then keeps its size.
    pub async fn hold(&mut self, bytes: usize) -> Result<(), Exhausted> {
        if bytes <= self.bytes {
            self.shrink_to(bytes);
            return Ok(());
        }
        if let Some(mut waits) = self.budget.take(self.id, bytes, bytes - self.bytes)
            && !matches!(timeout(WAIT, &mut waits.granted).await, Ok(Ok(())))
        {
            return Err(Exhausted);
        }
        self.bytes = bytes;
        Ok(())
    }

    /// Shrinks the share to `bytes`, if it is larger.
    pub fn shrink_to(&mut self, bytes: usize) {
        if bytes < self.bytes {
            self.budget.books().give_back(self.id, self.bytes - bytes);
            self.bytes = bytes;
            self.budget.serve();
        }
    }

    /// The client has begun to send or to read. If it is too slow while others need memory, `give_up` is
    /// notified, and the caller must drop this share.
    pub fn begin_transfer(&self, begun: Instant, give_up: Arc<Notify>) {
        self.budget.books().begin_transfer(self.id, begun, give_up);
    }

    /// Records the bytes moved since the transfer began.
    pub fn moved(&self, bytes: u64) {
        self.budget.books().moved(self.id, bytes);
    }

    /// The client has sent everything, of which some is still to be read: it owes nothing more, and is not
    /// given up.
    pub fn arrived(&self) {
        self.budget.books().arrived(self.id);
    }

    /// The client's transfer is complete.
    pub fn end_transfer(&self) {
        self.budget.books().end_transfer(self.id);
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.budget.books().close(self.id);
        if self.bytes > 0 {
            self.budget.serve();
        }
    }
}

impl Shared {
    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The part reserved for small requests.
    fn reserve(&self) -> usize {
        self.size / 8
    }

    fn serve(&self) {
        self.books().serve(self.reserve());
    }

    /// Takes `more` bytes for a share that then holds `total`. If it cannot, returns a place in the line.
    fn take(self: &Arc<Self>, id: u64, total: usize, more: usize) -> Option<Waits> {
        let mut books = self.books();
        let place = books.place(id, total);
        if books.take(place, more, self.reserve()) {
            return None;
        }
        let granted = books.enqueue(place, more, self.size.div_ceil(WAITS_IN));
        if books.looking.strong_count() == 0 {
            let looking = Arc::new(());
            books.looking = Arc::downgrade(&looking);
            let budget = Arc::clone(self);
            tokio::spawn(async move {
                while budget.look() {
                    sleep(LOOK_INTERVAL).await;
                }
                drop(looking);
            });
        }
        Some(Waits { budget: Arc::clone(self), place, more, since: Instant::now(), granted })
    }

    /// Drops the slowest clients until the memory suffices for all waiting requests and the reserve. If it
    /// still does not, refuses the waiting requests that block each other. Returns whether any wait.
    fn look(&self) -> bool {
        let mut books = self.books();
        if books.nobody_waits() {
            // The next to wait looks again, however soon that is.
            books.looking = Weak::new();
            return false;
        }
        let mut short = (books.needed + self.reserve()).saturating_sub(books.free + books.coming);
        if short > 0 {
            short = books.give_up_slowest(short);
        }
        if short > 0 {
            books.refuse_down_to(self.size / 2);
        }
        true
    }
}

/// A place in the line.
#[derive(Debug)]
struct Waits {
    budget: Arc<Shared>,
    place: InLine,
    more: usize,
    since: Instant,
    granted: oneshot::Receiver<()>,
}

impl Drop for Waits {
    fn drop(&mut self) {
        let mut books = self.budget.books();
        // It may be granted at the very moment at which nobody waits for it any more.
        let unused = if self.granted.try_recv().is_ok() { self.more } else { 0 };
        books.end_wait(self.place, self.since, unused);
        // The next in the line may fit into the free memory.
        books.serve(self.budget.reserve());
    }
}

#[cfg(test)]
mod tests;
