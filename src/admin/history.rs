//! Files of history: CSV or NDJSON, read line by line.

use std::borrow::Cow;
use std::io::{self, BufRead, BufReader, Read};

use serde::Deserialize;

use crate::counters::Counters;
use crate::domain_name::DomainName;
use crate::excerpt::excerpt;

/// Longest line in bytes, including its end.
const MAX_LINE: usize = 64 * 1024;

/// Largest number in a column. No domain has had that much mail, and a store can still keep the sum of a
/// thousand such files.
const MAX_COUNT: u64 = 1_000_000_000_000_000;

/// How the rows of a file are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    /// A JSON object on each line.
    Ndjson,
    /// Comma-separated values (RFC 4180), with these columns at these indexes.
    Csv { domain: usize, delivered: usize, bounced: usize },
}

impl Layout {
    /// The layout of a file that begins with this record, and whether the record is a header line.
    fn of(first: &str) -> Result<(Self, bool), String> {
        if first.trim_start().starts_with('{') {
            return Ok((Self::Ndjson, false));
        }
        let names = fields(first)?;
        let place = |name: &str| names.iter().position(|field| field.trim().eq_ignore_ascii_case(name));
        let Some(domain) = place("domain") else {
            return Ok((Self::Csv { domain: 0, delivered: 1, bounced: 2 }, false));
        };
        let need = |name: &str| place(name).ok_or_else(|| format!("the first line has no column {name:?}"));
        Ok((Self::Csv { domain, delivered: need("delivered")?, bounced: need("bounced")? }, true))
    }

    /// Reads the line with this number.
    fn line(self, number: u64, text: &str) -> Line {
        match self.row(text) {
            Ok((domain, counters)) => Line::Row(domain, counters),
            Err(reason) => Line::Invalid(number, excerpt(reason)),
        }
    }

    /// Reads a record.
    fn row(self, record: &str) -> Result<(DomainName, Counters), String> {
        let (domain, counters) = match self {
            Self::Ndjson => {
                let Object { domain, delivered, bounced } =
                    serde_json::from_str(record).map_err(|error| reason(&error))?;
                (domain, Counters { delivered, bounced })
            }
            Self::Csv { domain, delivered, bounced } => {
                let mut fields = fields(record)?;
                let (delivered, bounced) =
                    (count(&fields, delivered, "delivered")?, count(&fields, bounced, "bounced")?);
                if domain >= fields.len() {
                    return Err("it has no domain".into());
                }
                (fields.swap_remove(domain), Counters { delivered, bounced })
            }
        };
        if counters.delivered.max(counters.bounced) > MAX_COUNT {
            return Err(format!("a number is greater than {MAX_COUNT}"));
        }
        let name = domain.trim();
        let domain = DomainName::parse(name).map_err(|error| format!("{name:?}: {error}"))?;
        Ok((domain, counters))
    }
}

#[derive(Deserialize)]
struct Object<'a> {
    #[serde(borrow)]
    domain: Cow<'a, str>,
    delivered: u64,
    bounced: u64,
}

/// Why a line of JSON cannot be read, without the position of the error.
fn reason(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.rsplit_once(" at line ").map_or(text.as_str(), |(reason, _)| reason).to_owned()
}

fn count(fields: &[Cow<'_, str>], place: usize, name: &str) -> Result<u64, String> {
    let text = fields.get(place).ok_or_else(|| format!("it has no {name}"))?.trim();
    text.parse().map_err(|_| format!("{name} is {text:?}, not a whole number up to {MAX_COUNT}"))
}

/// The fields of a line of CSV. A quoted field must end on its line.
fn fields(record: &str) -> Result<Vec<Cow<'_, str>>, String> {
    if !record.contains('"') {
        return Ok(record.split(',').map(Cow::Borrowed).collect());
    }
    let mut fields = Vec::new();
    let mut rest = record;
    loop {
        let (field, after) = if let Some(quoted) = rest.strip_prefix('"') {
            unquote(quoted)?
        } else {
            let (field, after) = rest.split_at(rest.find(',').unwrap_or(rest.len()));
            (Cow::Borrowed(field), after)
        };
        fields.push(field);
        match after.strip_prefix(',') {
            Some(next) => rest = next,
            None if after.is_empty() => return Ok(fields),
            None => return Err("text follows a closing quote".into()),
        }
    }
}

/// The field before the closing quote, and the text after the quote.
fn unquote(quoted: &str) -> Result<(Cow<'_, str>, &str), String> {
    let mut from = 0;
    while let Some(found) = quoted[from..].find('"') {
        let at = from + found;
        if !quoted[at + 1..].starts_with('"') {
            return Ok((Cow::Owned(quoted[..at].replace("\"\"", "\"")), &quoted[at + 1..]));
        }
        from = at + 2;
    }
    Err("a quote is not closed on its line".into())
}

/// The content of a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// Events of a domain.
    Row(DomainName, Counters),
    /// A line that cannot be read: its number, and the reason.
    Invalid(u64, String),
}

/// A file that is read line by line.
#[derive(Debug)]
pub(super) struct History<R> {
    input: BufReader<R>,
    /// `None` before the first line.
    layout: Option<Layout>,
    /// Everything before this byte has been read.
    position: u64,
    line: u64,
    text: Vec<u8>,
}

impl<R: Read> History<R> {
    /// A file from its beginning.
    pub(super) fn new(input: R) -> Self {
        Self { input: BufReader::new(input), layout: None, position: 0, line: 0, text: Vec::new() }
    }

    /// A file with a known layout, from a later position, which `input` must be at.
    pub(super) fn at(input: R, layout: Layout, position: u64) -> Self {
        Self { layout: Some(layout), position, ..Self::new(input) }
    }

    /// How many bytes have been read.
    pub(super) fn position(&self) -> u64 {
        self.position
    }

    /// The layout, once there was a line.
    pub(super) fn layout(&self) -> Option<Layout> {
        self.layout
    }

    /// Returns the input.
    pub(super) fn into_inner(self) -> R {
        self.input.into_inner()
    }

    /// The next line that is neither empty nor a header line; `None` at the end.
    ///
    /// Fails if the first line shows that the file cannot be read.
    pub(super) fn next(&mut self) -> anyhow::Result<Option<Line>> {
        loop {
            if self.read_line()? == 0 {
                return Ok(None);
            }
            let invalid = |reason: String| Ok(Some(Line::Invalid(self.line, excerpt(reason))));
            if self.text.len() > MAX_LINE {
                return invalid(format!("it is longer than {MAX_LINE} bytes"));
            }
            let Ok(text) = std::str::from_utf8(&self.text) else { return invalid("it is not UTF-8".into()) };
            // Some programs begin a file with a byte order mark.
            let text = text.trim_start_matches('\u{feff}').trim_end_matches(['\r', '\n']);
            if text.trim().is_empty() {
                continue;
            }
            let Some(layout) = self.layout else {
                let (layout, is_head) = Layout::of(text).map_err(anyhow::Error::msg)?;
                self.layout = Some(layout);
                if is_head {
                    continue;
                }
                return Ok(Some(layout.line(self.line, text)));
            };
            return Ok(Some(layout.line(self.line, text)));
        }
    }

    /// Reads a line and returns its length. Keeps no more of it than shows that it is too long.
    fn read_line(&mut self) -> io::Result<u64> {
        self.text.clear();
        let mut length = 0;
        loop {
            let buffer = self.input.fill_buf()?;
            let end = buffer.iter().position(|byte| *byte == b'\n');
            let used = end.map_or(buffer.len(), |end| end + 1);
            let room = (MAX_LINE + 1).saturating_sub(self.text.len());
            self.text.extend_from_slice(&buffer[..used.min(room)]);
            self.input.consume(used);
            length += used as u64;
            if end.is_some() || used == 0 {
                self.position += length;
                self.line += 1;
                return Ok(length);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Vec<Line> {
        let mut history = History::new(text.as_bytes());
        std::iter::from_fn(|| history.next().unwrap()).collect()
    }

    fn row(domain: &str, delivered: u64, bounced: u64) -> Line {
        Line::Row(DomainName::parse(domain).unwrap(), Counters { delivered, bounced })
    }

    fn invalid(line: u64, reason: &str) -> Line {
        Line::Invalid(line, reason.into())
    }

    #[test]
    fn columns_are_found_by_their_names_or_their_places() {
        let both = [row("a.com", 1, 2), row("b.com", 3, 0)];
        for text in [
            "a.com,1,2\nb.com,3,0\n",
            "domain,delivered,bounced\r\na.com,1,2\r\nb.com,3,0",
            "\u{feff}Bounced , since, DOMAIN,delivered\n2,x, A.com. ,1\n\n0,,b.com,3\n \n",
            "\u{feff}\"a.com\",\"1\",2,\"said \"\"no\"\", twice\"\n\"b.com\",3,0,\n",
            "{\"domain\": \"a.com\", \"delivered\": 1, \"bounced\": 2}\n\
             {\"bounced\": 0, \"domain\": \"b\\u002ecom\", \"delivered\": 3, \"since\": null}",
        ] {
            assert_eq!(read(text), both, "{text:?}");
        }
    }

    #[test]
    fn a_line_that_cannot_be_read_says_why() {
        let csv = "a.com,1,2\nb.com,-1,0\nc.com,1\nnone,1,2\nd.com,1,9223372036854775808\n\"e.com,1,2\n\
            \"f.com\"x,1,2\n";
        assert_eq!(
            read(csv),
            [
                row("a.com", 1, 2),
                invalid(2, "delivered is \"-1\", not a whole number up to 1000000000000000"),
                invalid(3, "it has no bounced"),
                invalid(4, "\"none\": a domain name has at least two labels, as in example.com"),
                invalid(5, "a number is greater than 1000000000000000"),
                invalid(6, "a quote is not closed on its line"),
                invalid(7, "text follows a closing quote"),
            ]
        );
        let json = "{\"domain\":\"a.com\",\"delivered\":1}\n[]\n\
            {\"domain\":\"a.com\",\"delivered\":1.5,\"bounced\":0}";
        let reasons = [
            "missing field `bounced`",
            "invalid length 0, expected struct Object with 3 elements",
            "invalid type: floating point `1.5`, expected u64",
        ];
        assert_eq!(
            read(json),
            [1, 2, 3].map(|line| invalid(line, reasons[usize::try_from(line).unwrap() - 1]))
        );
        let long = format!("a.com,1,2\n{}\nb.com,3,0\n", "x".repeat(200_000));
        let long = read(&long);
        assert_eq!(
            long,
            [row("a.com", 1, 2), invalid(2, "it is longer than 65536 bytes"), row("b.com", 3, 0)]
        );
        let mut binary = History::new(&b"a.com,1,2\n\xff\xfe\n"[..]);
        assert_eq!(binary.next().unwrap(), Some(row("a.com", 1, 2)));
        assert_eq!(binary.next().unwrap(), Some(invalid(2, "it is not UTF-8")));
    }

    #[test]
    fn a_line_of_names_must_have_all_three() {
        let mut history = History::new(&b"domain,delivered\na.com,1\n"[..]);
        assert_eq!(history.next().unwrap_err().to_string(), "the first line has no column \"bounced\"");
    }

    #[test]
    fn reading_goes_on_where_it_was() {
        let text = "domain,bounced,delivered\na.com,1,2\nb.com,3,4\n";
        let mut whole = History::new(text.as_bytes());
        assert_eq!(whole.next().unwrap(), Some(row("a.com", 2, 1)));
        let (position, layout) = (whole.position(), whole.layout().unwrap());
        let rest = &text.as_bytes()[usize::try_from(position).unwrap()..];
        let mut rest = History::at(rest, layout, position);
        assert_eq!(rest.next().unwrap(), Some(row("b.com", 4, 3)));
        assert_eq!((rest.next().unwrap(), rest.position()), (None, text.len() as u64));
    }
}
