//! Domains as the rows of a stream: NDJSON or CSV.

use std::io::Write;

use axum::http::{HeaderMap, HeaderValue, header};

use crate::classified::DomainReport;
use crate::utc_time::UtcTime;

/// How domains are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// One document.
    Json,
    /// One JSON object per line.
    Ndjson,
    /// One line per domain, under a line of names (RFC 4180).
    Csv,
}

impl Format {
    const MEDIA_TYPES: [(&'static str, Self); 5] = [
        ("application/json", Self::Json),
        ("application/*", Self::Json),
        ("*/*", Self::Json),
        ("application/x-ndjson", Self::Ndjson),
        ("text/csv", Self::Csv),
    ];

    /// The format that a client likes best. One that knows none of them gets a document all the same.
    pub(super) fn of(headers: &HeaderMap) -> Self {
        preferred(headers, &Self::MEDIA_TYPES).unwrap_or(Self::Json)
    }

    pub(super) fn content_type(self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Self::Json => "application/json",
            Self::Ndjson => "application/x-ndjson",
            Self::Csv => "text/csv; charset=utf-8; header=present",
        })
    }

    /// The line above the rows.
    pub(super) fn head(self) -> &'static str {
        if self == Self::Csv { "domain,status,delivered,bounced,since\r\n" } else { "" }
    }

    /// Appends a row. No value of a row needs quotes.
    pub(super) fn write(self, rows: &mut Vec<u8>, report: &DomainReport) {
        let written = if self == Self::Csv {
            let DomainReport { domain, status, delivered, bounced, since } = report;
            let since = since.as_ref().map(UtcTime::to_string).unwrap_or_default();
            write!(rows, "{domain},{},{delivered},{bounced},{since}\r\n", status.name())
        } else {
            serde_json::to_writer(&mut *rows, report).map_err(Into::into).and_then(|()| rows.write_all(b"\n"))
        };
        written.expect("a vector grows as it must");
    }
}

/// The value whose media type the header `Accept` likes best: by its weight, then by its place.
pub(super) fn preferred<T: Copy>(headers: &HeaderMap, known: &[(&str, T)]) -> Option<T> {
    let accepted = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let mut best = None;
    for range in accepted.flat_map(|value| value.split(',')) {
        let mut parts = range.split(';').map(str::trim);
        let media_type = parts.next().unwrap_or_default();
        let weight = parts.find_map(|parameter| parameter.strip_prefix("q=")?.parse::<f32>().ok());
        let weight = weight.unwrap_or(1.0);
        let found = known.iter().find(|(name, _)| name.eq_ignore_ascii_case(media_type));
        if let Some((_, value)) = found
            && weight > best.map_or(0.0, |(weight, _)| weight)
        {
            best = Some((weight, *value));
        }
    }
    best.map(|(_, value)| value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::counters::Status;
    use crate::domain_name::DomainName;

    #[test]
    fn the_format_is_the_one_that_is_liked_best() {
        for (accept, format) in [
            ("", Format::Json),
            ("*/*", Format::Json),
            ("text/html", Format::Json),
            ("text/csv", Format::Csv),
            ("Application/X-NDJSON", Format::Ndjson),
            ("text/html, application/x-ndjson;q=0.5, text/csv; q=0.7", Format::Csv),
            ("application/json, text/csv", Format::Json),
            ("text/csv;q=0", Format::Json),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT, HeaderValue::from_static(accept));
            assert_eq!(Format::of(&headers), format, "{accept}");
        }
        assert_eq!(Format::of(&HeaderMap::new()), Format::Json);
    }

    #[test]
    fn a_row_is_a_line() {
        let mut report = DomainReport {
            domain: DomainName::parse("a.com").unwrap(),
            status: Status::NotCatchAll,
            delivered: 7,
            bounced: 1,
            since: Some(UtcTime(0)),
        };
        let row = |format: Format, report: &DomainReport| {
            let mut rows = Vec::new();
            format.write(&mut rows, report);
            String::from_utf8(rows).unwrap()
        };
        assert_eq!(row(Format::Csv, &report), "a.com,not catch-all,7,1,1970-01-01T00:00:00Z\r\n");
        report.since = None;
        assert_eq!(row(Format::Csv, &report), "a.com,not catch-all,7,1,\r\n");
        assert_eq!(
            row(Format::Ndjson, &report),
            "{\"domain\":\"a.com\",\"status\":\"not catch-all\",\"delivered\":7,\"bounced\":1,\"since\":null}\n"
        );
    }
}
