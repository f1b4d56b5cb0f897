//! Refusals: the answers to requests that are not allowed.

use std::time::Duration;

use axum::http::{HeaderValue, header};

use super::token_set::InvalidToken;
use crate::grant::Scope;
use crate::http::problem::{Problem, ProblemType};

/// Longest `Retry-After`, in seconds.
const MAX_WAIT_SECS: u64 = 3600;

/// The answer to a request whose host is another machine.
const FOREIGN: &str = "the request names another host, and without tokens only requests to this machine are \
    answered: use localhost or 127.0.0.1, or set CATCHALL_TOKENS to let in clients with tokens, or \
    CATCHALL_OPEN=yes to let in everybody";

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// It has no token, or one that is not valid.
    Unauthorized(Option<InvalidToken>),
    /// Its token lacks this scope.
    Forbidden(Scope),
    /// The service has no tokens, and the host of the request is another machine.
    Foreign,
    /// The address or the token has no requests left for this time.
    TooManyRequests(Duration),
    /// It has too few events left for this time.
    TooManyEvents(Duration),
    /// Its address sent too many requests without a valid token.
    TooManyFailures(Duration),
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Unauthorized(None) => unauthorized(
                "this request needs a token: send it in the header Authorization: Bearer TOKEN".into(),
                r#"Bearer realm="catchall""#.into(),
            ),
            Refusal::Unauthorized(Some(invalid)) => {
                let detail = format!("the token is not valid: {invalid}");
                let challenge = format!(
                    r#"Bearer realm="catchall", error="invalid_token", error_description="{invalid}""#
                );
                unauthorized(detail, challenge)
            }
            Refusal::Forbidden(scope) => {
                let scope = scope.name();
                let detail = format!("this request needs the scope {scope}, which your token lacks");
                let challenge =
                    format!(r#"Bearer realm="catchall", error="insufficient_scope", scope="{scope}""#);
                challenged(ProblemType::Forbidden, detail, challenge)
            }
            Refusal::Foreign => Problem::new(ProblemType::Forbidden, FOREIGN),
            Refusal::TooManyRequests(wait) => too_many("more requests than are allowed in a second", wait),
            Refusal::TooManyEvents(wait) => {
                too_many("more events than are allowed in a second, nothing was counted", wait)
            }
            Refusal::TooManyFailures(wait) => too_many("too many requests without a valid token", wait),
        }
    }
}

fn unauthorized(detail: String, challenge: String) -> Problem {
    challenged(ProblemType::Unauthorized, detail, challenge)
}

/// The challenge tells a client what is missing (RFC 6750, section 3).
fn challenged(kind: ProblemType, detail: String, challenge: String) -> Problem {
    let challenge = HeaderValue::try_from(challenge).expect("a challenge is printable ASCII");
    Problem::new(kind, detail).with_header(header::WWW_AUTHENTICATE, challenge)
}

fn too_many(detail: &str, wait: Duration) -> Problem {
    let wait = wait.as_secs().saturating_add(1).min(MAX_WAIT_SECS);
    Problem::new(ProblemType::TooManyRequests, detail).with_header(header::RETRY_AFTER, wait.into())
}
