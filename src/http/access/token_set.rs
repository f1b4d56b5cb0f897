//! Token sets: the tokens that are valid now, and how much their holders may still do.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use super::allowance::{Allowance, Rates};
use crate::grant::{Expiry, Grant, Scope};
use crate::token::{TokenDigest, TokenError};

/// The holder of a token.
#[derive(Debug)]
pub(super) struct Holder {
    grant: Grant,
    allowance: Allowance,
}

impl Holder {
    pub(super) fn may(&self, scope: Scope) -> bool {
        self.grant.scopes.contains(scope)
    }

    pub(super) fn digest(&self) -> TokenDigest {
        self.grant.digest
    }

    pub(super) fn allowance(&self) -> &Allowance {
        &self.allowance
    }
}

/// Why a token is not valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum InvalidToken {
    #[error("{0}")]
    NoToken(#[from] TokenError),
    #[error("it is unknown")]
    Unknown,
    #[error("it expired at {0}")]
    Expired(Expiry),
}

/// The tokens of all files.
#[derive(Debug, Default)]
pub(in crate::http) struct TokenSet(HashMap<u64, Arc<Holder>>);

impl TokenSet {
    /// The set of these grants. Holders that are also in `before` keep the allowances they have left.
    ///
    /// # Errors
    ///
    /// When a token is named twice.
    pub(super) fn new(grants: Vec<Grant>, rates: Rates, before: &Self) -> Result<Self, String> {
        let mut holders: HashMap<_, Arc<Holder>> = HashMap::with_capacity(grants.len());
        for grant in grants {
            let slot = grant.digest.slot();
            if let Some(first) = holders.get(&slot) {
                let (first, second) = (&first.grant.name, &grant.name);
                return Err(format!("the tokens of {first} and of {second} are the same"));
            }
            let holder = match before.0.get(&slot) {
                Some(holder) if holder.grant == grant => Arc::clone(holder),
                _ => Arc::new(Holder { grant, allowance: Allowance::new(rates) }),
            };
            holders.insert(slot, holder);
        }
        Ok(Self(holders))
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// The holder of the token that a client sent.
    pub(super) fn holder(&self, token: &str) -> Result<Arc<Holder>, InvalidToken> {
        self.valid(TokenDigest::of_token(token)?).map(Arc::clone)
    }

    /// Whether the token with this digest is valid now and has this scope.
    pub(super) fn may(&self, digest: TokenDigest, scope: Scope) -> bool {
        self.valid(digest).is_ok_and(|holder| holder.may(scope))
    }

    fn valid(&self, digest: TokenDigest) -> Result<&Arc<Holder>, InvalidToken> {
        let holder = self.0.get(&digest.slot()).filter(|holder| holder.grant.digest == digest);
        let holder = holder.ok_or(InvalidToken::Unknown)?;
        let expiry = holder.grant.expiry;
        if expiry != Expiry::NEVER && expiry.is_over(now()) {
            return Err(InvalidToken::Expired(expiry));
        }
        Ok(holder)
    }
}

/// Seconds since 1970.
fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_secs().try_into().unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grant::grants;
    use crate::token::Token;

    fn line(digit: u8, rest: &str) -> String {
        let digest = Token::from_digits([digit; 32]).digest();
        let (before, after) = rest.rsplit_once(' ').unwrap();
        format!("{before} {digest} {after}\n")
    }

    fn set(file: &str, before: &TokenSet) -> Result<TokenSet, String> {
        let rates = Rates { requests: std::num::NonZeroU32::new(1), events: None };
        TokenSet::new(grants(file)?, rates, before)
    }

    fn holder(set: &TokenSet, digit: u8) -> Result<Arc<Holder>, InvalidToken> {
        set.holder(Token::from_digits([digit; 32]).expose())
    }

    #[test]
    fn a_token_is_found_as_long_as_it_is_valid() {
        let file = line(1, "mailer write never")
            + &line(2, "boss read,operate 2027-01-01")
            + &line(3, "old read 2026-01-01");
        let set = set(&file, &TokenSet::default()).unwrap();
        assert_eq!(set.len(), 3);
        let may = |digit| Scope::ALL.map(|scope| holder(&set, digit).unwrap().may(scope));
        assert_eq!(may(1), [true, false, false]);
        assert_eq!(may(2), [false, true, true]);
        let error = |digit| holder(&set, digit).unwrap_err().to_string();
        assert_eq!(error(3), "it expired at 2026-01-01T00:00:00Z");
        assert_eq!(error(4), "it is unknown");
        assert_eq!(set.holder("secret").unwrap_err().to_string(), TokenError::Form.to_string());
        let still = |digit| {
            let digest = Token::from_digits([digit; 32]).digest();
            Scope::ALL.map(|scope| set.may(digest, scope))
        };
        assert_eq!(still(2), may(2));
        assert_eq!((still(3), still(4)), ([false; 3], [false; 3]));
    }

    #[test]
    fn a_holder_does_not_begin_anew_with_the_file() {
        let file = line(1, "mailer write never");
        let first = set(&file, &TokenSet::default()).unwrap();
        assert_eq!(holder(&first, 1).unwrap().allowance().take_request(), Ok(()));
        let second = set(&(file + &line(2, "boss read never")), &first).unwrap();
        assert!(holder(&second, 1).unwrap().allowance().take_request().is_err());
        let changed = set(&line(1, "mailer read never"), &second).unwrap();
        assert!(holder(&changed, 1).unwrap().may(Scope::Read));
        assert_eq!(holder(&changed, 2).unwrap_err(), InvalidToken::Unknown);
    }

    #[test]
    fn a_token_has_one_holder() {
        let file = line(1, "mailer write never") + &line(1, "boss read never");
        assert_eq!(
            set(&file, &TokenSet::default()).unwrap_err(),
            "the tokens of mailer and of boss are the same"
        );
    }
}
