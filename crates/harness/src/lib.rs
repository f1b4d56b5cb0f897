//! What tests and benchmarks share: servers, processes, proxies, load runs, SQL and HTTP.
//!
//! `./dev test`, `./dev chaos` and `./dev bench` start the servers, build the programs, and set the variables
//! that say where the servers are.

#![allow(clippy::missing_panics_doc, reason = "a test that cannot go on panics, here as in itself")]

pub mod stats;
pub mod columns;
pub mod panics;
pub mod untested;
pub mod http;
pub mod authority;
pub mod instance;
pub mod scratch;
pub mod program;
pub mod socketmap;
pub mod tls;
pub mod sql;
pub mod expected;
pub mod amqp;
pub mod frames;
pub mod proxy;
pub mod servers;
pub mod usage;
pub mod mail;
pub mod access;
pub mod processes;
pub mod small_disk;
pub mod failing_disk;
pub mod dead_letters;
pub mod system;
pub mod browser;
pub mod load;
