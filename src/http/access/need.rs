//! Needs: what a path requires of the sender of a request.

use crate::grant::Scope;

/// The page for people. Only here is a browser made to ask for a password; it then sends the password with
/// everything that the page loads. Clients of the API get another challenge, and a page that is open never
/// asks again.
pub(super) const PAGE: &str = "/";

/// The probes of load balancers and orchestrators, which may use any name for this machine.
const PROBES: [&str; 2] = ["/livez", "/readyz"];

/// The documents of the API, which contain nothing of the counted data.
const DOCUMENTS: [&str; 3] = ["/openapi.json", "/docs", "/docs/style.css"];

/// What a request needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Need {
    /// Nothing: everybody may send it.
    Nothing,
    /// A valid token.
    Token,
    /// A valid token with this scope.
    Scope(Scope),
}

impl Need {
    /// What a path requires, on every listener. A path that is not listed here requires a token, so strangers
    /// do not even learn whether it exists. A path is open only exactly as it is written here, and nothing
    /// below it is.
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
