//! Numbers, times and reasons in plain words.

use std::fmt;
use std::time::Duration;

use time::OffsetDateTime;

use crate::classified::Classified;
use crate::counters::{Counters, Status};
use crate::utc_time::UtcTime;

/// A number with a comma before each three digits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Number(pub(super) u64);

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = self.0.to_string();
        for (place, digit) in digits.chars().enumerate() {
            if place > 0 && (digits.len() - place).is_multiple_of(3) {
                f.write_str(",")?;
            }
            write!(f, "{digit}")?;
        }
        Ok(())
    }
}

/// A number of things.
pub(super) fn count(number: u64, one: &str, many: &str) -> String {
    format!("{} {}", Number(number), if number == 1 { one } else { many })
}

/// A time to the minute: `28 Nov 2026, 10:47 UTC`.
#[derive(Clone, Copy, Debug)]
pub(super) struct ReadableTime(pub(super) UtcTime);

impl fmt::Display for ReadableTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(moment) = moment(self.0) else { return Ok(()) };
        let month = moment.month().to_string();
        write!(f, "{} {} {}, ", moment.day(), month.get(..3).unwrap_or(&month), moment.year())?;
        write!(f, "{} UTC", Minute(self.0))
    }
}

/// A minute of a day: `10:47`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Minute(pub(super) UtcTime);

impl fmt::Display for Minute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(moment) = moment(self.0) else { return Ok(()) };
        write!(f, "{:02}:{:02}", moment.hour(), moment.minute())
    }
}

fn moment(UtcTime(millis): UtcTime) -> Option<OffsetDateTime> {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(millis) * 1_000_000).ok()
}

/// The status as the rest of a sentence that begins with the domain's name.
pub(super) fn verdict(status: Status) -> &'static str {
    match status {
        Status::CatchAll => "is a catch-all",
        Status::NotCatchAll => "is not a catch-all",
        Status::Unknown => "is unknown so far",
    }
}

/// Why it has this status.
pub(super) fn reason(Classified { counters, status, .. }: Classified, threshold: u64) -> String {
    let Counters { delivered, bounced } = counters;
    let delivered_so_far = match delivered {
        0 => "No message was delivered".to_owned(),
        delivered => format!("{} delivered", count(delivered, "message was", "messages were")),
    };
    let limit = Number(threshold);
    match status {
        Status::CatchAll => format!("{delivered_so_far}, more than {limit}, and none bounced."),
        Status::NotCatchAll => {
            format!("{delivered_so_far}, and {} bounced. One bounce is enough.", Number(bounced))
        }
        Status::Unknown if delivered == 0 => {
            format!(
                "No message to this domain was reported. A catch-all needs more than {limit} delivered \
                 messages and no bounce."
            )
        }
        Status::Unknown => {
            format!(
                "{delivered_so_far} and none bounced. A catch-all needs more than {limit} delivered messages."
            )
        }
    }
}

/// How up to date an answer is.
pub(super) fn freshness(lag: Option<Duration>) -> String {
    match lag {
        None => "As of now.".to_owned(),
        Some(lag) if lag.is_zero() => "Read from the replica, which has all its primary sent.".to_owned(),
        Some(lag) if lag < Duration::from_secs(1) => {
            format!("Read from the replica, up to {} ms behind its primary.", lag.as_millis().max(1))
        }
        Some(lag) => {
            format!(
                "Read from the replica, up to {} behind its primary.",
                count(lag.as_secs(), "second", "seconds")
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_moments_are_written_for_people() {
        for (number, text) in
            [(0, "0"), (999, "999"), (1000, "1,000"), (u64::MAX, "18,446,744,073,709,551,615")]
        {
            assert_eq!(Number(number).to_string(), text);
        }
        assert_eq!(count(1, "event", "events"), "1 event");
        assert_eq!(count(1234, "event", "events"), "1,234 events");
        assert_eq!(ReadableTime(UtcTime(1_795_862_824_125)).to_string(), "28 Nov 2026, 10:47 UTC");
        assert_eq!(ReadableTime(UtcTime(i64::MAX)).to_string(), "");
    }

    #[test]
    fn a_reason_has_the_numbers_that_decide() {
        let reason =
            |delivered, bounced| reason(Classified::new(Counters { delivered, bounced }, 1000, None), 1000);
        assert_eq!(reason(1234, 0), "1,234 messages were delivered, more than 1,000, and none bounced.");
        assert_eq!(reason(1, 2), "1 message was delivered, and 2 bounced. One bounce is enough.");
        assert_eq!(reason(0, 1), "No message was delivered, and 1 bounced. One bounce is enough.");
        assert_eq!(
            reason(7, 0),
            "7 messages were delivered and none bounced. A catch-all needs more than 1,000 delivered messages."
        );
        assert_eq!(
            reason(0, 0),
            "No message to this domain was reported. A catch-all needs more than 1,000 delivered messages and \
             no bounce."
        );
    }

    #[test]
    fn freshness_is_told_in_the_unit_that_fits() {
        assert_eq!(freshness(None), "As of now.");
        for (millis, text) in
            [(0, "which has all"), (12, "up to 12 ms"), (1999, "1 second"), (65_000, "65 seconds")]
        {
            let said = freshness(Some(Duration::from_millis(millis)));
            assert!(said.contains(text), "{said}");
        }
    }
}
