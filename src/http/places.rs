//! The places of a listener: how many connections it has, and which of them makes room when there are too
//! many.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::access::Origin;
use super::activity::Activity;
use crate::trouble::Trouble;

/// The places for the connections of a listener. Clones share them.
#[derive(Clone, Debug)]
pub(super) enum Places {
    /// A connection keeps its place. When all places are taken, no other connection gets in, or a stranger
    /// makes room for it.
    Kept(Arc<Kept>),
    /// A connection that does nothing makes room for the next one.
    Lent(Arc<Lent>),
}

/// A place, which is free again when this is dropped.
#[derive(Debug)]
#[expect(dead_code, reason = "what is in it only has to be dropped")]
pub(super) enum ConnectionPlace {
    Kept(KeptPlace),
    Lent(LentPlace),
}

#[derive(Debug)]
pub(super) struct Kept {
    most: usize,
    strangers_leave: bool,
    state: Mutex<KeptState>,
}

#[derive(Debug, Default)]
struct KeptState {
    taken: usize,
    next: u64,
    /// Connections that had not been let in when they were last looked at, by number and so by age.
    strangers: HashMap<Origin, BTreeMap<u64, Arc<Activity>>>,
    /// The origins of strangers by their rank.
    crowds: BTreeMap<CrowdRank, Origin>,
    /// Those that were told to end. Their places belong to others already.
    leaving: HashSet<u64>,
    full: Trouble,
}

/// The strangers of an origin: the last rank has the most of them and, among equals, the oldest.
type CrowdRank = (usize, Reverse<u64>);

#[derive(Debug)]
pub(super) struct KeptPlace {
    places: Arc<Kept>,
    origin: Origin,
    id: u64,
}

impl Drop for KeptPlace {
    fn drop(&mut self) {
        let mut state = self.places.state();
        if !state.leaving.remove(&self.id) {
            state.change(self.origin, |strangers| drop(strangers.remove(&self.id)));
            state.taken -= 1;
        }
    }
}

#[derive(Debug)]
pub(super) struct Lent {
    most: usize,
    most_of_origin: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    guests: BTreeMap<u64, Guest>,
    full: Trouble,
}

#[derive(Debug)]
struct Guest {
    origin: Origin,
    activity: Arc<Activity>,
}

#[derive(Debug)]
pub(super) struct LentPlace {
    places: Arc<Lent>,
    id: u64,
}

impl Drop for LentPlace {
    fn drop(&mut self) {
        self.places.state().guests.remove(&self.id);
    }
}

impl Places {
    /// At most `most` places.
    pub(super) fn kept(most: usize) -> Self {
        Self::Kept(Arc::new(Kept { most, strangers_leave: false, state: Mutex::default() }))
    }

    /// The same where clients need a token: only who has shown one keeps a place when others want it.
    pub(super) fn kept_by_holders(most: usize) -> Self {
        Self::Kept(Arc::new(Kept { most, strangers_leave: true, state: Mutex::default() }))
    }

    /// At most `most` places, of which one origin gets at most `most_of_origin`.
    pub(super) fn lent(most: usize, most_of_origin: usize) -> Self {
        Self::Lent(Arc::new(Lent { most, most_of_origin, state: Mutex::default() }))
    }

    /// A place for a connection from an address. If none is free, another connection may be
    /// [told](Activity::give_up) to end; its memory is free when it has done so.
    pub(super) fn take(&self, peer: IpAddr, activity: &Arc<Activity>) -> Option<ConnectionPlace> {
        match self {
            Self::Kept(places) => {
                let mut state = places.state();
                if state.taken < places.most {
                    state.taken += 1;
                } else if !places.strangers_leave || !state.make_room() {
                    return None;
                }
                state.next += 1;
                let (id, origin) = (state.next, Origin::from(peer));
                if places.strangers_leave {
                    state.change(origin, |strangers| drop(strangers.insert(id, Arc::clone(activity))));
                }
                Some(ConnectionPlace::Kept(KeptPlace { places: Arc::clone(places), origin, id }))
            }
            Self::Lent(places) => {
                let mut state = places.state();
                let origin = Origin::from(peer);
                if !state.make_room(origin, places.most, places.most_of_origin) {
                    return None;
                }
                state.next += 1;
                let id = state.next;
                state.guests.insert(id, Guest { origin, activity: Arc::clone(activity) });
                Some(ConnectionPlace::Lent(LentPlace { places: Arc::clone(places), id }))
            }
        }
    }
}

impl Kept {
    fn state(&self) -> MutexGuard<'_, KeptState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl KeptState {
    /// Changes the strangers of an origin.
    fn change(&mut self, origin: Origin, change: impl FnOnce(&mut BTreeMap<u64, Arc<Activity>>)) {
        let rank = |strangers: &BTreeMap<u64, _>| {
            strangers.first_key_value().map(|(oldest, _)| (strangers.len(), Reverse(*oldest)))
        };
        let strangers = self.strangers.entry(origin).or_default();
        if let Some(rank) = rank(strangers) {
            self.crowds.remove(&rank);
        }
        change(strangers);
        if let Some(rank) = rank(strangers) {
            self.crowds.insert(rank, origin);
        } else {
            self.strangers.remove(&origin);
        }
    }

    /// Whether a stranger has left its place: the oldest of the origin with the most.
    fn make_room(&mut self) -> bool {
        while let Some((_, &origin)) = self.crowds.last_key_value() {
            let mut oldest = None;
            self.change(origin, |strangers| oldest = strangers.pop_first());
            // Otherwise it has been let in since.
            if let Some((id, _)) = oldest.filter(|(_, activity)| activity.leave_if_stranger()) {
                self.leaving.insert(id);
                if self.full.is_news() {
                    tracing::warn!(
                        "closing connections that have shown no token for new ones, connection limit reached"
                    );
                }
                return true;
            }
        }
        false
    }
}

impl Lent {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Whether one more connection from this origin gets a place. Another one may have to leave for it.
    fn make_room(&mut self, origin: Origin, most: usize, most_of_origin: usize) -> bool {
        let mut crowds: HashMap<Origin, usize> = HashMap::new();
        for guest in self.guests.values() {
            *crowds.entry(guest.origin).or_default() += 1;
        }
        let crowd = crowds.get(&origin).copied().unwrap_or_default();
        let leaves = if crowd >= most_of_origin {
            self.guest_to_leave(|guest, idle| (guest.origin == origin && idle).then_some(0))
        } else if self.guests.len() >= most {
            // A request under way is broken off only for an origin that has fewer connections.
            self.guest_to_leave(|guest, idle| {
                let its_crowd = crowds.get(&guest.origin).copied().unwrap_or_default();
                (idle || crowd == 0 || its_crowd > crowd + 1).then_some(its_crowd)
            })
        } else {
            return true;
        };
        let Some(guest) = leaves.and_then(|id| self.guests.remove(&id)) else { return false };
        guest.activity.give_up().notify_one();
        if self.full.is_news() {
            tracing::warn!("closing idle connections for new ones, connection limit reached");
        }
        true
    }

    /// The guest in the largest crowd. Among equals, it is an idle one; among those, the one that has been
    /// idle for the longest time.
    fn guest_to_leave(&self, crowd: impl Fn(&Guest, bool) -> Option<usize>) -> Option<u64> {
        let candidates = self.guests.iter().filter_map(|(id, guest)| {
            let (idle, since) = guest.activity.quiet();
            Some(((crowd(guest, idle)?, idle, Reverse(since)), *id))
        });
        candidates.max_by_key(|(rank, _)| *rank).map(|(_, id)| id)
    }
}

#[cfg(test)]
mod tests {
    use axum::http::Version;
    use futures::FutureExt;
    use tokio::time::{Duration, advance};

    use super::*;

    struct Client {
        activity: Arc<Activity>,
        _place: ConnectionPlace,
    }

    impl Client {
        fn must_leave(&self) -> bool {
            self.activity.give_up().notified().now_or_never().is_some()
        }
    }

    async fn connect(places: &Places, last: u8) -> Option<Client> {
        advance(Duration::from_millis(1)).await;
        let activity = Activity::new();
        let place = places.take([192, 0, 2, last].into(), &activity)?;
        Some(Client { activity, _place: place })
    }

    async fn connect_all(places: &Places, last: u8, clients: usize) -> Vec<Client> {
        let mut connected = Vec::new();
        for _ in 0..clients {
            connected.push(connect(places, last).await.unwrap());
        }
        connected
    }

    #[tokio::test(start_paused = true)]
    async fn the_longest_idle_of_the_largest_crowd_makes_room() {
        let places = Places::lent(10, 5);
        let alone = connect(&places, 1).await.unwrap();
        let few = connect_all(&places, 2, 4).await;
        let many = connect_all(&places, 3, 5).await;
        let left = |clients: &[Client]| clients.iter().map(Client::must_leave).collect::<Vec<_>>();
        let next = connect(&places, 4).await.unwrap();
        assert_eq!(left(&many), [true, false, false, false, false]);
        assert_eq!(left(&few), [false; 4]);
        // Now both have four.
        let another = connect(&places, 5).await.unwrap();
        assert_eq!(left(&many), [false; 5]);
        assert_eq!(left(&few), [true, false, false, false]);
        assert_eq!(left(&[alone, next, another]), [false; 3]);
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_has_its_part_and_its_idle_ones_make_room() {
        let places = Places::lent(10, 5);
        let ours = connect_all(&places, 1, 5).await;
        let busy: Vec<_> = ours[..2].iter().map(|client| client.activity.begin(Version::HTTP_11)).collect();
        let next = connect(&places, 1).await.unwrap();
        let left: Vec<bool> = ours.iter().map(Client::must_leave).collect();
        assert_eq!(left, [false, false, true, false, false]);
        let also_busy = [&ours[3], &ours[4], &next].map(|client| client.activity.begin(Version::HTTP_11));
        assert!(connect(&places, 1).await.is_none());
        drop((busy, also_busy));
        assert!(connect(&places, 1).await.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn requests_that_never_end_keep_nobody_out() {
        let places = Places::lent(10, 5);
        let (one, other) = (connect_all(&places, 1, 5).await, connect_all(&places, 2, 5).await);
        let all: Vec<_> = one.iter().chain(&other).collect();
        let _busy: Vec<_> = all.iter().map(|client| client.activity.begin(Version::HTTP_2)).collect();
        let probe = connect(&places, 3).await.unwrap();
        assert_eq!(all.iter().filter(|client| client.must_leave()).count(), 1);
        assert!(!probe.must_leave());
    }

    #[tokio::test(start_paused = true)]
    async fn a_place_that_is_kept_is_nobody_elses() {
        let places = Places::kept(1);
        let first = connect(&places, 1).await.unwrap();
        assert!(connect(&places, 2).await.is_none());
        assert!(!first.must_leave());
        drop(first);
        assert!(connect(&places, 2).await.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn strangers_of_the_largest_crowd_make_room_and_a_holder_never_does() {
        let places = Places::kept_by_holders(4);
        let alone = connect(&places, 1).await.unwrap();
        let crowd = connect_all(&places, 2, 3).await;
        crowd[0].activity.let_in();
        let left = || crowd.iter().map(Client::must_leave).collect::<Vec<_>>();
        let next = connect(&places, 3).await.unwrap();
        assert_eq!((left(), alone.must_leave()), (vec![false, true, false], false));
        // Now each has one, and the oldest leaves.
        let last = connect(&places, 4).await.unwrap();
        assert_eq!((left(), alone.must_leave()), (vec![false; 3], true));
        for client in [&crowd[2], &next, &last] {
            client.activity.let_in();
        }
        assert!(connect(&places, 5).await.is_none(), "all have been let in");
        // Too late.
        alone.activity.let_in();
        drop(alone);
        assert!(connect(&places, 5).await.is_none(), "its place is taken");
        drop(next);
        assert!(connect(&places, 5).await.is_some());
        drop((crowd, last));
        let Places::Kept(places) = places else { unreachable!("they are kept") };
        let KeptState { taken, strangers, crowds, leaving, .. } = &*places.state();
        assert_eq!((*taken, strangers.len(), crowds.len(), leaving.len()), (0, 0, 0, 0));
    }
}
