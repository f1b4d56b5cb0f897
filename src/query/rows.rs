//! Domains as the rows of a stream: NDJSON or CSV.

use axum::http::{HeaderMap, HeaderValue, header};

use crate::row_format::RowFormat;

/// The format of domains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// One document.
    Json,
    /// A row for each.
    Rows(RowFormat),
}

impl Format {
    const MEDIA_TYPES: [(&'static str, Self); 5] = [
        ("application/json", Self::Json),
        ("application/*", Self::Json),
        ("*/*", Self::Json),
        ("application/x-ndjson", Self::Rows(RowFormat::Ndjson)),
        ("text/csv", Self::Rows(RowFormat::Csv)),
    ];

    /// The format that a client prefers. A client that accepts none of them still gets a document.
    pub(super) fn of(headers: &HeaderMap) -> Self {
        preferred(headers, &Self::MEDIA_TYPES).unwrap_or(Self::Json)
    }
}

/// The media type of rows.
pub(super) fn content_type(format: RowFormat) -> HeaderValue {
    HeaderValue::from_static(match format {
        RowFormat::Ndjson => "application/x-ndjson",
        RowFormat::Csv => "text/csv; charset=utf-8; header=present",
        RowFormat::Names => "text/plain; charset=utf-8",
    })
}

/// The value whose media type the header `Accept` prefers: by its weight, then by its position.
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

    #[test]
    fn the_format_is_the_one_that_is_liked_best() {
        for (accept, format) in [
            ("", Format::Json),
            ("*/*", Format::Json),
            ("text/html", Format::Json),
            ("text/csv", Format::Rows(RowFormat::Csv)),
            ("Application/X-NDJSON", Format::Rows(RowFormat::Ndjson)),
            ("text/html, application/x-ndjson;q=0.5, text/csv; q=0.7", Format::Rows(RowFormat::Csv)),
            ("application/json, text/csv", Format::Json),
            ("text/csv;q=0", Format::Json),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT, HeaderValue::from_static(accept));
            assert_eq!(Format::of(&headers), format, "{accept}");
        }
        assert_eq!(Format::of(&HeaderMap::new()), Format::Json);
    }
}
