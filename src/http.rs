//! HTTP: sockets, servers, problem documents and the operations routes.

mod transfer;
mod activity;
mod budget;
mod answer;
mod stream;
mod connection;
mod server;
mod listen;
mod problem;
mod problem_responses;
mod page;
mod openapi;
mod ops;

pub use answer::hold;
pub use budget::{Budget, Exhausted, Share};
pub use listen::{HttpConfig, serve_per_thread};
pub use openapi::{About, documented};
pub use ops::{OpsConfig, serve_ops};
pub use problem::{Problem, ProblemType, Rejected, domain, json, with_problems};
pub use problem_responses::{Responses, problem_responses};
pub use transfer::deadline as transfer_deadline;
