//! Domain names, parsed once.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use compact_str::CompactString;
use idna::AsciiDenyList;
use idna::uts46::{DnsLength, Hyphens, Uts46};
use serde::{Serialize, Serializer};
use utoipa::ToSchema;

/// Longest spelling that is parsed, in bytes. A name of 253 octets can be written with up to four bytes per
/// character; a longer text cannot become a domain name and is refused before any work.
const MAX_SPELLING: usize = 1024;

/// Longest domain name in octets, without the root's empty label (RFC 1035, 2.3.4).
const MAX_NAME: usize = 253;

/// Longest label of a domain name in octets (RFC 1035, 2.3.4).
const MAX_LABEL: usize = 63;

/// A domain name in the one spelling that is counted: ASCII, lower case, no trailing dot.
///
/// Only parsing makes one, so a `&DomainName` needs no check. It has at least two labels of at most 63
/// octets, at most 253 octets in all, letters, digits and inner hyphens only (UTS #46 with the STD3 rules),
/// and it is not an IP address. Equality and order compare bytes, as the database does (`collate "C"`).
///
/// A name of up to 24 octets, as most are, needs no allocation.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, ToSchema)]
#[schema(
    value_type = String,
    description = "A domain name in the one spelling that is counted: ASCII, lower case, no dot at the end.",
    min_length = 3,
    max_length = 253,
    pattern = r"^([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$",
    examples("example.com", "xn--mller-kva.de"),
)]
pub struct DomainName(CompactString);

/// A domain name as clients may write it, for the API's document: see [`DomainName::parse`].
#[derive(ToSchema)]
#[schema(
    value_type = String,
    description = "A domain name in any spelling: case does not matter, one dot at the end is ignored, and \
        Unicode becomes Punycode. It has at least two labels of 1 to 63 octets and at most 253 octets in all, \
        letters, digits and inner hyphens only, and is not an IP address.",
    format = "idn-hostname",
    examples("example.com", "ExAmPle.COM.", "m\u{fc}ller.example"),
)]
pub struct DomainSpelling(#[expect(dead_code, reason = "it only describes")] String);

/// Why a text is not a [`DomainName`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DomainNameError {
    /// Nothing, or only a dot.
    #[error("a domain name must not be empty")]
    Empty,
    /// More than 253 octets in ASCII.
    #[error("a domain name has at most 253 octets")]
    TooLong,
    /// An empty label, as in `a..b`, or one of more than 63 octets.
    #[error("each label of a domain name has 1 to 63 octets")]
    LabelLength,
    /// No dot inside, as in `localhost`.
    #[error("a domain name has at least two labels, as in example.com")]
    SingleLabel,
    /// An IP address, or a name that ends in a number, which parsers take for an IP address.
    #[error("an IP address is not a domain name")]
    IpAddress,
    /// A forbidden character, a misplaced hyphen, or invalid punycode.
    #[error("a domain name has only letters, digits and inner hyphens")]
    Character,
}

impl DomainName {
    /// Parses any spelling of a domain name: mixed case, a trailing dot, or Unicode.
    ///
    /// # Errors
    ///
    /// The rule of a [`DomainName`] that the text breaks.
    pub fn parse(text: &str) -> Result<Self, DomainNameError> {
        plain(text).map_or_else(|| parse_any(text), |name| Ok(Self(name)))
    }

    /// The name's one spelling.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name in Unicode, if that differs. Another name can look the same.
    #[must_use]
    pub fn unicode(&self) -> Option<String> {
        let (unicode, valid) = idna::domain_to_unicode(&self.0);
        (valid.is_ok() && unicode != self.0.as_str()).then_some(unicode)
    }
}

/// The full parser.
fn parse_any(text: &str) -> Result<DomainName, DomainNameError> {
    if text.is_empty() || text == "." {
        return Err(DomainNameError::Empty);
    }
    if text.len() > MAX_SPELLING {
        return Err(DomainNameError::TooLong);
    }
    if text.starts_with('[') || text.parse::<std::net::Ipv6Addr>().is_ok() {
        return Err(DomainNameError::IpAddress);
    }
    let ascii = to_ascii(text)?;
    let name = ascii.strip_suffix('.').unwrap_or(&ascii);
    check_lengths(name)?;
    let Some((_, top)) = name.rsplit_once('.') else {
        return Err(DomainNameError::SingleLabel);
    };
    // No top-level domain is a number (RFC 3696, 2). A URL parser takes every name that ends in a number for
    // an IPv4 address, including 127.1 and 0x7f.1 (WHATWG URL, "ends in a number").
    if is_number(top) {
        return Err(DomainNameError::IpAddress);
    }
    Ok(DomainName(name.into()))
}

/// The fast path for nearly every text, in one pass: letters, digits, inner hyphens and dots, of which UTS
/// #46 changes only the case, under a top-level domain of letters alone. `None`: ask the full parser.
fn plain(text: &str) -> Option<CompactString> {
    let text = text.strip_suffix('.').unwrap_or(text);
    if text.len() > MAX_NAME {
        return None;
    }
    let mut label = (0, b'.');
    let (mut dots, mut digits) = (0, false);
    for byte in text.bytes() {
        let (length, last) = label;
        label = match byte {
            b'a'..=b'z' | b'A'..=b'Z' => (length + 1, byte),
            b'0'..=b'9' => {
                digits = true;
                (length + 1, byte)
            }
            // Two hyphens in a row can be those of punycode.
            b'-' if length > 0 && last != b'-' => (length + 1, byte),
            b'.' if (1..=MAX_LABEL).contains(&length) && last != b'-' => {
                (dots, digits) = (dots + 1, false);
                (0, byte)
            }
            _ => return None,
        };
    }
    let (length, last) = label;
    if dots == 0 || digits || last == b'-' || !(1..=MAX_LABEL).contains(&length) {
        return None;
    }
    let mut name = CompactString::new(text);
    name.make_ascii_lowercase();
    Some(name)
}

/// UTS #46 with the STD3 rules; a leading or trailing hyphen in a label is refused, `r3---sn` is not.
/// (`idna::domain_to_ascii_strict` refuses such names, which exist.) Lower-case ASCII comes back borrowed.
/// The caller checks the lengths, because it can report which one is wrong.
fn to_ascii(text: &str) -> Result<Cow<'_, str>, DomainNameError> {
    Uts46::new()
        .to_ascii(text.as_bytes(), AsciiDenyList::STD3, Hyphens::CheckFirstLast, DnsLength::Ignore)
        .map_err(|_| DomainNameError::Character)
}

fn check_lengths(name: &str) -> Result<(), DomainNameError> {
    if name.is_empty() {
        return Err(DomainNameError::Empty);
    }
    if name.len() > MAX_NAME {
        return Err(DomainNameError::TooLong);
    }
    if name.split('.').any(|label| !(1..=MAX_LABEL).contains(&label.len())) {
        return Err(DomainNameError::LabelLength);
    }
    Ok(())
}

fn is_number(label: &str) -> bool {
    let hex = label.strip_prefix("0x");
    hex.is_some_and(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()))
        || label.bytes().all(|b| b.is_ascii_digit())
}

impl FromStr for DomainName {
    type Err = DomainNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

impl Serialize for DomainName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl fmt::Display for DomainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for DomainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use DomainNameError::{Character, Empty, IpAddress, LabelLength, SingleLabel, TooLong};
    use proptest::prelude::*;

    #[test]
    fn every_spelling_is_one_name() {
        for (spelling, name) in [
            ("example.com", "example.com"),
            ("ExAmPle.COM.", "example.com"),
            ("m\u{fc}ller.de", "xn--mller-kva.de"),
            ("M\u{dc}LLER.DE", "xn--mller-kva.de"),
            ("XN--mller-KVA.de", "xn--mller-kva.de"),
            ("mu\u{308}ller.de", "xn--mller-kva.de"),
            ("example\u{3002}com", "example.com"),
            ("r3---sn-apo3qvuoxuxbt-j5pe.example.com", "r3---sn-apo3qvuoxuxbt-j5pe.example.com"),
            ("1and1.com", "1and1.com"),
            ("163.com", "163.com"),
            ("\u{4f8b}\u{3048}.\u{30c6}\u{30b9}\u{30c8}", "xn--r8jz45g.xn--zckzah"),
        ] {
            assert_eq!(DomainName::parse(spelling).map(|n| n.to_string()), Ok(name.into()), "{spelling}");
        }
    }

    #[test]
    fn a_name_of_other_letters_is_also_shown_as_people_write_it() {
        let unicode = |name: &str| DomainName::parse(name).unwrap().unicode();
        assert_eq!(unicode("MÜLLER.example"), Some("müller.example".to_owned()));
        assert_eq!(unicode("xn--mller-kva.example"), Some("müller.example".to_owned()));
        for name in ["example.com", "r3---sn.example"] {
            assert_eq!(unicode(name), None, "{name}");
        }
    }

    #[test]
    fn what_is_no_name_is_refused_with_the_reason() {
        let label_64 = format!("{}.com", "a".repeat(64));
        let octets_254 = format!("{}.com", vec!["a".repeat(49); 5].join(".") + "b");
        for (text, error) in [
            ("", Empty),
            (".", Empty),
            ("..", LabelLength),
            ("localhost", SingleLabel),
            ("com.", SingleLabel),
            ("a..b", LabelLength),
            (".example.com", LabelLength),
            ("example.com..", LabelLength),
            (&label_64, LabelLength),
            (&octets_254, TooLong),
            (&"a.".repeat(5000), TooLong),
            ("127.0.0.1", IpAddress),
            ("127.0.0.1.", IpAddress),
            ("127.1", IpAddress),
            ("0x7f.0x1", IpAddress),
            ("::1", IpAddress),
            ("[::1]", IpAddress),
            ("[127.0.0.1]", IpAddress),
            ("-a.com", Character),
            ("a-.com", Character),
            ("a_b.com", Character),
            ("a b.com", Character),
            ("a@b.com", Character),
            ("a/b.com", Character),
            ("a\0.com", Character),
            ("xn--.com", Character),
            ("xn--a.com", Character),
            ("xn--example-.com", Character),
        ] {
            assert_eq!(DomainName::parse(text), Err(error), "{text:?}");
        }
    }

    #[test]
    fn the_longest_names_are_accepted() {
        let label = "a".repeat(63);
        let longest = format!("{label}.{label}.{label}.{}", "b".repeat(61));
        assert_eq!(longest.len(), 253);
        assert!(DomainName::parse(&longest).is_ok());
        assert!(DomainName::parse(&format!("{longest}.")).is_ok());
    }

    proptest! {
        #[test]
        fn a_name_is_its_own_only_spelling(
            text in "\\PC{0,40}|[a-zA-Z0-9\u{fc}\u{df}.-]{1,30}\\.[a-zA-Z]{2,5}\\.?",
        ) {
            if let Ok(name) = DomainName::parse(&text) {
                prop_assert_eq!(DomainName::parse(name.as_str()), Ok(name.clone()));
                prop_assert_eq!(DomainName::parse(&format!("{name}.")), Ok(name.clone()));
                prop_assert_eq!(DomainName::parse(&name.as_str().to_ascii_uppercase()), Ok(name.clone()));
                prop_assert!(name.as_str().len() <= 253);
                prop_assert!(name.as_str().split('.').count() >= 2);
                prop_assert!(name.as_str().split('.').all(|l| (1..=63).contains(&l.len())));
                let plain = |b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.');
                prop_assert!(name.as_str().bytes().all(plain));
            }
        }

        #[test]
        fn the_short_way_says_what_the_long_one_does(
            text in "[a-zA-Z0-9.-]{0,12}|(xn--|XN--|0x|r3---)?[a-z0-9-]{0,5}\\.[a-z0-9-]{1,4}\\.?|\
                ([a-z]{60,64}\\.){3,4}[a-z]{57,64}",
        ) {
            if let Some(name) = plain(&text) {
                prop_assert_eq!(parse_any(&text), Ok(DomainName(name)));
            }
        }

        #[test]
        fn ordinary_names_are_lower_cased_and_nothing_else(
            labels in prop::collection::vec("[a-zA-Z0-9]([a-zA-Z0-9]{0,20}[a-zA-Z0-9])?", 1..4),
            top in "[a-zA-Z]{2,8}",
        ) {
            let text = format!("{}.{top}", labels.join("."));
            prop_assert_eq!(DomainName::parse(&text).unwrap().to_string(), text.to_ascii_lowercase());
        }
    }
}
