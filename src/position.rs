//! A place in a feed of changes.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};
use utoipa::ToSchema;

use crate::domain_name::DomainName;

/// Identifies a feed. Each database has its own feed, even one that was restored, because the places in it
/// are different.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FeedId(pub u32);

/// A place in a feed: after the change of `domain` in the transaction `transaction`. Without a domain it is
/// before all changes of that transaction.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Orders the transactions that changed something. It does not count them.
    pub transaction: i64,
    /// The last domain before the place, as the store has it; empty if there is none. It need not be a valid
    /// name by the rules of this build.
    pub domain: String,
}

impl Place {
    /// The place after the change of a domain.
    #[must_use]
    pub fn after(transaction: i64, domain: &DomainName) -> Self {
        Self { transaction, domain: domain.to_string() }
    }
}

/// A place, and the feed that it belongs to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// `None`: the beginning of any feed. Any other place without a feed belongs to no feed.
    pub feed: Option<FeedId>,
    /// The place.
    pub place: Place,
}

/// A position as clients see it, for the API's document.
#[derive(ToSchema)]
#[schema(
    value_type = String,
    description = "A place in the feed. Treat it as opaque text: its only use is to ask what came after \
        it.",
    format = "catchall-position",
    examples("48213.9f3a6c01-example.com")
)]
pub struct PositionText(#[expect(dead_code, reason = "it only describes")] String);

/// The text is not a position that the feed has given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "it is not a position: give one that the feed returned, or \"now\", or nothing to start at the beginning"
)]
pub struct NoPosition;

impl Position {
    /// The beginning of any feed.
    #[must_use]
    pub fn beginning() -> Self {
        Self::default()
    }
}

impl fmt::Display for FeedId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

impl FromStr for FeedId {
    type Err = NoPosition;

    fn from_str(text: &str) -> Result<Self, NoPosition> {
        let digits = text.len() == 8 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        u32::from_str_radix(text, 16).ok().filter(|_| digits).map(Self).ok_or(NoPosition)
    }
}

/// Whether a byte of a domain stands for itself, as every byte of a valid name does.
fn is_plain(byte: u8) -> bool {
    matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-')
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.place.transaction)?;
        if let Some(feed) = self.feed {
            write!(f, ".{feed}")?;
        }
        f.write_str("-")?;
        if self.place.domain.bytes().all(is_plain) {
            return f.write_str(&self.place.domain);
        }
        self.place.domain.bytes().try_for_each(|byte| {
            if is_plain(byte) { write!(f, "{}", char::from(byte)) } else { write!(f, "_{byte:02x}") }
        })
    }
}

impl FromStr for Position {
    type Err = NoPosition;

    fn from_str(text: &str) -> Result<Self, NoPosition> {
        let (begin, domain) = text.split_once('-').ok_or(NoPosition)?;
        let (transaction, feed) = match begin.split_once('.') {
            Some((transaction, feed)) => (transaction, Some(feed.parse()?)),
            None => (begin, None),
        };
        let digits = !transaction.is_empty() && transaction.bytes().all(|byte| byte.is_ascii_digit());
        let transaction = transaction.parse().ok().filter(|_| digits).ok_or(NoPosition)?;
        let domain = unescape(domain).ok_or(NoPosition)?;
        Ok(Self { feed, place: Place { transaction, domain } })
    }
}

/// Reads a domain as it was [written](is_plain).
fn unescape(text: &str) -> Option<String> {
    let mut parts = text.split('_');
    let mut bytes = parts.next()?.as_bytes().to_vec();
    let plain = text.bytes().all(|byte| is_plain(byte) || byte == b'_');
    for part in parts {
        let (digits, rest) = part.split_at_checked(2)?;
        // A text in a database has no zero byte.
        let byte = u8::from_str_radix(digits, 16).ok().filter(|byte| *byte != 0)?;
        bytes.push(byte);
        bytes.extend_from_slice(rest.as_bytes());
    }
    String::from_utf8(bytes).ok().filter(|_| plain)
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
        for text in [
            "",
            "now",
            "12",
            "-a.com",
            "+1-a.com",
            "x-a.com",
            "9223372036854775808-",
            "1 -a.com",
            "12-A.com",
            "12-a b",
            "12-_",
            "12-_0",
            "12-_zz",
            "12-_00",
            "12-_ff",
            "12.-a.com",
            "12.9f3a6c0-",
            "12.9F3A6C01-",
            "12.+f3a6c01-",
            ".9f3a6c01-a.com",
        ] {
            assert_eq!(text.parse::<Position>(), Err(NoPosition), "{text}");
        }
        assert_eq!("0-".parse(), Ok(Position::beginning()));
        assert_eq!("12.9f3a6c01-a.com".parse::<Position>().unwrap().feed, Some(FeedId(0x9f3a_6c01)));
    }

    proptest! {
        #[test]
        fn a_position_is_read_as_it_was_written(
            feed in proptest::option::of(any::<u32>()),
            transaction in 0..i64::MAX,
            domain in "([a-z]{1,9}\\.[a-z]{2,5})?|[^\0]{0,9}",
        ) {
            let position = Position { feed: feed.map(FeedId), place: Place { transaction, domain } };
            let text = position.to_string();
            prop_assert!(text.bytes().all(|byte| byte.is_ascii_graphic()), "{}", text);
            prop_assert_eq!(text.parse(), Ok(position));
        }

        #[test]
        fn the_order_is_that_of_the_stores(one in (0..3i64, "[a-c]\\.de"), two in (0..3i64, "[a-c]\\.de")) {
            let place = |(transaction, domain): &(i64, String)| Place {
                transaction: *transaction,
                domain: domain.clone(),
            };
            prop_assert_eq!(place(&one).cmp(&place(&two)), one.cmp(&two));
            let before = Place { transaction: one.0, domain: String::new() };
            prop_assert!(before < place(&one));
        }
    }
}
