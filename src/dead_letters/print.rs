//! Dead letters as lines and as JSON. Text of a publisher cannot control the terminal.

use std::io::{self, Write};

use serde_json::{Map, Value};

use crate::broker::DeadLetter;

/// Digits of a reference in a list. Among a million dead letters, hardly two references share the first 12.
const DIGITS: usize = 12;

/// Characters of a body in a list.
const BEGINNING: usize = 60;

/// Bytes of a body in one line of hexadecimal digits.
const HEX_LINE: usize = 32;

/// The beginning of the reference, long enough to tell dead letters apart.
pub(super) fn short_reference(letter: &DeadLetter) -> String {
    let mut reference = letter.reference().simple().to_string();
    reference.truncate(DIGITS);
    reference
}

/// One line.
pub(super) fn line(letter: &DeadLetter, out: &mut impl Write) -> io::Result<()> {
    let dead_lettered_at =
        letter.dead_lettered_at().map_or_else(|| "-".into(), |dead_lettered_at| dead_lettered_at.to_string());
    writeln!(
        out,
        "{}  {dead_lettered_at:20}  {:>8} B  {}  {}  {}",
        short_reference(letter),
        letter.size(),
        printable(letter.message_id().unwrap_or("-").as_bytes()),
        printable(letter.reason().as_bytes()),
        beginning(letter.body()),
    )
}

/// One line as JSON.
pub(super) fn line_as_json(letter: &DeadLetter, out: &mut impl Write) -> io::Result<()> {
    let mut object = summary(letter);
    object.insert("body".into(), beginning(letter.body()).into());
    writeln!(out, "{}", Value::Object(object))
}

/// Everything, and an empty line.
pub(super) fn whole(letter: &DeadLetter, out: &mut impl Write) -> io::Result<()> {
    let mut rows: Vec<(String, Value)> = [
        ("reference", Some(letter.reference().simple().to_string())),
        ("dead_lettered_at", letter.dead_lettered_at().map(|dead_lettered_at| dead_lettered_at.to_string())),
        ("reason", Some(letter.reason())),
        ("dead_letter_id", letter.dead_letter_id().map(str::to_owned)),
        ("routing_key", Some(letter.routing_key().to_owned())),
    ]
    .into_iter()
    .filter_map(|(name, value)| Some((name.to_owned(), value?.into())))
    .collect();
    rows.extend(letter.properties());
    rows.extend(letter.headers().into_iter().map(|(name, value)| (format!("header {name}"), value)));
    let width = rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or_default();
    for (name, value) in rows {
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        writeln!(out, "{:width$}  {}", printable(name.as_bytes()), printable(value.as_bytes()))?;
    }
    if let Some(size) = letter.unread() {
        writeln!(out, "body, {size} B, which was not read")?;
        return writeln!(out);
    }
    writeln!(out, "body, {} B:", letter.body().len())?;
    match text(letter.body()) {
        Some(text) => {
            for line in text.lines() {
                writeln!(out, "{}", printable(line.as_bytes()))?;
            }
        }
        None => {
            for line in letter.body().chunks(HEX_LINE) {
                writeln!(out, "{}", hex(line))?;
            }
        }
    }
    writeln!(out)
}

/// Everything as JSON, in one line.
pub(super) fn whole_as_json(letter: &DeadLetter, out: &mut impl Write) -> io::Result<()> {
    let mut object = summary(letter);
    object.insert("dead_letter_id".into(), letter.dead_letter_id().into());
    object.insert("moved_by_broker".into(), letter.is_moved_by_broker().into());
    object.insert("routing_key".into(), letter.routing_key().into());
    object.insert("properties".into(), letter.properties().into());
    object.insert("headers".into(), letter.headers().into());
    let (name, body) = match text(letter.body()) {
        _ if letter.unread().is_some() => ("body", Value::Null),
        Some(text) => ("body", text.into()),
        None => ("body_hex", hex(letter.body()).into()),
    };
    object.insert(name.into(), body);
    writeln!(out, "{}", Value::Object(object))
}

fn summary(letter: &DeadLetter) -> Map<String, Value> {
    [
        ("ref", letter.reference().simple().to_string().into()),
        (
            "dead_lettered_at",
            letter.dead_lettered_at().map(|dead_lettered_at| dead_lettered_at.to_string()).into(),
        ),
        ("message_id", letter.message_id().into()),
        ("size", letter.size().into()),
        ("reason", letter.reason().into()),
    ]
    .map(|(name, value): (_, Value)| (String::from(name), value))
    .into_iter()
    .collect()
}

/// A body that is readable text.
fn text(body: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(body).ok()?;
    text.chars().all(|char| !char.is_control() || matches!(char, '\t' | '\n' | '\r')).then_some(text)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |digits, byte| digits + &format!("{byte:02x}"))
}

fn beginning(body: &[u8]) -> String {
    // A character has four bytes at most.
    let beginning = &body[..body.len().min(4 * BEGINNING)];
    let shown = printable(beginning);
    match shown.char_indices().nth(BEGINNING) {
        Some((end, _)) => format!("{}…", &shown[..end]),
        None => shown,
    }
}

/// On one line, with an escape for every character that does not print, such as those that move the cursor or
/// change the direction of writing.
fn printable(bytes: &[u8]) -> String {
    let mut printable = String::new();
    for chunk in bytes.utf8_chunks() {
        for char in chunk.valid().chars() {
            match char {
                '"' | '\'' | '\\' => printable.push(char),
                _ => printable.extend(char.escape_debug()),
            }
        }
        printable.extend(chunk.invalid().iter().map(|byte| format!("\\x{byte:02x}")));
    }
    printable
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_is_printed_moves_the_cursor() {
        assert_eq!(printable(b"{\"a\": 'b\\c'}"), "{\"a\": 'b\\c'}");
        assert_eq!(printable("müller.de ✓".as_bytes()), "müller.de ✓");
        assert_eq!(printable(b"\x1b[2Jone\ntwo\r\t\x00\x7f"), "\\u{1b}[2Jone\\ntwo\\r\\t\\0\\u{7f}");
        assert_eq!(printable("\u{202e}moc\u{9b}".as_bytes()), "\\u{202e}moc\\u{9b}");
        assert_eq!(printable(b"a\xff\xc3"), "a\\xff\\xc3");
    }

    #[test]
    fn a_beginning_is_short_whatever_it_is_the_beginning_of() {
        assert_eq!(beginning(b"short"), "short");
        let long = "ü".repeat(1000);
        assert_eq!(beginning(long.as_bytes()), "ü".repeat(BEGINNING) + "…");
        assert_eq!(beginning(&[0xff; 1000]).chars().count(), BEGINNING + 1);
    }

    #[test]
    fn a_body_is_text_or_digits() {
        assert_eq!(text(b"{\n\t\"a\": 1\r\n}"), Some("{\n\t\"a\": 1\r\n}"));
        assert_eq!(text(b"\x1b[2J"), None);
        assert_eq!(text(b"\xff\xfe\x00"), None);
        assert_eq!(hex(b"\xff\xfe\x00"), "fffe00");
    }
}
