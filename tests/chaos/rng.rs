//! Random numbers: the same seed always gives the same moments and events.

use std::time::Duration;

use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{RngCore, SeedableRng};

/// A stream of random numbers.
pub(crate) struct Rng(Xoshiro256PlusPlus);

impl Rng {
    /// The stream of a seed for one purpose.
    pub(crate) fn new(seed: u64, purpose: &str) -> Self {
        // FNV-1a, which does not change between versions of a library.
        let mix = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        let hash = purpose.bytes().fold(0xcbf2_9ce4_8422_2325, mix);
        Self(Xoshiro256PlusPlus::seed_from_u64(seed ^ hash))
    }

    /// A number from `least` to `most`.
    pub(crate) fn number(&mut self, least: u64, most: u64) -> u64 {
        least + self.0.next_u64() % (most - least + 1)
    }

    /// A time from `least` to `most` milliseconds.
    pub(crate) fn millis(&mut self, least: u64, most: u64) -> Duration {
        Duration::from_millis(self.number(least, most))
    }

    /// Sleeps for a time from `least` to `most` milliseconds.
    pub(crate) async fn pause(&mut self, least: u64, most: u64) {
        tokio::time::sleep(self.millis(least, most)).await;
    }
}
