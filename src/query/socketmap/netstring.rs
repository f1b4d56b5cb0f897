//! Netstrings: a length in decimal, a colon, as many bytes, and a comma.

/// Why bytes are not the beginning of a netstring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Malformed {
    /// No length, a length with a zero in front, or no comma at the end.
    #[error("its request is not a netstring")]
    NotANetstring,
    /// The length is larger than it may be.
    #[error("its request is too long")]
    TooLong,
}

/// The payload of the netstring at the beginning of `bytes`, and how many bytes the netstring takes. `None`:
/// the rest of it has not arrived.
///
/// # Errors
///
/// As soon as no further bytes could make it a netstring of at most `longest` bytes of payload.
pub(super) fn first(bytes: &[u8], longest: usize) -> Result<Option<(&[u8], usize)>, Malformed> {
    let mut length = 0;
    let mut rest = bytes;
    loop {
        match *rest {
            [] => return Ok(None),
            [b':', ..] if rest.len() < bytes.len() => break,
            // A zero stands alone.
            [b'0'..=b'9', ..] if rest.len() < bytes.len() && length == 0 => {
                return Err(Malformed::NotANetstring);
            }
            [digit @ b'0'..=b'9', ..] => length = length * 10 + usize::from(digit - b'0'),
            _ => return Err(Malformed::NotANetstring),
        }
        if length > longest {
            return Err(Malformed::TooLong);
        }
        rest = &rest[1..];
    }
    let payload = &rest[1..];
    match payload.get(length) {
        None => Ok(None),
        Some(b',') => Ok(Some((&payload[..length], bytes.len() - payload.len() + length + 1))),
        Some(_) => Err(Malformed::NotANetstring),
    }
}

/// Appends a netstring.
pub(super) fn append(payload: &str, to: &mut Vec<u8>) {
    to.extend_from_slice(payload.len().to_string().as_bytes());
    to.push(b':');
    to.extend_from_slice(payload.as_bytes());
    to.push(b',');
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LONGEST: usize = 40;

    fn written(payload: &str) -> Vec<u8> {
        let mut bytes = Vec::new();
        append(payload, &mut bytes);
        bytes
    }

    #[test]
    fn what_is_no_netstring_is_seen_at_once() {
        for (bytes, reason) in [
            (&b"GET / HTTP/1.1"[..], Malformed::NotANetstring),
            (b":", Malformed::NotANetstring),
            (b" 1:a,", Malformed::NotANetstring),
            (b"-1:a,", Malformed::NotANetstring),
            (b"01", Malformed::NotANetstring),
            (b"00:,", Malformed::NotANetstring),
            (b"1:ab", Malformed::NotANetstring),
            (b"0:a", Malformed::NotANetstring),
            (b"1;", Malformed::NotANetstring),
            (b"41", Malformed::TooLong),
            (b"99999999999999999999999999", Malformed::TooLong),
        ] {
            assert_eq!(first(bytes, LONGEST), Err(reason), "{}", bytes.escape_ascii());
        }
        assert_eq!(first(b"0:,5:", LONGEST), Ok(Some((&b""[..], 3))));
        assert_eq!(first(b"40:", LONGEST), Ok(None));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_whatever_follows(payload in ".{0,10}", next: Vec<u8>) {
            let netstring = written(&payload);
            let all = [&*netstring, &next].concat();
            prop_assert_eq!(first(&all, LONGEST), Ok(Some((payload.as_bytes(), netstring.len()))));
        }

        #[test]
        fn a_part_is_no_fault_and_no_netstring(payload in ".{0,10}", part: prop::sample::Index) {
            let netstring = written(&payload);
            prop_assert_eq!(first(&netstring[..part.index(netstring.len())], LONGEST), Ok(None));
        }

        #[test]
        fn a_payload_is_never_longer_than_it_may_be(
            bytes in prop::collection::vec(prop::sample::select(b"0123456789:,a".to_vec()), 0..60),
        ) {
            match first(&bytes, LONGEST) {
                Ok(Some((payload, taken))) => {
                    prop_assert!(payload.len() <= LONGEST && taken <= bytes.len());
                    prop_assert_eq!(written(std::str::from_utf8(payload).unwrap()), &bytes[..taken]);
                }
                // Bytes are not kept for longer than the longest netstring.
                Ok(None) => prop_assert!(bytes.len() < LONGEST + "40:,".len()),
                // What follows does not mend it.
                Err(reason) => {
                    let more = [&*bytes, b"1:a,"].concat();
                    prop_assert_eq!(first(&more, LONGEST), Err(reason));
                }
            }
        }
    }
}
