//! Tells from delivery events which e-mail domains are catch-alls.
#![doc = include_str!("../ARCHITECTURE.md")]

// Vocabulary: pure, no I/O, no clock.
pub mod excerpt;
pub mod domain_name;
pub mod event;
pub mod counters;
pub mod tally;
pub mod batch;
pub mod bulk;
// Boundaries: one door per vendor.
pub mod health;
pub mod broker;
pub mod postgres;
pub mod ledger;
pub mod replica;
// The process.
pub mod shutdown;
pub mod telemetry;
pub mod process;
pub mod http;
// Roles: one loop or one router each.
pub mod group;
pub mod ingest;
pub mod worker;
pub mod query;
pub mod migrate;
// Tools: for whoever runs the system.
pub mod dead_letters;
