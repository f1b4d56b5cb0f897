//! Tells from delivery events which e-mail domains are catch-alls.
#![doc = include_str!("../ARCHITECTURE.md")]

// Vocabulary: pure, no I/O, no clock.
pub mod batch;
pub mod counters;
pub mod domain_name;
pub mod event;
pub mod tally;
