//! Needs: what a request of a path asks of its sender.

use crate::grant::Scope;

/// The page for people. A browser is made to ask for a password here only, and sends that with all else that
/// the page needs. Clients of the API have a challenge of their own, and a page that is open asks nobody
/// again.
pub(super) const PAGE: &str = "/";

/// What load balancers and orchestrators ask, by whatever name they have for this machine.
const PROBES: [&str; 2] = ["/livez", "/readyz"];

/// The documents of the requests, which say nothing of what is counted.
const DOCUMENTS: [&str; 3] = ["/openapi.json", "/docs", "/docs/style.css"];

/// What a request needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Need {
    /// Nothing: anybody may ask.
    Nothing,
    /// A valid token.
    Token,
    /// A valid token with this scope.
    Scope(Scope),
}

impl Need {
    /// What a request of a path needs, on every listener. Whatever is not named here is not told to
    /// strangers: they do not even learn that there is nothing. So a path is open only as it is written here,
    /// and nothing below it is.
    pub(super) fn of(path: &str) -> Self {
        if is_probe(path) || DOCUMENTS.contains(&path) {
            return Self::Nothing;
        }
        let first = path.strip_prefix('/').unwrap_or(path).split('/').next().unwrap_or_default();
        match first {
            "" if path == PAGE => Self::Scope(Scope::Read),
            "events" => Self::Scope(Scope::Write),
            "domains" | "totals" | "changes" | "maps" | "page" => Self::Scope(Scope::Read),
            "metrics" => Self::Scope(Scope::Operate),
            _ => Self::Token,
        }
    }
}

/// Whether a path is for probes.
pub(super) fn is_probe(path: &str) -> bool {
    PROBES.contains(&path)
}
