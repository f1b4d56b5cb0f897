//! The workload `waves`: a few hot domains at a time, and always new ones.

use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{RngCore, SeedableRng};

use crate::counts::EventKind;
use crate::draw::{Draw, below};

/// How many domains are live at a time.
const LIVE: usize = 20;

/// A domain gets fewer events than this; every number is equally likely.
const EVENTS: u32 = 2500;

/// Domains whose number is a multiple of this have no bounce.
const BOUNCELESS: u32 = 25;

/// The top-level domains; all are equally likely.
const TOPS: [&[u8]; 5] = [b"net", b"com", b"org", b"io", b"gov"];

const LETTERS: &[u8; 52] = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";

/// Spreads the numbers of domains over all seeds. It is not the increment of `SplitMix64`, by which a seed
/// becomes a state: with that one, neighbouring domains would share most of theirs.
const SPREAD: u64 = 0xd134_2543_de82_ef95;

/// Emits the events of 20 domains in turn. When a domain has no more, the next one takes its place.
#[derive(Clone, Debug)]
pub struct Waves {
    seed: u64,
    live: [Emission; LIVE],
    turn: usize,
    next_domain: u32,
}

/// The progress of one domain.
#[derive(Clone, Copy, Debug, Default)]
struct Emission {
    domain: u32,
    sent: u32,
    max: u32,
    /// Events from one bounce to the next; 0 if there are no bounces.
    step: u32,
}

impl Waves {
    /// The events that belong to `seed`, from the first.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { seed, live: [Emission::default(); LIVE], turn: 0, next_domain: 0 }
    }

    /// The next event.
    pub fn draw(&mut self) -> Draw {
        let emission = &mut self.live[self.turn];
        // This also fills the slots at the start, and skips domains that have no events.
        while emission.sent == emission.max {
            *emission = Emission::of(self.next_domain, Self::max(self.seed, self.next_domain));
            self.next_domain = self.next_domain.wrapping_add(1);
        }
        self.turn = (self.turn + 1) % LIVE;
        emission.draw()
    }

    /// How many events a domain gets.
    fn max(seed: u64, domain: u32) -> u32 {
        let [_, _, _, max] = random(seed, domain);
        below(EVENTS, max)
    }

    /// Writes the name of a domain: 14 letters of both cases, a dot and a top-level domain.
    pub fn spell(seed: u64, domain: u32, name: &mut Vec<u8>) {
        let [first, second, top, _] = random(seed, domain);
        for mut letters in [first, second] {
            // 52^7 is below 2^40, so 64 random bits make all letters almost equally likely.
            for _ in 0..7 {
                name.push(LETTERS[(letters % 52) as usize]);
                letters /= 52;
            }
        }
        name.push(b'.');
        name.extend_from_slice(TOPS[below(5, top) as usize]);
    }
}

/// The four random numbers of a domain: for twice seven letters, its top-level domain and its number of
/// events. They depend only on the seed and the domain's number, so that names need not be stored.
fn random(seed: u64, domain: u32) -> [u64; 4] {
    let mut random = Xoshiro256PlusPlus::seed_from_u64(seed ^ u64::from(domain).wrapping_mul(SPREAD));
    std::array::from_fn(|_| random.next_u64())
}

/// In floating point, as the challenge defines it: with 180 events every 62nd is a bounce, not every 63rd.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 875")]
fn step(max: u32) -> u32 {
    (0.35 * f64::from(max)).floor() as u32
}

impl Emission {
    fn of(domain: u32, max: u32) -> Self {
        let step = if domain.is_multiple_of(BOUNCELESS) { 0 } else { step(max) };
        Self { domain, sent: 0, max, step }
    }

    fn draw(&mut self) -> Draw {
        let bounced = self.step > 0 && self.sent.is_multiple_of(self.step);
        self.sent += 1;
        let kind = if bounced { EventKind::Bounced } else { EventKind::Delivered };
        Draw { domain: self.domain, kind }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, HashSet};

    use super::*;
    use catchall::domain_name::DomainName;
    use proptest::prelude::*;

    fn name(seed: u64, domain: u32) -> String {
        let mut name = Vec::new();
        Waves::spell(seed, domain, &mut name);
        String::from_utf8(name).unwrap()
    }

    #[test]
    fn names_are_fourteen_letters_of_both_cases_and_one_of_five_tops() {
        let (mut letters, mut tops, mut names) = (HashSet::new(), BTreeMap::new(), HashSet::new());
        for domain in 0..10_000 {
            let name = name(1, domain);
            let (label, top) = name.split_once('.').unwrap();
            assert!(label.len() == 14 && label.bytes().all(|b| b.is_ascii_alphabetic()), "{name}");
            letters.extend(label.bytes());
            *tops.entry(top.to_owned()).or_insert(0) += 1;
            assert!(names.insert(name.to_ascii_lowercase()));
            assert!(DomainName::parse(&name).is_ok());
        }
        assert_eq!(letters.len(), 52);
        assert_eq!(tops.keys().collect::<Vec<_>>(), ["com", "gov", "io", "net", "org"]);
        assert!(tops.values().all(|n| (1900..2100).contains(n)), "{tops:?}");
    }

    #[test]
    fn twenty_domains_are_live_and_none_comes_back() {
        let mut waves = Waves::new(7);
        let mut last_seen = BTreeMap::new();
        for event in 0..200_000_u32 {
            last_seen.insert(waves.draw().domain, event);
        }
        let live = last_seen.values().filter(|last| **last >= 200_000 - 20).count();
        assert_eq!(live, 20);
        // Domains are taken up one after another: those that ended early lie before those that are live.
        assert!(last_seen.keys().last().unwrap() - last_seen.keys().next().unwrap() < 200);
    }

    #[test]
    fn the_stream_of_a_seed_never_changes() {
        let mut waves = Waves::new(42);
        for _ in 0..99_999 {
            waves.draw();
        }
        let draw = waves.draw();
        assert_eq!((draw.domain, draw.kind), THE_LAST_OF_100_000);
        assert_eq!(name(42, 0), THE_FIRST_NAME);
    }

    const THE_LAST_OF_100_000: (u32, EventKind) = (96, EventKind::Delivered);
    const THE_FIRST_NAME: &str = "dtGNMCFbOFiYVA.gov";

    proptest! {
        #[test]
        fn each_domain_follows_the_rule(seed: u64) {
            let mut waves = Waves::new(seed);
            let mut events: BTreeMap<u32, Vec<EventKind>> = BTreeMap::new();
            for _ in 0..100_000 {
                let draw = waves.draw();
                events.entry(draw.domain).or_default().push(draw.kind);
            }
            for (domain, kinds) in events {
                let max = Waves::max(seed, domain);
                prop_assert!(max < 2500 && kinds.len() <= max as usize);
                let step = if domain % 25 == 0 { 0 } else { step(max) as usize };
                for (i, kind) in kinds.into_iter().enumerate() {
                    prop_assert_eq!(kind == EventKind::Bounced, step > 0 && i % step == 0);
                }
            }
        }

        #[test]
        fn the_same_seed_makes_the_same_events(seed: u64) {
            let (mut left, mut right) = (Waves::new(seed), Waves::new(seed));
            for _ in 0..5_000 {
                prop_assert_eq!(left.draw(), right.draw());
            }
        }
    }
}
