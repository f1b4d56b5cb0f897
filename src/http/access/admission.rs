//! Admission: whom a listener lets in.

use std::sync::Arc;

use super::token_set::TokenSet;
use crate::reload::Reloaded;

/// Whom a listener lets in.
#[derive(Clone, Debug)]
pub(in crate::http) enum Admission {
    /// Everybody, who may do everything.
    Everybody,
    /// The same, where only this machine reaches the listener: a request also has to name this machine.
    ThisMachine,
    /// Those who show a token, and may do what it is for.
    Holders(Arc<Reloaded<TokenSet>>),
}
