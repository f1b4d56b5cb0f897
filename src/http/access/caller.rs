//! Callers: who has sent a request, for its handler.

use std::sync::Arc;

use super::peers::Peer;
use super::refusal::Refusal;
use super::token_set::Holder;
use crate::grant::Scope;
use crate::http::problem::Problem;

/// Who has sent a request. The listener puts it into the request's extensions.
#[derive(Clone, Debug)]
pub struct Caller {
    peer: Arc<Peer>,
    holder: Option<Arc<Holder>>,
    /// Whether tokens are required and this caller has none; or the service has no tokens, and the host of
    /// the request is another machine.
    stranger: bool,
}

/// Tells callers apart: two keys are equal if both callers show one token, or have none and one address. It is
/// unique only while a caller with it is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CallerKey(usize);

impl Caller {
    pub(super) fn new(peer: Arc<Peer>, holder: Option<Arc<Holder>>, stranger: bool) -> Self {
        Self { peer, holder, stranger }
    }

    /// What tells this caller from others.
    #[must_use]
    pub fn key(&self) -> CallerKey {
        let peer = || Arc::as_ptr(&self.peer).addr();
        CallerKey(self.holder.as_ref().map_or_else(peer, |holder| Arc::as_ptr(holder).addr()))
    }

    /// Whether the caller may do what the scope allows.
    #[must_use]
    pub fn may(&self, scope: Scope) -> bool {
        !self.stranger && self.holder.as_ref().is_none_or(|holder| holder.may(scope))
    }

    /// Takes the events of one request from the allowances of the caller's token and address. The token
    /// first: events that its limit refuses then do not use up the limit of the address.
    ///
    /// # Errors
    ///
    /// A problem that says how long to wait, if one of the two has too few left.
    pub fn take_events(&self, events: usize) -> Result<(), Problem> {
        let holder = self.holder.as_ref().map(|holder| holder.allowance());
        for allowance in [holder, Some(self.peer.allowance())].into_iter().flatten() {
            allowance.take_events(events).map_err(|wait| {
                metrics::counter!("catchall_http_throttled_total").increment(1);
                Refusal::TooManyEvents(wait)
            })?;
        }
        Ok(())
    }
}

#[cfg(test)]
impl Caller {
    /// A caller without a token, at an address of its own.
    pub(crate) fn at(address: &str) -> Self {
        use super::allowance::Rates;
        use super::peers::Peers;

        let peers = Peers::new(Rates::default(), 1);
        Self::new(peers.at(address.parse().expect("an address")), None, false)
    }
}
