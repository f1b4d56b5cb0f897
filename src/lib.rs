//! Tells from delivery events which e-mail domains are catch-alls.
#![doc = include_str!("../ARCHITECTURE.md")]

// Vocabulary: pure, no I/O, no clock.
pub mod batch;
pub mod bulk;
pub mod counters;
pub mod domain_name;
pub mod event;
pub mod tally;
// Boundaries: one door per vendor.
pub mod broker;
pub mod health;
pub mod http;
pub mod ledger;
pub mod postgres;
pub mod replica;
// Roles: one loop or one router each.
pub mod group;
pub mod ingest;
pub mod query;
pub mod worker;
// The process.
pub mod process;
pub mod shutdown;
pub mod telemetry;
