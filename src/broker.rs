//! RabbitMQ, the only place that knows it: where it is, what has to exist there, and how to connect.
//!
//! [`Publisher`] returns after the confirm, [`Deliveries`] hands out what has to be accepted. Each holds a
//! connection of its own: a broker that is short of memory or disk stops reading from connections that
//! publish, and must not stop the acknowledgements that would relieve it. Lapin's automatic recovery stays
//! off (it does not cover channel errors and has lost acknowledgements); what breaks is dropped whole and
//! opened again under this module's own supervision.

mod filter;
mod url;
mod error;
mod connect;
mod topology;
mod message;
mod publish_request;
mod dead_letter;
mod dead_letter_queue;
mod deliveries;
mod pending;
mod publisher;
mod supervisor;

pub use dead_letter::{DeadLetter, DeadLetterTag};
pub use dead_letter_queue::DeadLetterQueue;
pub use deliveries::Deliveries;
pub use error::Error;
pub use message::{Delivery, Message, Priority, Timestamp};
pub use publish_request::PublishError;
pub use publisher::Publisher;
pub use topology::{DEAD, EVENTS};
pub use url::{Config, MessageLimit, Url};
