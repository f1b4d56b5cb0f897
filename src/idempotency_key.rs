//! The identity under which something counts once.

use std::fmt;
use std::str::FromStr;

use utoipa::ToSchema;
use uuid::Uuid;

/// Longest idempotency key in bytes. It equals the limit of AMQP's `message_id`, so one key fits everywhere.
pub const MAX_KEY: usize = 255;

/// The identity under which something counts once: an `Idempotency-Key`, an event's `id` or a `message_id`.
///
/// Any string of 1 to [`MAX_KEY`] bytes. It is stored as 16 bytes, so every claim costs the same. A UUID in
/// canonical spelling stands for itself, which keeps the time order of a version 7 UUID (and with it the
/// claims' index dense); any other string becomes its version 5 UUID (RFC 9562, 5.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IdempotencyKey(Uuid);

/// A key as clients write it, for the API's document.
#[derive(ToSchema)]
#[schema(
    value_type = String,
    description = "A key of 1 to 255 bytes in UTF-8. Keys are compared byte by byte.",
    format = "idempotency-key",
    min_length = 1,
    max_length = 255,
    examples("message-4711", "0192f3a4-7c00-7000-8000-00000000beef"),
)]
pub struct KeySpelling(#[expect(dead_code, reason = "it only describes")] String);

/// Why a string cannot be an [`IdempotencyKey`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an idempotency key has 1 to {MAX_KEY} bytes, this one has {0}")]
pub struct IdempotencyKeyError(usize);

impl IdempotencyKey {
    /// The namespace of keys that are not UUIDs. Never change it: every claim in the ledger depends on it.
    const NAMESPACE: Uuid = Uuid::from_u128(0x7d1f_6f0e_58c4_4f0b_9d3a_c0a7_ca11_0001);

    /// A fresh key, ordered by time (UUID version 7).
    #[must_use]
    pub fn fresh() -> Self {
        Self(Uuid::now_v7())
    }

    /// The key of the event at `index` in a request whose key is `self`.
    #[must_use]
    pub fn of_event(self, index: usize) -> Self {
        Self(Uuid::new_v5(&self.0, &(index as u64).to_be_bytes()))
    }

    /// The key as the ledger keeps it.
    #[must_use]
    pub fn as_uuid(self) -> Uuid {
        self.0
    }
}

impl FromStr for IdempotencyKey {
    type Err = IdempotencyKeyError;

    fn from_str(key: &str) -> Result<Self, Self::Err> {
        if key.is_empty() || key.len() > MAX_KEY {
            return Err(IdempotencyKeyError(key.len()));
        }
        // Only the canonical spelling stands for itself: `{A0EE…}` and `a0ee…` are two strings, so two keys.
        let canonical = |uuid: &Uuid| *uuid.hyphenated().encode_lower(&mut Uuid::encode_buffer()) == *key;
        let uuid = Uuid::try_parse(key).ok().filter(canonical);
        Ok(Self(uuid.unwrap_or_else(|| Uuid::new_v5(&Self::NAMESPACE, key.as_bytes()))))
    }
}

impl fmt::Display for IdempotencyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_canonical_uuid_is_its_own_key_and_no_other_spelling_is() {
        let uuid = "0192f3a4-7c00-7000-8000-00000000beef";
        assert_eq!(uuid.parse::<IdempotencyKey>().unwrap().to_string(), uuid);
        let others = [uuid.to_uppercase(), uuid.replace('-', ""), format!("{{{uuid}}}"), format!(" {uuid}")];
        let mut keys: Vec<IdempotencyKey> = others.iter().map(|key| key.parse().unwrap()).collect();
        keys.push(uuid.parse().unwrap());
        keys.sort();
        keys.dedup();
        assert_eq!(keys.len(), 5);
    }

    #[test]
    fn keys_are_stable_across_releases() {
        let key: IdempotencyKey = "order-4711".parse().unwrap();
        assert_eq!(key.to_string(), KEY_OF_ORDER_4711);
        assert_eq!(key.of_event(3).to_string(), KEY_OF_ITS_EVENT_3);
        assert_ne!(key.of_event(0), key.of_event(1));
    }

    /// A claim made by an older release has to be found by a newer one.
    const KEY_OF_ORDER_4711: &str = "06db47eb-f539-5500-9aee-bc53bfab7689";
    const KEY_OF_ITS_EVENT_3: &str = "afe23f41-3b90-5bab-bad3-07cae77b4eea";

    proptest! {
        #[test]
        fn different_strings_are_different_keys(left in "\\PC{1,20}", right in "\\PC{1,20}") {
            let keys: (IdempotencyKey, IdempotencyKey) = (left.parse().unwrap(), right.parse().unwrap());
            prop_assert_eq!(left == right, keys.0 == keys.1);
        }
    }
}
