//! A filter between the wire and the client library: what the library cannot read of a message is made readable.
//!
//! Whatever a stranger publishes is handed to every consumer, and the library ends the connection, or the process, over a
//! message it cannot parse. So each frame is looked at before the library sees it.

mod content;
mod frames;
mod stream;

pub(in crate::broker) use frames::FrameFilter;
pub(in crate::broker) use stream::{Filtered, Wire, reactor, runtime};
