//! The other end of a connection: a client, or a proxy that brings the requests of many.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use axum::http::HeaderMap;

use super::peers::{Connected, Peer, Peers};
use super::proxies::Proxies;

/// Most addresses that a connection of a proxy remembers, so that few of its requests need a look-up among
/// all addresses.
const MAX_REMEMBERED: usize = 64;

/// The client or proxy at the other end of a connection.
#[derive(Debug)]
pub(super) enum OtherEnd {
    Client(Connected),
    Proxy { address: IpAddr, remembered: Mutex<HashMap<IpAddr, Arc<Peer>>> },
}

impl OtherEnd {
    pub(super) fn proxy(address: IpAddr) -> Self {
        Self::Proxy { address, remembered: Mutex::default() }
    }

    /// Where a request on the connection comes from.
    pub(super) fn peer(&self, proxies: &Proxies, peers: &Peers, headers: &HeaderMap) -> Arc<Peer> {
        match self {
            Self::Client(connected) => Arc::clone(connected.peer()),
            Self::Proxy { address, remembered } => {
                let origin = proxies.origin(*address, headers);
                let mut remembered = remembered.lock().unwrap_or_else(PoisonError::into_inner);
                if remembered.len() >= MAX_REMEMBERED && !remembered.contains_key(&origin) {
                    remembered.clear();
                }
                Arc::clone(remembered.entry(origin).or_insert_with(|| peers.at(origin)))
            }
        }
    }
}
