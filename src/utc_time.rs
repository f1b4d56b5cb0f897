//! A time, as the API writes it.

use std::fmt;
use std::num::NonZero;

use serde::{Serialize, Serializer};
use time::OffsetDateTime;
use time::format_description::well_known::Iso8601;
use time::format_description::well_known::iso8601::{Config, EncodedConfig, TimePrecision};
use utoipa::ToSchema;

/// Always three digits after the second: texts of the same length sort by time.
const FORMAT: EncodedConfig = Config::DEFAULT
    .set_year_is_six_digits(false)
    .set_time_precision(TimePrecision::Second { decimal_digits: NonZero::new(3) })
    .encode();

/// A time in milliseconds since 1970. It is written as in RFC 3339, in UTC: `2026-11-28T10:47:04.125Z`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, ToSchema)]
#[schema(
    value_type = String,
    format = DateTime,
    description = "A time in UTC, to the millisecond (RFC 3339).",
    examples("2026-11-28T10:47:04.125Z")
)]
pub struct UtcTime(pub i64);

impl fmt::Display for UtcTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let moment = OffsetDateTime::from_unix_timestamp_nanos(i128::from(self.0) * 1_000_000);
        // No clock can have recorded a time beyond the calendar.
        let text = moment.ok().and_then(|moment| moment.format(&Iso8601::<FORMAT>).ok()).unwrap_or_default();
        f.write_str(&text)
    }
}

impl Serialize for UtcTime {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_written_in_utc_to_the_millisecond() {
        assert_eq!(UtcTime(1_795_862_824_125).to_string(), "2026-11-28T10:47:04.125Z");
        assert_eq!(UtcTime(0).to_string(), "1970-01-01T00:00:00.000Z");
        assert_eq!(UtcTime(1_795_862_824_500).to_string(), "2026-11-28T10:47:04.500Z");
        assert_eq!(UtcTime(i64::MAX).to_string(), "");
    }
}
