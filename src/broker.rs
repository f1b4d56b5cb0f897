//! RabbitMQ: its URL, its required topology, and its connections. No other module knows it.
//!
//! [`Publisher`] returns after the confirm; [`Deliveries`] hands out messages to be acknowledged. Each has
//! its own connection: a broker short of memory or disk stops reading from connections that publish, and that
//! must not stop the acknowledgements that would relieve it. Lapin's automatic recovery stays off, because it
//! does not cover channel errors and has lost acknowledgements. A broken connection is dropped whole, and
//! this module opens a new one.

mod filter;
mod url;
mod error;
mod tls;
mod connect;
mod topology;
mod timestamp;
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
pub use error::BrokerError;
pub use message::{DEAD, Delivery, EVENTS, Message, Priority, UnreadableEvents};
pub use publish_request::PublishError;
pub use publisher::Publisher;
pub use timestamp::Timestamp;
pub use tls::BrokerTlsConfig;
pub use url::{AmqpUrl, BrokerConfig, MessageLimit};

/// A target for fuzzing: a message.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz_message(data: &[u8]) {
    message::fuzzed::message(data);
}

/// A target for fuzzing: bytes from a broker.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz_frames(data: &[u8]) {
    filter::fuzz_frames(data);
}
