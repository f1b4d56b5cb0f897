//! Tells from delivery events which e-mail domains are catch-alls.
#![doc = include_str!("../ARCHITECTURE.md")]

// Vocabulary: pure, no I/O, no clock.
pub mod excerpt;
pub mod cause;
pub mod domain_name;
pub mod idempotency_key;
pub mod token;
pub mod grant;
pub mod event;
pub mod counters;
pub mod utc_time;
pub mod classified;
pub mod row_format;
pub mod totals;
pub mod position;
pub mod tally;
pub mod batch;
pub mod bulk;
// The process.
mod backoff;
mod trouble;
mod log_limit;
mod acceptor;
mod event_loop;
mod reload;
pub mod batcher;
pub mod health;
pub mod shutdown;
pub mod telemetry;
pub mod process;
pub mod network;
pub mod http;
// Boundaries: one door per vendor.
pub mod store;
pub mod broker;
// Roles: one loop or one router each.
pub mod ingest;
pub mod worker;
pub mod query;
pub mod standalone;
pub mod migrate;
// Tools for the system's operators.
pub mod dead_letters;
pub mod admin;
pub mod tokens;
// For fuzzing, and for the tests that repeat what it found.
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
