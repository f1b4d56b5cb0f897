//! Access: who may do what, and how much of it.

mod allowance;
mod peers;
mod proxies;
mod token_set;
mod config;
mod refusal;
mod caller;
mod source;

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;

use axum::http::{HeaderValue, Request, header};
use base64::prelude::{BASE64_STANDARD, Engine};
use metrics::Counter;

use super::problem::Problem;
use crate::grant::Scope;
use crate::reload::Reloaded;
use peers::{Peer, Peers};
use proxies::{Proxies, ProxyNet};
use refusal::Refusal;
use source::Source;
use token_set::{Holder, TokenSet};

pub use caller::Caller;
pub use config::{EventRates, LimitConfig};

pub(super) use allowance::Rates;
pub(super) use config::AccessConfig;

/// The page for people. A browser is made to ask for a password here only, and sends that with all else that
/// the page needs. Clients of the API have a challenge of their own, and a page that is open asks nobody again.
const PAGE: &str = "/";

/// The challenge that makes a browser ask.
const PASSWORD: HeaderValue = HeaderValue::from_static(r#"Basic realm="catchall", charset="UTF-8""#);

/// What a request needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Need {
    /// Nothing: anybody may ask.
    Nothing,
    /// A valid token.
    Token,
    /// A valid token with this scope.
    Scope(Scope),
}

/// What a request of a path needs, on every listener. Whatever is not named here is not told to strangers:
/// they do not even learn that there is nothing.
fn need(path: &str) -> Need {
    let first = path.strip_prefix('/').unwrap_or(path).split('/').next().unwrap_or_default();
    match first {
        "" if path == PAGE => Need::Scope(Scope::Read),
        "livez" | "readyz" | "openapi.json" | "docs" => Need::Nothing,
        "events" => Need::Scope(Scope::Write),
        "domains" | "totals" | "changes" | "maps" | "page" => Need::Scope(Scope::Read),
        "metrics" => Need::Scope(Scope::Operate),
        _ => Need::Token,
    }
}

/// Whom a listener lets in.
#[derive(Debug)]
pub(super) struct Access {
    /// `None`: everybody may do everything.
    tokens: Option<Arc<Reloaded<TokenSet>>>,
    proxies: Proxies,
    peers: Peers,
    metrics: Metrics,
}

impl Access {
    pub(super) fn new(
        tokens: Option<Arc<Reloaded<TokenSet>>>,
        proxies: &[ProxyNet],
        per_address: Rates,
        address_connections: u32,
    ) -> Self {
        Self {
            tokens,
            proxies: Proxies::new(proxies),
            peers: Peers::new(per_address, address_connections),
            metrics: Metrics::register(),
        }
    }

    /// Whether a token has to be shown.
    pub(super) fn asks_for_tokens(&self) -> bool {
        self.tokens.is_some()
    }
}

/// Who is at the other end of a connection.
#[derive(Debug)]
pub struct Visitor {
    access: Arc<Access>,
    source: Source,
}

impl Visitor {
    /// A connection from an address, unless it has as many as it may.
    pub(super) fn connect(access: &Arc<Access>, address: IpAddr) -> Option<Self> {
        let source = if access.proxies.contain(address) {
            Source::proxy(address)
        } else {
            Source::Client(access.peers.connect(address)?)
        };
        Some(Self { access: Arc::clone(access), source })
    }

    /// Checks a request before anything else is done with it, and says in its extensions who has sent it.
    ///
    /// # Errors
    ///
    /// Why the request is refused.
    pub fn check<B>(&self, request: &mut Request<B>) -> Result<(), Problem> {
        let Access { tokens, proxies, peers, metrics } = &*self.access;
        let refused = |refusal: Refusal| {
            metrics.count(&refusal);
            Problem::from(refusal)
        };
        let peer = self.source.peer(proxies, peers, request.headers());
        peer.allowance().take_request().map_err(|wait| refused(Refusal::TooManyRequests(wait)))?;
        let holder = match tokens {
            None => None,
            Some(tokens) => holder(&tokens.get(), &peer, request).map_err(|refusal| {
                let asks = matches!(refusal, Refusal::Unauthorized(_)) && request.uri().path() == PAGE;
                let problem = refused(refusal);
                if asks { problem.with_header(header::WWW_AUTHENTICATE, PASSWORD) } else { problem }
            })?,
        };
        if let Some(holder) = &holder {
            let taken = holder.allowance().take_request();
            taken.map_err(|wait| refused(Refusal::TooManyRequests(wait)))?;
        }
        let stranger = tokens.is_some() && holder.is_none();
        request.extensions_mut().insert(Caller::new(peer, holder, stranger));
        Ok(())
    }
}

/// The holder of the token in a request; `None` where none is needed and none is valid.
fn holder<B>(tokens: &TokenSet, peer: &Peer, request: &Request<B>) -> Result<Option<Arc<Holder>>, Refusal> {
    let need = need(request.uri().path());
    let invalid = match token(request).map(|token| tokens.holder(&token)) {
        Some(Ok(holder)) => {
            return match need {
                Need::Scope(scope) if !holder.may(scope) => Err(Refusal::Forbidden(scope)),
                _ => Ok(Some(holder)),
            };
        }
        Some(Err(invalid)) => Some(invalid),
        None => None,
    };
    if need == Need::Nothing {
        return Ok(None);
    }
    // Whoever has a valid token is not held up by those at the same address who have none.
    peer.refuse().map_err(Refusal::TooManyFailures)?;
    Err(Refusal::Unauthorized(invalid))
}

/// The token in a request, if there is exactly one: as a bearer token (RFC 6750, section 2.1), or as the
/// password by which a browser sends it (RFC 7617), whatever the name.
///
/// A browser adds a password by itself to all that it sends here, also for a page of somebody else. So it is
/// good for reading only.
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
            Refusal::Forbidden(_) => &self.forbidden,
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
