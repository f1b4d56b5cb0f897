//! The requests of mail servers, and the replies.

use std::borrow::Cow;

use crate::counters::Status;
use crate::domain_name::DomainName;

/// The only map: from a domain, or an address in it, to the status of the domain.
const STATUS_MAP: &[u8] = b"status";

/// The reply to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Reply {
    /// What is known about the domain.
    Found(Status),
    /// The map does not have this key.
    NotFound,
    /// The answer is not available now.
    Temporary(String),
    /// Asking again will not help.
    Permanent(&'static str),
}

impl Reply {
    /// The reply for a status. A domain of which too little is known is not in the map: a mail server then
    /// goes on to its next table or restriction, as it would without this one.
    pub(super) fn of(status: Status) -> Self {
        match status {
            Status::Unknown => Self::NotFound,
            Status::CatchAll | Status::NotCatchAll => Self::Found(status),
        }
    }

    /// The reply in the form of the protocol (`socketmap_table(5)`). A space always follows the word.
    pub(super) fn text(&self) -> Cow<'static, str> {
        match self {
            Self::Found(status) => format!("OK {}", status.name()).into(),
            Self::NotFound => "NOTFOUND ".into(),
            Self::Temporary(reason) => format!("TEMP {reason}").into(),
            Self::Permanent(reason) => format!("PERM {reason}").into(),
        }
    }
}

/// The domain that a request asks about.
///
/// # Errors
///
/// The reply, if it is already known. Mail servers ask for all sorts of keys, so one that is not a domain is
/// not an error.
pub(super) fn domain(request: &[u8]) -> Result<DomainName, Reply> {
    let mut words = request.splitn(2, |byte| *byte == b' ');
    let (map, key) = (words.next().unwrap_or_default(), words.next());
    let key = key.ok_or(Reply::Permanent("a request is a map, a space and a key"))?;
    if map != STATUS_MAP {
        return Err(Reply::Permanent("there is no such map; the map is named status"));
    }
    // Postfix looks for the whole address in a socketmap, and never for its domain alone.
    let name = key.rsplit(|byte| *byte == b'@').next().unwrap_or(key);
    let name = std::str::from_utf8(name).ok().and_then(|name| DomainName::parse(name).ok());
    name.ok_or(Reply::NotFound)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_a_domain_or_an_address() {
        for (request, name) in [
            ("status example.com", "example.com"),
            ("status EXAMPLE.com.", "example.com"),
            ("status somebody@example.com", "example.com"),
            ("status a+b@c@example.com", "example.com"),
            ("status \"a b\"@example.com", "example.com"),
            ("status me@m\u{fc}ller.example", "xn--mller-kva.example"),
        ] {
            assert_eq!(domain(request.as_bytes()).unwrap().as_str(), name, "{request}");
        }
    }

    #[test]
    fn a_key_that_is_no_domain_is_not_found() {
        let long = format!("status {}", "a".repeat(4000));
        let keys: [&[u8]; 9] = [
            b"status ",
            b"status localhost",
            b"status *",
            b"status 192.0.2.1",
            b"status me@[192.0.2.1]",
            b"status example.com@",
            b"status .example.com",
            b"status \xff.com",
            long.as_bytes(),
        ];
        for request in keys {
            assert_eq!(domain(request), Err(Reply::NotFound), "{}", request.escape_ascii());
        }
    }

    #[test]
    fn a_malformed_request_gets_a_permanent_error() {
        for request in [&b""[..], b"status", b"STATUS example.com", b" example.com", b"other example.com"] {
            assert!(matches!(domain(request), Err(Reply::Permanent(_))), "{}", request.escape_ascii());
        }
    }

    #[test]
    fn a_reply_is_a_word_a_space_and_what_is_known() {
        for (reply, text) in [
            (Reply::of(Status::CatchAll), "OK catch-all"),
            (Reply::of(Status::NotCatchAll), "OK not catch-all"),
            (Reply::of(Status::Unknown), "NOTFOUND "),
            (Reply::Temporary("the database cannot be read".into()), "TEMP the database cannot be read"),
            (Reply::Permanent("no"), "PERM no"),
        ] {
            assert_eq!(reply.text(), text);
        }
    }
}
