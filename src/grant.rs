//! Grants: what the holder of a token may do, as a line of a token file.

use std::fmt::{self, Display};
use std::str::FromStr;

use time::format_description::well_known::{Iso8601, Rfc3339};
use time::{Date, Duration, OffsetDateTime, Time};

use crate::excerpt::excerpt;
use crate::token::{DigestError, TOKEN_PREFIX, TokenDigest};

/// Longest name of a token, in bytes.
pub const MAX_NAME_LEN: usize = 64;

/// Written instead of a time: the token does not expire.
const NEVER: &str = "never";

/// A field as an error quotes it. A token that is in it by mistake is left out, because errors are logged.
fn quoted(field: &str) -> String {
    if field.contains(TOKEN_PREFIX) { "a token".into() } else { excerpt(format_args!("{field:?}")) }
}

/// What a token lets its holder do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Send events.
    Write,
    /// Ask about domains.
    Read,
    /// Read metrics and the reasons of `/readyz`.
    Operate,
}

impl Scope {
    /// All scopes, in the order in which they are written.
    pub const ALL: [Self; 3] = [Self::Write, Self::Read, Self::Operate];

    /// The scope's name in files, arguments and challenges.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Write => "write",
            Self::Read => "read",
            Self::Operate => "operate",
        }
    }
}

impl FromStr for Scope {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|scope| scope.name() == name)
            .ok_or_else(|| format!("{} is not a scope: the scopes are write, read and operate", quoted(name)))
    }
}

/// One or more scopes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scopes(u8);

impl Scopes {
    /// Whether the scope is among them.
    #[must_use]
    pub fn contains(self, scope: Scope) -> bool {
        self.0 & Self::bit(scope) != 0
    }

    fn bit(scope: Scope) -> u8 {
        1 << scope as u8
    }
}

/// Scopes separated by commas.
impl FromStr for Scopes {
    type Err = String;

    fn from_str(list: &str) -> Result<Self, String> {
        let mut scopes = Self(0);
        for name in list.split(',') {
            scopes.0 |= Self::bit(name.parse()?);
        }
        Ok(scopes)
    }
}

impl Display for Scopes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> =
            Scope::ALL.into_iter().filter(|scope| self.contains(*scope)).map(Scope::name).collect();
        f.write_str(&names.join(","))
    }
}

/// The name by which people know a token: the holder's, for instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenName(String);

impl FromStr for TokenName {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let is_allowed = |letter: u8| letter.is_ascii_alphanumeric() || b"._-@".contains(&letter);
        if !(1..=MAX_NAME_LEN).contains(&name.len()) || !name.bytes().all(is_allowed) {
            let name = quoted(name);
            return Err(format!(
                "{name} is not a name of 1 to {MAX_NAME_LEN} letters, digits, dots, hyphens, underscores or @"
            ));
        }
        Ok(Self(name.to_owned()))
    }
}

impl Display for TokenName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// When a token ceases to be valid, if it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expiry(Option<OffsetDateTime>);

impl Expiry {
    /// A token that does not expire.
    pub const NEVER: Self = Self(None);

    /// Whether the token has expired at `now`, in seconds since 1970.
    #[must_use]
    pub fn is_over(self, now: i64) -> bool {
        self.0.is_some_and(|end| end.unix_timestamp() <= now)
    }

    /// The expiry that was asked for at `now`: a number of days (`90d`) or hours (`12h`), a date, or a time.
    ///
    /// # Errors
    ///
    /// When the text says none of these, or a time that has passed.
    pub fn from_argument(text: &str, now: OffsetDateTime) -> Result<Self, String> {
        let number = |unit: char| text.strip_suffix(unit).and_then(|number| number.parse::<u32>().ok());
        let validity = number('d').map(|days| Duration::days(days.into()));
        let validity = validity.or_else(|| number('h').map(|hours| Duration::hours(hours.into())));
        let expiry = match validity {
            // In whole seconds, as it is written.
            Some(validity) => Self(now.replace_nanosecond(0).ok().and_then(|now| now.checked_add(validity))),
            None => text.parse()?,
        };
        if expiry == Self::NEVER && text != NEVER {
            return Err("the date is too far in the future: write never".into());
        }
        if expiry.is_over(now.unix_timestamp()) {
            return Err(format!("{expiry} has passed"));
        }
        Ok(expiry)
    }
}

/// A date, which means its first moment in UTC, or an RFC 3339 time.
impl FromStr for Expiry {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == NEVER {
            return Ok(Self::NEVER);
        }
        // The standard knows other forms, and years that have no RFC 3339 form.
        let date = || {
            let date = Date::parse(text, &Iso8601::DATE).ok().filter(|date| date.to_string() == text)?;
            Some(date.with_time(Time::MIDNIGHT).assume_utc())
        };
        OffsetDateTime::parse(text, &Rfc3339).ok().or_else(date).map(|end| Self(Some(end))).ok_or_else(|| {
            format!("{} is not a time, as in 2027-01-31, 2027-01-31T12:00:00Z or never", quoted(text))
        })
    }
}

impl Display for Expiry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.map(|end| end.format(&Rfc3339)) {
            None => f.write_str(NEVER),
            Some(Ok(end)) => f.write_str(&end),
            // Only a year past 9999 has no such form, and none is read.
            Some(Err(_)) => Err(fmt::Error),
        }
    }
}

/// A line of a token file: name, scopes, SHA-256 and expiry, separated by spaces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Who holds the token.
    pub name: TokenName,
    /// What the holder may do.
    pub scopes: Scopes,
    /// How the token is recognised.
    pub digest: TokenDigest,
    /// Until when it is valid.
    pub expiry: Expiry,
}

impl FromStr for Grant {
    type Err = String;

    fn from_str(line: &str) -> Result<Self, String> {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [name, scopes, digest, expiry] = fields[..] else {
            return Err(format!("{} fields instead of name, scopes, SHA-256 and expiry", fields.len()));
        };
        let digest = digest.parse().map_err(|error: DigestError| error.to_string())?;
        Ok(Self { name: name.parse()?, scopes: scopes.parse()?, digest, expiry: expiry.parse()? })
    }
}

impl Display for Grant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, scopes, digest, expiry } = self;
        write!(f, "{name} {scopes} {digest} {expiry}")
    }
}

/// The grants of a token file. Empty lines and those that begin with `#` are ignored.
///
/// # Errors
///
/// The number of the first invalid line, and what is wrong with it.
pub fn grants(file: &str) -> Result<Vec<Grant>, String> {
    let lines = file.lines().enumerate().map(|(index, line)| (index + 1, line.trim()));
    lines
        .filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
        .map(|(number, line)| line.parse().map_err(|error| format!("line {number}: {error}")))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::token::Token;
    use proptest::prelude::*;

    const NOW: OffsetDateTime = time::macros::datetime!(2026-11-28 10:00:00.5 UTC);

    fn digest() -> String {
        Token::from_digits([7; 32]).digest().to_string()
    }

    #[test]
    fn a_file_has_a_grant_in_each_line() {
        let digest = digest();
        let file = format!(
            "# who may send\n\nmailer write {digest} never\r\n  \
             ops@example.com read,operate {digest} 2027-01-31T12:00:00+01:00  \n"
        );
        let read = grants(&file).unwrap();
        assert_eq!(read.len(), 2);
        assert_eq!(read[0].to_string(), format!("mailer write {digest} never"));
        let allowed = |grant: &Grant| Scope::ALL.map(|scope| grant.scopes.contains(scope));
        assert_eq!(allowed(&read[0]), [true, false, false]);
        assert_eq!(allowed(&read[1]), [false, true, true]);
        assert!(!read[0].expiry.is_over(i64::MAX));
        let end = time::macros::datetime!(2027-01-31 11:00 UTC).unix_timestamp();
        assert!(!read[1].expiry.is_over(end - 1) && read[1].expiry.is_over(end));
        assert_eq!(grants(""), Ok(Vec::new()));
    }

    #[test]
    fn a_line_that_is_no_grant_is_named() {
        let digest = digest();
        for (line, expected) in [
            ("mailer", "1 fields instead of"),
            (&*format!("mailer write {digest} never more"), "5 fields instead of"),
            (&format!("mailer write,admin {digest} never"), "\"admin\" is not a scope"),
            (&format!("mailer write, {digest} never"), "\"\" is not a scope"),
            ("mailer write 0123 never", "a SHA-256 is 64 hexadecimal digits"),
            (&format!("mailer write {digest} soon"), "\"soon\" is not a time"),
            (&format!("mäiler write {digest} never"), "is not a name of 1 to 64"),
            (&format!("{} write {digest} never", "m".repeat(65)), "is not a name of 1 to 64"),
        ] {
            let error = grants(&format!("# first\n{line}\n")).unwrap_err();
            assert!(error.starts_with("line 2: ") && error.contains(expected), "{error}");
        }
    }

    #[test]
    fn a_token_in_the_wrong_place_is_not_repeated() {
        let (digest, token) = (digest(), Token::from_digits([7; 32]));
        let token = token.expose();
        for (line, expected) in [
            (format!("mailer {token} {digest} never"), "a token is not a scope"),
            (format!("mailer write,{} {digest} never", &token[..30]), "a token is not a scope"),
            (format!("mailer write {digest} {token}"), "a token is not a time"),
            (format!("mailer:{token} write {digest} never"), "a token is not a name"),
            (format!("mailer write {token} never"), "a SHA-256 is 64 hexadecimal digits"),
            (token.to_owned(), "1 fields instead of"),
        ] {
            let error = grants(&line).unwrap_err();
            assert!(error.contains(expected) && !error.contains(&token[..20]), "{error}");
        }
    }

    #[test]
    fn an_expiry_can_be_asked_for_in_several_ways() {
        for (text, expected) in [
            ("never", "never"),
            ("90d", "2027-02-26T10:00:00Z"),
            ("12h", "2026-11-28T22:00:00Z"),
            ("2027-01-31", "2027-01-31T00:00:00Z"),
            ("2027-01-31T12:00:00-05:00", "2027-01-31T12:00:00-05:00"),
        ] {
            assert_eq!(
                Expiry::from_argument(text, NOW).map(|expiry| expiry.to_string()),
                Ok(expected.into())
            );
        }
        for (text, expected) in [
            ("2026-11-28", "has passed"),
            ("0d", "has passed"),
            ("d", "is not a time"),
            ("-1d", "is not a time"),
            ("4000000000d", "write never"),
            ("2027-02-29", "is not a time"),
            ("-001040-101", "is not a time"),
            ("2027-W10-1", "is not a time"),
            ("+12027-01-31", "is not a time"),
            ("tomorrow", "is not a time"),
        ] {
            let error = Expiry::from_argument(text, NOW).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn a_grant_is_read_as_it_was_written(
            name in "[A-Za-z0-9._@-]{1,64}", scopes in 1..8u8, digits in prop::array::uniform32(0..62u8),
            end in prop::option::of(0..250_000_000_000i64),
        ) {
            let expiry = Expiry(end.map(|end| OffsetDateTime::from_unix_timestamp(end).unwrap()));
            let digest = Token::from_digits(digits).digest();
            let grant = Grant { name: name.parse().unwrap(), scopes: Scopes(scopes), digest, expiry };
            prop_assert_eq!(grant.to_string().parse(), Ok(grant));
        }

        #[test]
        fn no_text_is_too_strange(text in "\\PC{0,200}") {
            let _ = grants(&text);
        }
    }
}
