//! Allowances: how much one client may ask in a second.

use std::num::NonZeroU32;
use std::time::Duration;

use governor::clock::{Clock, DefaultClock};
use governor::{DefaultDirectRateLimiter, Quota};

use crate::bulk::MAX_EVENTS;

/// Events that even a client with a low limit may send at once: one bulk request of the largest size.
#[expect(clippy::cast_possible_truncation, reason = "it is 10,000")]
const EVENTS_BURST: u32 = MAX_EVENTS as u32;

/// Refusals for want of a valid token that a client gets at once; then one a second, and the rest are told to
/// wait.
const REFUSALS: NonZeroU32 = NonZeroU32::new(10).expect("ten is not zero");

/// How many requests and events a second a client may send; `None`: any number.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::http) struct Rates {
    pub(in crate::http) requests: Option<NonZeroU32>,
    pub(in crate::http) events: Option<NonZeroU32>,
}

/// What one client may still send, of requests and of events.
#[derive(Debug)]
pub(super) struct Allowance {
    requests: Option<DefaultDirectRateLimiter>,
    events: Option<DefaultDirectRateLimiter>,
}

impl Allowance {
    pub(super) fn new(rates: Rates) -> Self {
        let limiter = |rate: NonZeroU32, burst| {
            let burst = NonZeroU32::new(burst).map_or(rate, |burst| rate.max(burst));
            DefaultDirectRateLimiter::direct(Quota::per_second(rate).allow_burst(burst))
        };
        Self {
            requests: rates.requests.map(|rate| limiter(rate, 0)),
            events: rates.events.map(|rate| limiter(rate, EVENTS_BURST)),
        }
    }

    /// What one address may be refused for want of a valid token.
    pub(super) fn refusals() -> Self {
        let quota = Quota::per_second(NonZeroU32::MIN).allow_burst(REFUSALS);
        Self { requests: Some(DefaultDirectRateLimiter::direct(quota)), events: None }
    }

    /// Takes one request.
    ///
    /// # Errors
    ///
    /// How long to wait where there is none left.
    pub(super) fn take_request(&self) -> Result<(), Duration> {
        self.requests.as_ref().map_or(Ok(()), |limiter| take(limiter, NonZeroU32::MIN))
    }

    /// Takes the events of one request, at most [`MAX_EVENTS`]: all or none.
    ///
    /// # Errors
    ///
    /// How long to wait where not so many are left.
    pub(super) fn take_events(&self, events: usize) -> Result<(), Duration> {
        let events = u32::try_from(events).ok().and_then(NonZeroU32::new);
        match (&self.events, events) {
            (Some(limiter), Some(events)) => take(limiter, events),
            _ => Ok(()),
        }
    }
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
