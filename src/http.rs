//! HTTP: sockets, TLS, access rights, servers, problem documents, the OpenAPI document and the operations
//! routes.

mod transfer;
mod access;
mod tls;
mod fair_semaphore;
mod guard;
mod activity;
mod places;
mod budget;
mod problem;
mod packing;
mod body;
mod lines;
mod answer;
mod stream;
mod connection;
mod server;
mod listen;
mod problem_responses;
mod page;
mod openapi;
mod ops;
mod guard_config;

#[cfg(any(test, fuzzing))]
pub(crate) use access::fuzzed;
pub use access::{Caller, EventRates, LimitConfig, Visitor};
pub use answer::hold;
pub use body::{BodyRules, media_type, read};
pub use budget::{Budget, Exhausted, Share};
pub use fair_semaphore::{FairPermit, FairSemaphore};
pub use guard::Guard;
pub use guard_config::GuardConfig;
pub use lines::Lines;
pub use listen::{HttpConfig, serve_per_thread};
pub use openapi::{About, documented};
pub use ops::{OpsConfig, serve_ops};
pub use packing::{BodyEncoding, REQUEST, observe, unpack};
pub use problem::{Problem, ProblemDocument, ProblemType, Rejected, domain, json};
pub use problem_responses::{Responses, problem_responses};
