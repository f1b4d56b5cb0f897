//! Which dead letters are selected.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use uuid::Uuid;

use crate::broker::DeadLetter;

/// Digits of a whole reference.
const WHOLE: usize = 32;

/// A reference or its beginning, in lower-case hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Prefix(String);

impl Prefix {
    /// Whether `reference` begins with this prefix.
    pub(super) fn is_of(&self, reference: Uuid) -> bool {
        reference.simple().encode_lower(&mut Uuid::encode_buffer()).starts_with(&self.0)
    }

    /// Whether this prefix is a whole reference, which can match only one.
    pub(super) fn is_whole(&self) -> bool {
        self.0.len() == WHOLE
    }
}

impl FromStr for Prefix {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        if digits && text.len() <= WHOLE {
            Ok(Self(text.to_ascii_lowercase()))
        } else {
            Err("a reference has up to 32 hexadecimal digits, as `list` prints them")
        }
    }
}

impl From<Uuid> for Prefix {
    fn from(reference: Uuid) -> Self {
        Self(reference.simple().to_string())
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The selected dead letters.
#[derive(Clone, Debug)]
pub(super) enum Selection {
    /// Those with these whole references. A prefix that is not whole matches nothing yet.
    Named(BTreeSet<Prefix>),
    /// All, or all whose reason contains a text.
    All {
        /// The text.
        reason: Option<String>,
    },
}

impl Selection {
    pub(super) fn takes(&self, letter: &DeadLetter) -> bool {
        match self {
            Self::Named(references) => references.contains(&Prefix::from(letter.reference())),
            Self::All { reason: None } => true,
            Self::All { reason: Some(text) } => letter.reason().contains(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_the_beginning_of_a_reference() {
        let reference = Uuid::from_u128(0x3f2a_9c1b_04de_4711_8000_0000_0000_0001);
        for prefix in ["3", "3f2a9c1b04de", "3F2A9C1B04DE", "3f2a9c1b04de47118000000000000001"] {
            let parsed: Prefix = prefix.parse().unwrap();
            assert!(parsed.is_of(reference), "{prefix}");
            assert_eq!(parsed.is_whole(), prefix.len() == 32);
        }
        assert!(!"3f2b".parse::<Prefix>().unwrap().is_of(reference));
        for bad in ["", "3f2g", "3f2a-9c1b", " 3f", "3f2a9c1b04de471180000000000000010"] {
            assert!(bad.parse::<Prefix>().is_err(), "{bad}");
        }
        assert_eq!(Prefix::from(reference).to_string(), reference.simple().to_string());
    }
}
