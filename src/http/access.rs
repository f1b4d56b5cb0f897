//! Access: who may do what, and how much.

mod need;
mod host;
mod allowance;
mod peers;
mod proxies;
mod token_set;
mod admission;
mod config;
mod refusal;
mod caller;
mod permit;
mod other_end;

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;

use axum::http::{HeaderValue, Request, header};
use base64::prelude::{BASE64_STANDARD, Engine};
use metrics::Counter;

use super::problem::Problem;
use need::{Need, PAGE, is_probe};
use other_end::OtherEnd;
use peers::{Peer, Peers};
use permit::Permit;
use proxies::{Proxies, ProxyNet};
use refusal::Refusal;
use token_set::{Holder, TokenSet};

pub use caller::Caller;
pub(super) use caller::CallerKey;
pub use config::{EventRates, LimitConfig};

pub(super) use admission::Admission;
pub(super) use allowance::Rates;
pub(super) use config::AccessConfig;
pub(super) use peers::Origin;

/// The challenge that makes a browser ask for a password.
const PASSWORD: HeaderValue = HeaderValue::from_static(r#"Basic realm="catchall", charset="UTF-8""#);

/// The conditions under which a listener lets requests in.
#[derive(Debug)]
pub(super) struct Access {
    admission: Admission,
    proxies: Proxies,
    peers: Peers,
    metrics: Metrics,
}

impl Access {
    pub(super) fn new(
        admission: Admission,
        proxies: &[ProxyNet],
        per_address: Rates,
        address_connections: u32,
    ) -> Self {
        Self {
            admission,
            proxies: Proxies::new(proxies),
            peers: Peers::new(per_address, address_connections),
            metrics: Metrics::register(),
        }
    }

    /// Whether a token is required.
    pub(super) fn asks_for_tokens(&self) -> bool {
        matches!(self.admission, Admission::Holders(_))
    }
}

/// The client at the other end of a connection.
#[derive(Debug)]
pub struct Visitor {
    access: Arc<Access>,
    other_end: OtherEnd,
}

impl Visitor {
    /// A connection from an address, unless the address has reached its limit.
    pub(super) fn connect(access: &Arc<Access>, address: IpAddr) -> Option<Self> {
        let other_end = if access.proxies.contain(address) {
            OtherEnd::proxy(address)
        } else {
            OtherEnd::Client(access.peers.connect(address)?)
        };
        Some(Self { access: Arc::clone(access), other_end })
    }

    /// Checks a request before anything else is done with it, and stores the caller in its extensions.
    ///
    /// # Errors
    ///
    /// Why the request is refused.
    pub fn check<B>(&self, request: &mut Request<B>) -> Result<(), Problem> {
        self.admit(request).map(drop)
    }

    /// The same for a listener, with the permit that is needed while the request is answered.
    pub(super) fn admit<B>(&self, request: &mut Request<B>) -> Result<Permit, Problem> {
        let peer = self.other_end.peer(&self.access.proxies, &self.access.peers, request.headers());
        let refused = |refusal: Refusal| {
            self.access.metrics.count(&refusal);
            let asks = matches!(refusal, Refusal::Unauthorized(_)) && request.uri().path() == PAGE;
            let problem = Problem::from(refusal);
            if asks { problem.with_header(header::WWW_AUTHENTICATE, PASSWORD) } else { problem }
        };
        let (holder, permit) = match &self.access.admission {
            Admission::Everybody => {
                peer.allowance().take_request().map_err(|wait| refused(Refusal::TooManyRequests(wait)))?;
                (None, Permit::without_token(false))
            }
            Admission::ThisMachine => {
                let is_foreign = is_foreign(&peer, request).map_err(refused)?;
                (None, Permit::without_token(is_foreign))
            }
            Admission::Holders(tokens) => {
                let need = Need::of(request.uri().path());
                let holder = holder(&tokens.get(), need, &peer, request).map_err(refused)?;
                let permit = holder.as_ref().map(|holder| Permit::of(holder, need, tokens));
                (holder, permit.unwrap_or_else(|| Permit::without_token(true)))
            }
        };
        request.extensions_mut().insert(Caller::new(peer, holder, permit.is_stranger()));
        Ok(permit)
    }
}

/// Whether the service has no tokens and the host of the request is another machine. Then only probes are
/// answered.
fn is_foreign<B>(peer: &Peer, request: &Request<B>) -> Result<bool, Refusal> {
    peer.allowance().take_request().map_err(Refusal::TooManyRequests)?;
    let is_foreign = !host::names_this_machine(request);
    if is_foreign && !is_probe(request.uri().path()) { Err(Refusal::Foreign) } else { Ok(is_foreign) }
}

/// The holder of the token in a request; `None` where none is needed and none is valid.
fn holder<B>(
    tokens: &TokenSet,
    need: Need,
    peer: &Peer,
    request: &Request<B>,
) -> Result<Option<Arc<Holder>>, Refusal> {
    let invalid = match token(request).map(|token| tokens.holder(&token)) {
        Some(Ok(holder)) => {
            // The token first: a request that its limit refuses then does not use up the limit of the
            // address.
            for allowance in [holder.allowance(), peer.allowance()] {
                allowance.take_request().map_err(Refusal::TooManyRequests)?;
            }
            return match need {
                Need::Scope(scope) if !holder.may(scope) => Err(Refusal::Forbidden(scope)),
                _ => Ok(Some(holder)),
            };
        }
        Some(Err(invalid)) => Some(invalid),
        None => None,
    };
    // Clients with a valid token are not throttled because of others at the same address.
    peer.take_from_strangers().map_err(Refusal::TooManyRequests)?;
    // A browser sends no password before it is asked for one, so this is not a guess.
    if request.uri().path() == PAGE && !request.headers().contains_key(header::AUTHORIZATION) {
        return Err(Refusal::Unauthorized(None));
    }
    if need == Need::Nothing {
        return Ok(None);
    }
    peer.refuse().map_err(Refusal::TooManyFailures)?;
    Err(Refusal::Unauthorized(invalid))
}

/// The token in a request, if there is exactly one: as a bearer token (RFC 6750, section 2.1), or as the
/// password that a browser sends (RFC 7617), with any user name.
///
/// A browser adds a stored password to every request to this service, even if another web page caused the
/// request. So a password is accepted only for reading.
fn token<B>(request: &Request<B>) -> Option<Cow<'_, str>> {
    let mut values = request.headers().get_all(header::AUTHORIZATION).iter();
    let (value, None) = (values.next()?, values.next()) else { return None };
    let (scheme, given) = value.to_str().ok()?.split_once(' ')?;
    let given = given.trim_matches(' ');
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(given.into());
    }
    if !scheme.eq_ignore_ascii_case("basic") || !request.method().is_safe() {
        return None;
    }
    let pair = String::from_utf8(BASE64_STANDARD.decode(given).ok()?).ok()?;
    let (_, password) = pair.split_once(':')?;
    Some(password.to_owned().into())
}

#[derive(Debug)]
struct Metrics {
    unauthorized: Counter,
    forbidden: Counter,
    throttled: Counter,
}

impl Metrics {
    fn register() -> Self {
        Self {
            unauthorized: metrics::counter!("catchall_http_unauthorized_total"),
            forbidden: metrics::counter!("catchall_http_forbidden_total"),
            throttled: metrics::counter!("catchall_http_throttled_total"),
        }
    }

    fn count(&self, refusal: &Refusal) {
        let counter = match refusal {
            Refusal::Unauthorized(_) => &self.unauthorized,
            Refusal::Forbidden(_) | Refusal::Foreign => &self.forbidden,
            Refusal::TooManyRequests(_) | Refusal::TooManyEvents(_) | Refusal::TooManyFailures(_) => {
                &self.throttled
            }
        };
        counter.increment(1);
    }
}

#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzed;
#[cfg(test)]
mod tests;
