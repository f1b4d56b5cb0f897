//! Allowances: how much one client may send per second.

use std::num::NonZeroU32;
use std::time::Duration;

use governor::clock::{Clock, DefaultClock};
use governor::{DefaultDirectRateLimiter, Quota};

use crate::bulk::MAX_EVENTS;

/// Events that even a client with a low limit may send at once: one bulk request of the largest size.
#[expect(clippy::cast_possible_truncation, reason = "it is 10,000")]
const EVENTS_BURST: u32 = MAX_EVENTS as u32;

/// How many requests without a valid token get a 401 at once; then one per second does, and the others get a
/// 429.
const REFUSALS: NonZeroU32 = NonZeroU32::new(10).expect("ten is not zero");

/// How many requests and events a client may send per second; `None`: any number.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::http) struct Rates {
    pub(in crate::http) requests: Option<NonZeroU32>,
    pub(in crate::http) events: Option<NonZeroU32>,
}

/// How many requests may still be made.
#[derive(Debug)]
pub(super) struct Requests(Option<DefaultDirectRateLimiter>);

impl Requests {
    /// This number per second; `None`: any number.
    pub(super) fn per_second(rate: Option<NonZeroU32>) -> Self {
        Self(rate.map(|rate| limiter(rate, rate)))
    }

    /// The 401 answers that one address may get.
    pub(super) fn refused() -> Self {
        Self(Some(limiter(NonZeroU32::MIN, REFUSALS)))
    }

    /// Takes one.
    ///
    /// # Errors
    ///
    /// How long to wait where there is none left.
    pub(super) fn take(&self) -> Result<(), Duration> {
        self.0.as_ref().map_or(Ok(()), |limiter| take(limiter, NonZeroU32::MIN))
    }
}

/// How many requests and events one client may still send.
#[derive(Debug)]
pub(super) struct Allowance {
    requests: Requests,
    events: Option<DefaultDirectRateLimiter>,
}

impl Allowance {
    pub(super) fn new(rates: Rates) -> Self {
        let events = |rate: NonZeroU32| {
            limiter(rate, NonZeroU32::new(EVENTS_BURST).map_or(rate, |burst| rate.max(burst)))
        };
        Self { requests: Requests::per_second(rates.requests), events: rates.events.map(events) }
    }

    /// Takes one request.
    ///
    /// # Errors
    ///
    /// How long to wait where there is none left.
    pub(super) fn take_request(&self) -> Result<(), Duration> {
        self.requests.take()
    }

    /// Takes the events of one request, at most [`MAX_EVENTS`]: all or none.
    ///
    /// # Errors
    ///
    /// How long to wait if too few are left.
    pub(super) fn take_events(&self, events: usize) -> Result<(), Duration> {
        let events = u32::try_from(events).ok().and_then(NonZeroU32::new);
        match (&self.events, events) {
            (Some(limiter), Some(events)) => take(limiter, events),
            _ => Ok(()),
        }
    }
}

fn limiter(rate: NonZeroU32, burst: NonZeroU32) -> DefaultDirectRateLimiter {
    DefaultDirectRateLimiter::direct(Quota::per_second(rate).allow_burst(burst))
}

fn take(limiter: &DefaultDirectRateLimiter, cells: NonZeroU32) -> Result<(), Duration> {
    match limiter.check_n(cells) {
        Ok(Ok(())) => Ok(()),
        Ok(Err(wait)) => Err(wait.wait_time_from(DefaultClock::default().now())),
        // More than any request can hold, so this does not occur. It would never be allowed.
        Err(_) => Err(Duration::MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(requests: u32, events: u32) -> Rates {
        Rates { requests: NonZeroU32::new(requests), events: NonZeroU32::new(events) }
    }

    #[test]
    fn without_a_limit_anything_goes() {
        let allowance = Allowance::new(Rates::default());
        for _ in 0..100_000 {
            assert_eq!(allowance.take_request(), Ok(()));
            assert_eq!(allowance.take_events(MAX_EVENTS), Ok(()));
        }
    }

    #[test]
    fn requests_are_taken_one_by_one() {
        let allowance = Allowance::new(rates(5, 0));
        let taken = (0..10).filter(|_| allowance.take_request().is_ok()).count();
        assert!((5..=6).contains(&taken), "{taken}");
        let wait = allowance.take_request().unwrap_err();
        assert!(wait <= Duration::from_millis(200), "{wait:?}");
    }

    #[test]
    fn a_bulk_request_costs_what_it_is() {
        let allowance = Allowance::new(rates(0, 100));
        assert_eq!(allowance.take_events(0), Ok(()));
        assert_eq!(allowance.take_events(MAX_EVENTS), Ok(()));
        let wait = allowance.take_events(MAX_EVENTS).unwrap_err();
        assert!(wait > Duration::from_secs(90) && wait <= Duration::from_secs(100), "{wait:?}");
        // What was refused was not taken.
        let wait = allowance.take_events(100).unwrap_err();
        assert!(wait <= Duration::from_secs(1), "{wait:?}");
    }
}
