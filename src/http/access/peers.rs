//! Peers: the addresses that clients come from, and how much each of them may still do.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::allowance::{Allowance, Rates, Requests};

/// Most addresses that are remembered, some 30 MB of them. Beyond, those without a connection are forgotten,
/// and with them what they have used of their limits.
const MAX_PEERS: usize = 100_000;

/// Where a client comes from: an IPv4 address, or the /64 of an IPv6 address, in which every host can choose
/// among all addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in crate::http) struct Origin(IpAddr);

impl From<IpAddr> for Origin {
    fn from(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V6(address) => {
                Self(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into())
            }
            v4 @ IpAddr::V4(_) => Self(v4),
        }
    }
}

/// One origin of clients.
#[derive(Debug)]
pub(in crate::http) struct Peer {
    allowance: Allowance,
    /// For requests without a valid token, if tokens are required.
    strangers: Requests,
    refusals: Requests,
    connections: AtomicU32,
}

impl Peer {
    pub(super) fn allowance(&self) -> &Allowance {
        &self.allowance
    }

    /// Takes a request without a valid token, if tokens are required. Strangers may send as many requests as
    /// the holders of tokens at the same address, and use up none of theirs.
    ///
    /// # Errors
    ///
    /// How long to wait where there is none left.
    pub(super) fn take_from_strangers(&self) -> Result<(), Duration> {
        self.strangers.take()
    }

    /// Counts a 401 answer.
    ///
    /// # Errors
    ///
    /// How long the client has to wait if it got too many.
    pub(super) fn refuse(&self) -> Result<(), Duration> {
        self.refusals.take()
    }
}

/// All origins of the clients of one process.
#[derive(Debug)]
pub(super) struct Peers {
    by_origin: Mutex<HashMap<Origin, Arc<Peer>>>,
    rates: Rates,
    max_connections: u32,
}

impl Peers {
    pub(super) fn new(rates: Rates, max_connections: u32) -> Self {
        Self { by_origin: Mutex::default(), rates, max_connections }
    }

    /// The peer at an address.
    pub(super) fn at(&self, address: IpAddr) -> Arc<Peer> {
        let mut peers = self.lock();
        if peers.len() >= MAX_PEERS {
            peers.retain(|_, peer| Arc::strong_count(peer) > 1);
        }
        Arc::clone(peers.entry(address.into()).or_insert_with(|| Arc::new(self.new_peer())))
    }

    /// One more connection from an address, unless the address has reached its limit.
    pub(super) fn connect(&self, address: IpAddr) -> Option<Connected> {
        let peer = self.at(address);
        let more = |connections| (connections < self.max_connections).then_some(connections + 1);
        let counted = peer.connections.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        counted.is_ok().then(|| Connected(peer))
    }

    fn new_peer(&self) -> Peer {
        Peer {
            allowance: Allowance::new(self.rates),
            strangers: Requests::per_second(self.rates.requests),
            refusals: Requests::refused(),
            connections: AtomicU32::new(0),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Origin, Arc<Peer>>> {
        self.by_origin.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection of a peer, until this is dropped.
#[derive(Debug)]
pub(in crate::http) struct Connected(Arc<Peer>);

impl Connected {
    pub(super) fn peer(&self) -> &Arc<Peer> {
        &self.0
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn addresses_of_one_network_of_ipv6_are_one_origin() {
        for (left, right, same) in [
            ("192.0.2.1", "192.0.2.1", true),
            ("192.0.2.1", "192.0.2.2", false),
            ("192.0.2.1", "::ffff:192.0.2.1", true),
            ("2001:db8::1", "2001:db8::ffff:ffff:ffff:ffff", true),
            ("2001:db8::1", "2001:db8:0:1::1", false),
        ] {
            assert_eq!(Origin::from(address(left)) == Origin::from(address(right)), same, "{left} {right}");
        }
    }

    #[test]
    fn an_address_has_so_many_connections_and_others_have_theirs() {
        let peers = Peers::new(Rates::default(), 2);
        let connect = |from: &str| peers.connect(address(from));
        let first = connect("192.0.2.1").unwrap();
        let _second = connect("192.0.2.1").unwrap();
        for _ in 0..5 {
            assert!(connect("192.0.2.1").is_none());
        }
        assert!(connect("192.0.2.2").is_some());
        drop(first);
        assert!(connect("192.0.2.1").is_some());
    }

    #[test]
    fn what_was_used_is_remembered_between_connections() {
        let peers = Peers::new(Rates::default(), 2);
        let refused = |from: &str| peers.at(address(from)).refuse();
        for _ in 0..10 {
            assert_eq!(refused("192.0.2.1"), Ok(()));
        }
        let wait = refused("192.0.2.1").unwrap_err();
        assert!(wait <= Duration::from_secs(1), "{wait:?}");
        assert_eq!(refused("192.0.2.2"), Ok(()));
    }

    #[test]
    fn a_flood_of_addresses_does_not_fill_the_memory() {
        let peers = Peers::new(Rates::default(), 2);
        let connected = peers.connect(address("192.0.2.1")).unwrap();
        for number in 0..u32::try_from(2 * MAX_PEERS).unwrap() {
            peers.at(std::net::Ipv4Addr::from_bits(number).into());
        }
        assert!(peers.lock().len() <= MAX_PEERS);
        assert!(Arc::ptr_eq(connected.peer(), &peers.at(address("192.0.2.1"))));
    }
}
