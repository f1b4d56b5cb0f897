//! The system on real servers: every test has a database and a vhost of its own and runs the real binaries.
//!
//! `./dev test` starts the servers and sets the variables that [`harness::servers`] reads.

mod access;
mod admin;
mod asyncapi;
mod bounds;
mod changes;
mod clients;
mod clocks;
mod compose;
mod configuration;
mod connections;
mod dead_letters;
mod dependencies;
mod documents;
mod examples;
mod image;
mod ingest;
mod ledger;
mod lists;
mod mail_servers;
mod maps;
mod openapi;
mod outages;
mod page;
mod poison;
mod query;
mod recovery;
mod replay;
mod restarts;
mod rights;
mod retention;
mod schemathesis;
mod seams;
mod secrets;
mod secure_servers;
mod socketmap;
mod standalone;
mod tidy;
mod tls;
mod unit;
mod watermarks;
mod delivery_batches;
mod worker;
