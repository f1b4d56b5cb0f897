//! A filter between the wire and the client library, which makes every message readable to the library.
//!
//! Any publisher's message can reach any consumer, and a message that the library cannot parse makes it end
//! the connection or the process. So the filter checks each frame before the library sees it.

mod content;
mod frames;
#[cfg(any(test, fuzzing))]
mod fuzzed;
mod stream;

pub(in crate::broker) use frames::FrameFilter;
#[cfg(any(test, fuzzing))]
pub(in crate::broker) use fuzzed::frames as fuzz_frames;
pub(in crate::broker) use stream::{Filtered, runtime};
