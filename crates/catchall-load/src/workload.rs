//! What is sent: the three workloads, each a function of its seed.
//!
//! The random numbers come from xoshiro256++, seeded through `SplitMix64`. Everything else is computed here,
//! without the distributions of a library, which may change between versions. So a seed always makes the same
//! events.

use std::fmt;

use clap::ValueEnum;
use clap::builder::PossibleValue;

pub use crate::draw::Draw;
use crate::population::Population;
use crate::waves::Waves;

/// The shapes of traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Shape {
    /// Always new domains, 20 at a time: few rows, updated often
    Waves,
    /// Any of --domains with equal probability: hardly a row twice, the worst case
    Uniform,
    /// A few of --domains get most events: closest to real mail
    Zipf,
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = self.to_possible_value();
        f.write_str(value.as_ref().map_or("", PossibleValue::get_name))
    }
}

/// A workload's events in their order.
#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "there is one to a run")]
pub enum Workload {
    /// [`Shape::Waves`]
    Waves(Waves),
    /// [`Shape::Uniform`] and [`Shape::Zipf`]
    Population(Population),
}

impl Workload {
    /// The events of `shape` that belong to `seed`, from the first. `domains` is the size of the population,
    /// at least 1.
    #[must_use]
    pub fn new(shape: Shape, seed: u64, domains: u32) -> Self {
        match shape {
            Shape::Waves => Self::Waves(Waves::new(seed)),
            Shape::Uniform => Self::Population(Population::uniform(seed, domains)),
            Shape::Zipf => Self::Population(Population::zipf(seed, domains)),
        }
    }

    /// The next event.
    pub fn draw(&mut self) -> Draw {
        match self {
            Self::Waves(waves) => waves.draw(),
            Self::Population(population) => population.draw(),
        }
    }
}

/// Spells a workload's domains.
#[derive(Clone, Copy, Debug)]
pub enum Names {
    /// Mixed case, made from the seed.
    Waves {
        /// The workload's seed.
        seed: u64,
    },
    /// Lower case, the same for every seed.
    Population,
}

impl Names {
    /// How the domains of `shape` are spelled.
    #[must_use]
    pub fn new(shape: Shape, seed: u64) -> Self {
        match shape {
            Shape::Waves => Self::Waves { seed },
            Shape::Uniform | Shape::Zipf => Self::Population,
        }
    }

    /// Appends the name as it is sent.
    pub fn spell(self, domain: u32, name: &mut Vec<u8>) {
        match self {
            Self::Waves { seed } => Waves::spell(seed, domain, name),
            Self::Population => Population::spell(domain, name),
        }
    }

    /// Appends the name as it is counted.
    pub fn spell_canonical(self, domain: u32, name: &mut Vec<u8>) {
        let start = name.len();
        self.spell(domain, name);
        name[start..].make_ascii_lowercase();
    }

    /// The name as it is counted.
    #[must_use]
    pub fn canonical(self, domain: u32) -> String {
        let mut name = Vec::new();
        self.spell_canonical(domain, &mut name);
        name.into_iter().map(char::from).collect()
    }
}
