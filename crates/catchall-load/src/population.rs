//! The workloads `uniform` and `zipf`: events spread over a population of domains.

use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{RngCore, SeedableRng};

use crate::counts::EventKind;
use crate::draw::{Draw, below};

/// One event in this many is a bounce.
const BOUNCE: u32 = 100;

const CONSONANTS: &[u8; 20] = b"bcdfghjklmnpqrstvwxz";
const VOWELS: &[u8; 5] = b"aeiou";

/// Top-level domains, about as frequent as in real mail.
const TOPS: [&[u8]; 16] = [
    b"com", b"com", b"com", b"com", b"com", b"com", b"net", b"net", b"org", b"org", b"de", b"co.uk", b"io",
    b"fr", b"nl", b"com.br",
];

/// Draws from domains 0 to N − 1, either with equal probability or by Zipf's law, domain 0 most often.
#[derive(Clone, Debug)]
pub struct Population {
    random: Xoshiro256PlusPlus,
    domains: u32,
    zipf: Option<Zipf>,
}

impl Population {
    /// Events that draw each domain with equal probability.
    #[must_use]
    pub fn uniform(seed: u64, domains: u32) -> Self {
        Self { random: Xoshiro256PlusPlus::seed_from_u64(seed), domains, zipf: None }
    }

    /// Events whose domains follow Zipf's law with exponent 1.
    #[must_use]
    pub fn zipf(seed: u64, domains: u32) -> Self {
        Self { zipf: Some(Zipf::new(domains)), ..Self::uniform(seed, domains) }
    }

    /// The next event.
    pub fn draw(&mut self) -> Draw {
        let domain = match &self.zipf {
            None => below(self.domains, self.random.next_u64()),
            Some(zipf) => zipf.rank(&mut self.random) - 1,
        };
        let bounced = below(BOUNCE, self.random.next_u64()) == 0;
        let kind = if bounced { EventKind::Bounced } else { EventKind::Delivered };
        Draw { domain, kind }
    }

    /// Writes the name of a domain: five to seven syllables and a top-level domain. It depends on nothing but
    /// the domain's number, so that every run can use a population that was loaded once.
    pub fn spell(domain: u32, name: &mut Vec<u8>) {
        let scattered = scatter(domain);
        // Five syllables of a hundred have more than 2^32 values, so they make every name unique.
        let mut rest = u64::from(scattered);
        for _ in 0..5 {
            syllable(rest % 100, name);
            rest /= 100;
        }
        let mut rest = u64::from(scatter(!scattered));
        for _ in 0..rest % 3 {
            rest /= 3;
            syllable(rest % 100, name);
            rest /= 100;
        }
        name.push(b'.');
        name.extend_from_slice(TOPS[(scattered % 16) as usize]);
    }
}

fn syllable(number: u64, name: &mut Vec<u8>) {
    name.push(CONSONANTS[(number / 5) as usize]);
    name.push(VOWELS[(number % 5) as usize]);
}

/// A permutation of the 32-bit numbers without visible order: the finalizer of `MurmurHash3`. It maps 0 to 0,
/// hence the constant.
fn scatter(number: u32) -> u32 {
    let mut x = number ^ 0x9e37_79b9;
    x = (x ^ (x >> 16)).wrapping_mul(0x85eb_ca6b);
    x = (x ^ (x >> 13)).wrapping_mul(0xc2b2_ae35);
    x ^ (x >> 16)
}

/// Zipf's law with exponent 1: rank k has a probability proportional to 1/k.
///
/// Rejection-inversion (W. Hörmann and G. Derflinger, "Rejection-inversion to generate variates from monotone
/// discrete distributions", 1996): one exponential per rank and hardly ever a second try, whatever the size.
#[derive(Clone, Copy, Debug)]
struct Zipf {
    ranks: f64,
    /// The integral of 1/x up to the left and right end of the ranks.
    left: f64,
    right: f64,
    /// A value this close to its rank is accepted without computing a logarithm.
    squeeze: f64,
}

impl Zipf {
    fn new(ranks: u32) -> Self {
        let ranks = f64::from(ranks);
        Self {
            ranks,
            left: 1.5_f64.ln() - 1.0,
            right: (ranks + 0.5).ln(),
            squeeze: 2.0 - (2.5_f64.ln() - 0.5).exp(),
        }
    }

    fn rank(&self, random: &mut Xoshiro256PlusPlus) -> u32 {
        loop {
            let area = self.right + fraction(random.next_u64()) * (self.left - self.right);
            let x = area.exp();
            let rank = x.round().clamp(1.0, self.ranks);
            if rank - x <= self.squeeze || area >= (rank + 0.5).ln() - 1.0 / rank {
                #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "1 to a u32")]
                return rank as u32;
            }
        }
    }
}

/// A number in [0, 1) with all 53 bits of a double.
#[expect(clippy::cast_precision_loss, reason = "53 bits fit")]
fn fraction(random: u64) -> f64 {
    (random >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use catchall::domain_name::DomainName;
    use proptest::prelude::*;

    fn name(domain: u32) -> String {
        let mut name = Vec::new();
        Population::spell(domain, &mut name);
        String::from_utf8(name).unwrap()
    }

    #[test]
    fn names_are_distinct_and_canonical() {
        let names: HashSet<String> = (0..200_000).map(name).collect();
        assert_eq!(names.len(), 200_000);
        for name in names.iter().take(10_000) {
            assert_eq!(DomainName::parse(name).unwrap().as_str(), name);
            assert!(name.len() <= 21, "{name}");
        }
    }

    #[test]
    fn names_never_change() {
        assert_eq!([0, 1, 9_999_999].map(name), THREE_NAMES);
    }

    const THREE_NAMES: [&str; 3] = ["nukosiqiguvo.nl", "zamupegacuze.com", "belupexifuqowi.com"];

    #[test]
    fn uniform_reaches_every_domain_about_as_often() {
        let mut events = Population::uniform(1, 100);
        let (mut hits, mut bounced) = ([0_u32; 100], 0);
        for _ in 0..1_000_000 {
            let draw = events.draw();
            hits[draw.domain as usize] += 1;
            bounced += u32::from(draw.kind == EventKind::Bounced);
        }
        assert!(hits.iter().all(|n| (9_500..10_500).contains(n)), "{hits:?}");
        assert!((9_500..10_500).contains(&bounced), "{bounced}");
    }

    #[test]
    fn zipf_has_the_frequencies_of_the_law() {
        for domains in [1, 2, 10, 1_000, 10_000_000] {
            let harmonic: f64 = (1..=domains).map(|rank| 1.0 / f64::from(rank)).sum();
            let mut events = Population::zipf(3, domains);
            let mut hits = vec![0_u32; domains as usize];
            for _ in 0..1_000_000 {
                hits[events.draw().domain as usize] += 1;
            }
            for (rank, hits) in (1..=domains).zip(&hits).take(20) {
                let expected = 1_000_000.0 / f64::from(rank) / harmonic;
                let error = (f64::from(*hits) - expected).abs() / expected.sqrt();
                assert!(error < 5.0, "rank {rank} of {domains}: {hits}, expected {expected}");
            }
            // The tail as a whole: half of the ranks.
            let tail = hits[domains as usize / 2..].iter().map(|n| f64::from(*n)).sum::<f64>();
            let chance: f64 = (domains / 2 + 1..=domains).map(|rank| 1.0 / f64::from(rank) / harmonic).sum();
            assert!((tail / 1_000_000.0 - chance).abs() < 0.003, "{domains}: {tail}, expected {chance}");
        }
    }

    #[test]
    fn the_stream_of_a_seed_never_changes() {
        let mut events = Population::uniform(42, 10_000_000);
        assert_eq!([0; 3].map(|_| events.draw().domain), THREE_UNIFORM);
        let mut events = Population::zipf(42, 10_000_000);
        assert_eq!([0; 3].map(|_| events.draw().domain), THREE_ZIPF);
    }

    const THREE_UNIFORM: [u32; 3] = [8_143_051, 9_838_941, 7_935_044];
    const THREE_ZIPF: [u32; 3] = [11, 0, 16];

    proptest! {
        #[test]
        fn two_domains_have_two_names(left: u32, right: u32) {
            prop_assert_eq!(left == right, name(left) == name(right));
        }

        #[test]
        fn draws_stay_within_the_population(seed: u64, domains in 1..=u32::MAX) {
            for mut events in [Population::uniform(seed, domains), Population::zipf(seed, domains)] {
                for _ in 0..100 {
                    prop_assert!(events.draw().domain < domains);
                }
            }
        }
    }
}
