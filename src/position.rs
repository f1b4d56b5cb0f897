//! A place in the feed of changes.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};
use utoipa::ToSchema;

use crate::domain_name::DomainName;

/// A place in the feed of changes: after the change of `domain` in the transaction `transaction`. Without a
/// domain it is before all changes of that transaction.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// Orders the transactions that changed something. It is not their number.
    pub transaction: i64,
    /// The last domain before the place.
    pub domain: Option<DomainName>,
}

/// A position as clients see it, for the API's document.
#[derive(ToSchema)]
#[schema(
    value_type = String,
    description = "A place in the feed. Take it for an opaque text: it is only good for asking what came \
        after it.",
    format = "catchall-position",
    examples("48213-example.com")
)]
pub struct PositionText(#[expect(dead_code, reason = "it only describes")] String);

/// The text is not one that the feed has given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "it is not a position: give one that the feed has given, or \"now\", or nothing to begin at the beginning"
)]
pub struct NoPosition;

impl Position {
    /// The beginning of the feed.
    #[must_use]
    pub fn beginning() -> Self {
        Self::default()
    }

    /// The domain as the stores compare it: no name sorts before the empty one.
    #[must_use]
    pub fn domain_str(&self) -> &str {
        self.domain.as_ref().map_or("", DomainName::as_str)
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.transaction, self.domain_str())
    }
}

impl FromStr for Position {
    type Err = NoPosition;

    fn from_str(text: &str) -> Result<Self, NoPosition> {
        let (transaction, domain) = text.split_once('-').ok_or(NoPosition)?;
        let digits = !transaction.is_empty() && transaction.bytes().all(|byte| byte.is_ascii_digit());
        let transaction = transaction.parse().ok().filter(|_| digits).ok_or(NoPosition)?;
        let domain = match domain {
            "" => None,
            name => Some(DomainName::parse(name).map_err(|_| NoPosition)?),
        };
        Ok(Self { transaction, domain })
    }
}

impl Serialize for Position {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_the_feed_did_not_give_is_no_position() {
        for text in
            ["", "now", "12", "-a.com", "+1-a.com", "12-a", "x-a.com", "9223372036854775808-", "1 -a.com"]
        {
            assert_eq!(text.parse::<Position>(), Err(NoPosition), "{text}");
        }
        assert_eq!("0-".parse(), Ok(Position::beginning()));
    }

    proptest! {
        #[test]
        fn a_position_is_read_as_it_was_written(
            transaction in 0..i64::MAX,
            name in "([a-z]{1,9}\\.[a-z]{2,5})?",
        ) {
            let domain = DomainName::parse(&name).ok();
            let position = Position { transaction, domain };
            prop_assert_eq!(position.to_string().parse(), Ok(position));
        }

        #[test]
        fn the_order_is_that_of_the_stores(one in (0..3i64, "[a-c]\\.de"), two in (0..3i64, "[a-c]\\.de")) {
            let position = |(transaction, name): &(i64, String)| Position {
                transaction: *transaction,
                domain: DomainName::parse(name).ok(),
            };
            prop_assert_eq!(position(&one).cmp(&position(&two)), one.cmp(&two));
            let before = Position { transaction: one.0, domain: None };
            prop_assert!(before < position(&one));
        }
    }
}
