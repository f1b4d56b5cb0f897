//! The system on real servers: every test has a database and a vhost of its own and runs the real binaries.
//!
//! `./dev test` starts the servers and sets the variables that [`servers`] reads.

mod compose;
mod configuration;
mod connections;
mod documents;
mod house;
mod ingest;
mod outages;
mod poison;
mod processes;
mod proxy;
mod query;
mod restarts;
mod servers;
mod worker;
