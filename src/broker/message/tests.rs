//! Tests of what a message says about the change that it carries.

use proptest::prelude::*;

use super::*;
use crate::classified::Classified;
use crate::counters::{Counters, Status};
use crate::idempotency_key::MAX_KEY;
use crate::position::Place;
use crate::utc_time::UtcTime;

fn change(domain: &DomainName, status: Status) -> Message {
    let known = Classified::noted(Counters::default(), status, UtcTime(1));
    let report = DomainReport::new(domain.clone(), known);
    Message::change(&Change { report, place: Place::after(1, domain) })
}

/// Subscribers may keep the ids that they have seen.
#[test]
fn ids_of_changes_are_stable_across_releases() {
    let label = "a".repeat(63);
    let longest = format!("{label}.{label}.{label}.{}", "b".repeat(61));
    for (name, status, id) in [
        ("example.com", Status::CatchAll, "example.com catch-all"),
        ("example.com", Status::NotCatchAll, "example.com not catch-all"),
        (&longest, Status::NotCatchAll, "088f8876-558b-5097-bac8-da0f02daced0"),
    ] {
        let message = change(&name.parse().unwrap(), status);
        assert_eq!(message.id().map(ShortString::as_str), Some(id), "{name}");
    }
}

proptest! {
    /// Those with three labels of 63 letters have 241 to 253 octets: with some statuses they fit, with others
    /// they do not.
    #[test]
    fn a_change_of_any_domain_has_an_id_that_fits(
        text in "[a-z0-9]{1,63}(\\.[a-z0-9]{1,63}){0,3}\\.[a-z]{2,63}|([a-z]{63}\\.){3}[a-z]{49,61}",
        status in prop::sample::select(Status::ALL.to_vec()),
    ) {
        if let Ok(domain) = DomainName::parse(&text) {
            let (message, again) = (change(&domain, status), change(&domain, status));
            let id = message.id().unwrap().as_str();
            let text = format!("{domain} {}", status.name());
            prop_assert!(id.len() <= MAX_KEY);
            prop_assert_eq!(id == text, text.len() <= MAX_KEY);
            prop_assert_eq!(again.id().unwrap().as_str(), id);
            prop_assert_eq!(message.routing_key.as_str(), status.slug());
        }
    }
}
