//! The system on real servers: every test has a database and a vhost of its own and runs the real binaries.
//!
//! `./dev test` starts the servers and sets the variables that [`servers`] reads.

mod bounds;
mod compose;
mod configuration;
mod connections;
mod dead_letters;
mod dependencies;
mod documents;
mod examples;
#[allow(dead_code, reason = "each test program uses a part of the rig")]
#[path = "../rig/frames.rs"]
mod frames;
mod house;
mod ingest;
mod ledger;
mod outages;
mod poison;
#[allow(dead_code, reason = "each test program uses a part of the rig")]
#[path = "../rig/processes.rs"]
mod processes;
#[allow(dead_code, reason = "each test program uses a part of the rig")]
#[path = "../rig/proxy.rs"]
mod proxy;
mod query;
mod recovery;
mod replay;
mod restarts;
mod retention;
#[allow(dead_code, reason = "each test program uses a part of the rig")]
#[path = "../rig/servers.rs"]
mod servers;
mod windows;
mod worker;
