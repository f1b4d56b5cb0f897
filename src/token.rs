//! Access tokens: what they look like, and how they are recognised.

use std::fmt::{self, Display};
use std::str::FromStr;

use ring::digest::{SHA256, SHA256_OUTPUT_LEN, digest};
use subtle::ConstantTimeEq;

/// The prefix of every token, so that scanners for leaked secrets find tokens in any text.
pub const TOKEN_PREFIX: &str = "catchall_";

/// Random characters of a token: 190 bits, too many to guess.
pub const SECRET_LEN: usize = 32;

/// Characters of the checksum, enough for any CRC-32.
const CHECKSUM_LEN: usize = 6;

/// The characters of a token after its prefix.
const BASE62: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// An access token: the prefix, [`SECRET_LEN`] random characters, and their CRC-32 in base 62. It is never
/// printed by accident: only [`Token::expose`] shows it.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

/// Why a text is not a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It does not have the form of a token.
    #[error("a token is {TOKEN_PREFIX} and 38 letters and digits")]
    Form,
    /// It has the form of a token, but its checksum is wrong.
    #[error("its checksum does not match, so a character is wrong")]
    Checksum,
}

impl Token {
    /// The token with these random digits, each below 62.
    ///
    /// # Panics
    ///
    /// When a digit is 62 or more.
    #[must_use]
    pub fn from_digits(digits: [u8; SECRET_LEN]) -> Self {
        let secret = digits.map(|digit| BASE62[usize::from(digit)]);
        let mut token = String::with_capacity(TOKEN_PREFIX.len() + SECRET_LEN + CHECKSUM_LEN);
        token.push_str(TOKEN_PREFIX);
        token.extend(secret.map(char::from));
        token.extend(checksum(&secret).map(char::from));
        Self(token)
    }

    /// The token itself, to be given to its holder.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// The digest by which a service recognises the token.
    #[must_use]
    pub fn digest(&self) -> TokenDigest {
        TokenDigest::of(&self.0)
    }
}

impl FromStr for Token {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        check(text).map(|()| Self(text.to_owned()))
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

/// Checks the form of a token. This finds most typing errors before a token is looked up.
fn check(text: &str) -> Result<(), TokenError> {
    let rest = text.strip_prefix(TOKEN_PREFIX).ok_or(TokenError::Form)?.as_bytes();
    if rest.len() != SECRET_LEN + CHECKSUM_LEN || !rest.iter().all(u8::is_ascii_alphanumeric) {
        return Err(TokenError::Form);
    }
    let (secret, given) = rest.split_at(SECRET_LEN);
    if checksum(secret) == given { Ok(()) } else { Err(TokenError::Checksum) }
}

fn checksum(secret: &[u8]) -> [u8; CHECKSUM_LEN] {
    let mut rest = crc32fast::hash(secret);
    let mut digits = [0; CHECKSUM_LEN];
    for digit in digits.iter_mut().rev() {
        *digit = BASE62[(rest % 62) as usize];
        rest /= 62;
    }
    digits
}

/// The SHA-256 of a token. It is not secret: a token of 190 random bits cannot be found from it.
#[derive(Clone, Copy, Debug)]
pub struct TokenDigest([u8; SHA256_OUTPUT_LEN]);

impl TokenDigest {
    /// The digest of a text that a client sent, if it is a token.
    ///
    /// # Errors
    ///
    /// When it is not a token.
    pub fn of_token(text: &str) -> Result<Self, TokenError> {
        check(text).map(|()| Self::of(text))
    }

    fn of(text: &str) -> Self {
        let digest = digest(&SHA256, text.as_bytes());
        Self(digest.as_ref().try_into().expect("SHA-256 has 32 bytes"))
    }

    /// The hash by which a digest is looked up. It may be the same for two digests; [`PartialEq`] compares
    /// them.
    #[must_use]
    pub fn slot(&self) -> u64 {
        self.0.first_chunk().map_or(0, |first| u64::from_be_bytes(*first))
    }
}

/// In a time that does not depend on the digests.
impl PartialEq for TokenDigest {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for TokenDigest {}

impl Display for TokenDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// What is wrong with a digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a SHA-256 is 64 hexadecimal digits")]
pub struct DigestError;

impl FromStr for TokenDigest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let digits: Option<Vec<u8>> =
            text.chars().map(|digit| digit.to_digit(16).and_then(|digit| u8::try_from(digit).ok())).collect();
        let digits = digits.filter(|digits| digits.len() == 2 * SHA256_OUTPUT_LEN).ok_or(DigestError)?;
        let mut bytes = [0; SHA256_OUTPUT_LEN];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = pair[0] << 4 | pair[1];
        }
        Ok(Self(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DIGITS: [u8; SECRET_LEN] = [61; SECRET_LEN];

    #[test]
    fn a_token_can_be_made_elsewhere() {
        // python3 -c 'import zlib; print(zlib.crc32(b"z" * 32))' and the same in base 62.
        let token = Token::from_digits(DIGITS);
        assert_eq!(token.expose(), "catchall_zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz4W8LJS");
        // printf %s TOKEN | sha256sum
        assert_eq!(
            token.digest().to_string(),
            "9e332d9a626243ac8bc294e93cdbd244d2ae7d70de86d7121b82b0c69aa4e980"
        );
    }

    #[test]
    fn a_token_is_not_printed_by_accident() {
        assert_eq!(format!("{:?}", Token::from_digits(DIGITS)), "Token(..)");
    }

    #[test]
    fn what_is_no_token_is_told_apart_from_a_typing_error() {
        let token = Token::from_digits(DIGITS);
        let token = token.expose();
        for text in
            ["", "catchall_", "Catchall_", &token[1..], &format!("{token}0"), &token.replace('z', "é")]
        {
            assert_eq!(text.parse::<Token>(), Err(TokenError::Form), "{text}");
        }
        assert_eq!(token.replacen('z', "y", 1).parse::<Token>(), Err(TokenError::Checksum));
        assert_eq!("0".repeat(63).parse::<TokenDigest>(), Err(DigestError));
        assert_eq!("g".repeat(64).parse::<TokenDigest>(), Err(DigestError));
        assert_eq!("é".repeat(32).parse::<TokenDigest>(), Err(DigestError));
    }

    proptest! {
        #[test]
        fn a_token_is_read_as_it_was_made(digits in prop::array::uniform32(0..62u8)) {
            let token = Token::from_digits(digits);
            prop_assert_eq!(token.expose().parse::<Token>(), Ok(token.clone()));
            prop_assert_eq!(TokenDigest::of_token(token.expose()), Ok(token.digest()));
            let digest = token.digest();
            prop_assert_eq!(digest.to_string().parse(), Ok(digest));
            prop_assert_eq!(digest.to_string().to_uppercase().parse(), Ok(digest));
        }

        #[test]
        fn a_wrong_character_is_found(
            digits in prop::array::uniform32(0..62u8), at in 0..38usize, by in 1..62u8,
        ) {
            let token = Token::from_digits(digits);
            let mut wrong = token.expose().as_bytes().to_vec();
            let place = TOKEN_PREFIX.len() + at;
            let digit = BASE62.iter().position(|digit| *digit == wrong[place]).unwrap();
            wrong[place] = BASE62[(digit + usize::from(by)) % 62];
            let wrong = String::from_utf8(wrong).unwrap();
            prop_assert_eq!(wrong.parse::<Token>(), Err(TokenError::Checksum));
        }

        #[test]
        fn no_text_is_too_strange(text in "\\PC{0,100}") {
            prop_assert!(text.parse::<Token>().is_err());
            prop_assert!(text.parse::<TokenDigest>().is_err());
        }
    }
}
