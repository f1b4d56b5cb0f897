//! A recurring problem that is logged only when it begins.

use std::time::{Duration, Instant};

/// A problem that does not recur for this long is over, and the next one is logged again.
const TROUBLE_OVER: Duration = Duration::from_mins(1);

/// When a problem occurred last.
#[derive(Debug, Default)]
pub(crate) struct Trouble(Option<Instant>);

impl Trouble {
    /// Records an occurrence; returns whether the problem is new.
    pub(crate) fn is_news(&mut self) -> bool {
        let now = Instant::now();
        let last = self.0.replace(now);
        last.is_none_or(|last| now.duration_since(last) > TROUBLE_OVER)
    }
}
