//! Admission: whom a listener lets in.

use std::sync::Arc;

use super::token_set::TokenSet;
use crate::reload::Reloaded;

/// Whom a listener lets in.
#[derive(Clone, Debug)]
pub(in crate::http) enum Admission {
    /// Everybody, with all rights.
    Everybody,
    /// The same, for a listener that only this machine reaches: the host of a request must be this machine.
    ThisMachine,
    /// Holders of a token, with the rights of its scopes.
    Holders(Arc<Reloaded<TokenSet>>),
}
