//! Foreign text, made safe to repeat in a response, a log line or a header: it is cut to a length, and stays
//! on its line.

use std::fmt::{self, Display, Write};

/// Longest excerpt in bytes, without its ellipsis. It fits on a log line, and a response or header that
/// quotes several of them stays small.
pub const MAX_EXCERPT: usize = 300;

/// The beginning of a text, with an ellipsis where it was cut. The rest is not even formatted, so a response
/// to a request of megabytes stays cheap. Characters that would end the line or turn its direction are
/// escaped: nobody can forge a line of a log. An excerpt of an excerpt is the same.
///
/// To quote a text, pass its debug format: `excerpt(format_args!("{text:?}"))`.
#[must_use]
pub fn excerpt(text: impl Display) -> String {
    let mut beginning = Beginning(String::new());
    // Fails once the excerpt is full, which ends the formatting.
    let _ = write!(beginning, "{text}");
    beginning.0
}

struct Beginning(String);

impl Write for Beginning {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for char in text.chars() {
            let end = self.0.len();
            if leaves_line(char) {
                self.0.extend(char.escape_debug());
            } else {
                self.0.push(char);
            }
            if self.0.len() > MAX_EXCERPT {
                self.0.truncate(end);
                self.0.push('…');
                return Err(fmt::Error);
            }
        }
        Ok(())
    }
}

/// Whether what follows a character would not be to its right on the same line: control characters, Unicode's
/// separators of lines and paragraphs, and the marks, embeddings, overrides and isolates of its bidirectional
/// algorithm.
fn leaves_line(char: char) -> bool {
    char.is_control()
        || matches!(
            char,
            '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
        )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_short_text_is_its_own_excerpt() {
        assert_eq!(excerpt(""), "");
        assert_eq!(excerpt("x".repeat(MAX_EXCERPT)), "x".repeat(MAX_EXCERPT));
        assert_eq!(excerpt(format_args!("{:?} of {}", "a\nb", 7)), "\"a\\nb\" of 7");
        assert_eq!(
            excerpt("m\u{fc}ller \u{939}\u{93f}\u{928}\u{94d}\u{926}\u{940} \\xff"),
            "müller हिन्दी \\xff"
        );
    }

    #[test]
    fn what_is_cut_off_is_not_formatted() {
        struct Endless;
        impl Display for Endless {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                loop {
                    f.write_str("\u{7f}\u{e4}")?;
                }
            }
        }
        assert!(excerpt(Endless).ends_with("\\u{7f}\u{e4}…"));
    }

    #[test]
    fn no_line_is_forged() {
        assert_eq!(excerpt("x\n2026 INFO y\r\t\0"), "x\\n2026 INFO y\\r\\t\\0");
        assert_eq!(excerpt("\x1b[2J\u{85}\u{2028}\u{2029}"), "\\u{1b}[2J\\u{85}\\u{2028}\\u{2029}");
        assert_eq!(excerpt("\u{202e}moc\u{2066}\u{61c}"), "\\u{202e}moc\\u{2066}\\u{61c}");
    }

    proptest! {
        #[test]
        fn it_is_the_beginning_on_a_character_boundary(text in "\\PC{0,400}") {
            let cut = excerpt(&text);
            if text.chars().any(leaves_line) {
                return Ok(());
            }
            if text.len() <= MAX_EXCERPT {
                prop_assert_eq!(cut, text);
            } else {
                let beginning = cut.strip_suffix('…').unwrap();
                prop_assert!(text.starts_with(beginning));
                prop_assert!((MAX_EXCERPT - 3..=MAX_EXCERPT).contains(&beginning.len()));
            }
        }

        #[test]
        fn it_stays_on_its_line_whatever_it_is_made_of(
            text in "([\\x00-\\x1f\\x7f-\\u{9f}\\u{200b}-\\u{206f}\\u{61c}a-z…]|\\PC|.){0,400}"
        ) {
            let cut = excerpt(&text);
            prop_assert!(!cut.chars().any(leaves_line));
            prop_assert_eq!(cut.lines().count(), usize::from(!text.is_empty()));
            prop_assert!(cut.len() <= MAX_EXCERPT + '…'.len_utf8());
            prop_assert_eq!(excerpt(&cut), cut);
        }
    }
}
