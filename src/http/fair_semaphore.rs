//! Permits for what only a limited number of requests may do at a time. One caller gets at most half of them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::access::{Caller, CallerKey};

/// A semaphore that no single caller can exhaust: one caller, which is the holder of a token or an address
/// without one, gets at most half of the permits. Clones share the permits.
#[derive(Clone, Debug)]
pub struct FairSemaphore(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    permits: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    total: usize,
    by_caller: HashMap<CallerKey, usize>,
}

/// A permit, given back when it and all its clones are dropped.
#[derive(Clone, Debug)]
pub struct FairPermit(#[expect(dead_code, reason = "it only has to be dropped")] Arc<TakenPermit>);

#[derive(Debug)]
struct TakenPermit {
    shared: Arc<Shared>,
    key: CallerKey,
    /// Keeps the caller: while it exists, no other caller can get the same key.
    _caller: Caller,
}

impl FairSemaphore {
    /// A semaphore with this many permits.
    #[must_use]
    pub fn new(permits: usize) -> Self {
        Self(Arc::new(Shared { permits, taken: Mutex::default() }))
    }

    /// A permit, if one is left and the caller has fewer than half of all.
    #[must_use]
    pub fn try_acquire(&self, caller: &Caller) -> Option<FairPermit> {
        let key = caller.key();
        let mut taken = self.0.taken();
        let own = taken.by_caller.get(&key).copied().unwrap_or(0);
        if taken.total >= self.0.permits || own >= self.0.permits.div_ceil(2) {
            return None;
        }
        taken.total += 1;
        taken.by_caller.insert(key, own + 1);
        Some(FairPermit(Arc::new(TakenPermit { shared: Arc::clone(&self.0), key, _caller: caller.clone() })))
    }
}

impl Shared {
    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for TakenPermit {
    fn drop(&mut self) {
        let mut taken = self.shared.taken();
        taken.total -= 1;
        let own = taken.by_caller.get(&self.key).copied().unwrap_or(0);
        if own > 1 {
            taken.by_caller.insert(self.key, own - 1);
        } else {
            taken.by_caller.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_caller_gets_half_and_others_the_rest() {
        let semaphore = FairSemaphore::new(5);
        let [greedy, modest, late] = ["192.0.2.1", "192.0.2.2", "192.0.2.3"].map(Caller::at);
        let mut held: Vec<_> = (0..3).map(|_| semaphore.try_acquire(&greedy).unwrap()).collect();
        assert!(semaphore.try_acquire(&greedy).is_none(), "more than half");
        held.extend((0..2).map(|_| semaphore.try_acquire(&modest).unwrap()));
        assert!(semaphore.try_acquire(&late).is_none(), "more than there are");
        held.pop();
        let last = semaphore.try_acquire(&late).unwrap();
        held.truncate(2);
        assert!(semaphore.try_acquire(&greedy).is_some(), "one of its own came back");
        drop((held, last));
        assert!(semaphore.0.taken().by_caller.is_empty(), "a caller that holds nothing is forgotten");
        assert_eq!(semaphore.0.taken().total, 0);
    }
}
