//! Domains as rows: NDJSON, CSV, or names alone.

use std::io::Write;

use crate::classified::DomainReport;
use crate::utc_time::UtcTime;

/// How rows are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowFormat {
    /// One JSON object per line.
    Ndjson,
    /// One line per domain, under a header line (RFC 4180).
    Csv,
    /// One name per line, and nothing else.
    Names,
}

impl RowFormat {
    /// The line above the rows.
    pub(crate) fn head(self) -> &'static str {
        match self {
            Self::Ndjson | Self::Names => "",
            Self::Csv => "domain,status,delivered,bounced,since\r\n",
        }
    }

    /// The text that is sent if there are no rows. Rspamd takes an empty map for one that could not be read,
    /// and keeps the previous one.
    #[must_use]
    pub fn of_none(self) -> &'static str {
        if self == Self::Names { "# none\n" } else { "" }
    }

    /// Appends a row. No value of a row needs quotes.
    pub(crate) fn write(self, rows: &mut Vec<u8>, report: &DomainReport) {
        let written = match self {
            Self::Ndjson => serde_json::to_writer(&mut *rows, report)
                .map_err(Into::into)
                .and_then(|()| rows.write_all(b"\n")),
            Self::Csv => {
                let DomainReport { domain, status, delivered, bounced, since } = report;
                let since = since.as_ref().map(UtcTime::to_string).unwrap_or_default();
                write!(rows, "{domain},{},{delivered},{bounced},{since}\r\n", status.name())
            }
            Self::Names => writeln!(rows, "{}", report.domain),
        };
        written.expect("a vector grows as it must");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::counters::Status;
    use crate::domain_name::DomainName;

    #[test]
    fn a_row_is_a_line() {
        let mut report = DomainReport {
            domain: DomainName::parse("a.com").unwrap(),
            status: Status::NotCatchAll,
            delivered: 7,
            bounced: 1,
            since: Some(UtcTime(0)),
        };
        let row = |format: RowFormat, report: &DomainReport| {
            let mut rows = Vec::new();
            format.write(&mut rows, report);
            String::from_utf8(rows).unwrap()
        };
        assert_eq!(row(RowFormat::Csv, &report), "a.com,not catch-all,7,1,1970-01-01T00:00:00.000Z\r\n");
        assert_eq!(row(RowFormat::Names, &report), "a.com\n");
        report.since = None;
        assert_eq!(row(RowFormat::Csv, &report), "a.com,not catch-all,7,1,\r\n");
        assert_eq!(
            row(RowFormat::Ndjson, &report),
            "{\"domain\":\"a.com\",\"status\":\"not catch-all\",\"delivered\":7,\"bounced\":1,\"since\":null}\n"
        );
    }
}
