//! The guard of a process's listeners: whom they let in, and their certificate.

use std::net::IpAddr;
use std::sync::Arc;

use rustls::ServerConfig;

use super::access::{Access, Admission, Rates, Visitor};
use crate::reload::Reloaded;

/// The guard that all listeners of a process share.
#[derive(Clone, Debug)]
pub struct Guard {
    pub(super) public: Arc<Access>,
    pub(super) operations: Arc<Access>,
    pub(super) tls: Option<Arc<Reloaded<ServerConfig>>>,
}

impl Guard {
    /// Lets everybody in, without TLS.
    #[must_use]
    pub fn open() -> Self {
        let access = Arc::new(Access::new(Admission::Everybody, &[], Rates::default(), u32::MAX));
        Self { public: Arc::clone(&access), operations: access, tls: None }
    }

    /// A client that connects from an address to the listeners for clients; `None` if the address has reached
    /// its connection limit.
    #[must_use]
    pub fn connect(&self, address: IpAddr) -> Option<Visitor> {
        Visitor::connect(&self.public, address)
    }

    /// Whether clients need a token.
    #[must_use]
    pub fn asks_for_tokens(&self) -> bool {
        self.public.asks_for_tokens()
    }

    /// The scheme of the URLs at which clients are answered.
    #[must_use]
    pub fn scheme(&self) -> &'static str {
        if self.tls.is_some() { "https" } else { "http" }
    }

    /// The door of the listeners for clients.
    pub(super) fn public(&self) -> Door {
        Door { access: Arc::clone(&self.public), tls: self.tls.clone() }
    }

    /// The door of the operations routes. Limits for addresses do not apply there, because a metrics
    /// collector may share its address with a client.
    pub(super) fn operations(&self) -> Door {
        Door { access: Arc::clone(&self.operations), tls: self.tls.clone() }
    }
}

/// The conditions under which one listener lets clients in.
#[derive(Clone, Debug)]
pub(super) struct Door {
    pub(super) access: Arc<Access>,
    pub(super) tls: Option<Arc<Reloaded<ServerConfig>>>,
}
