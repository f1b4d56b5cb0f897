//! Foreign text, cut to a length that is safe to repeat in a response, a log line or a header.

use std::fmt::{self, Display, Write};

/// Longest excerpt in bytes, without its ellipsis. It fits on a log line, and a response or header that
/// quotes several of them stays small.
pub const MAX_EXCERPT: usize = 300;

/// The beginning of a text, with an ellipsis where it was cut. The rest is not even formatted, so a response
/// to a request of megabytes stays cheap.
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
        let room = MAX_EXCERPT.saturating_sub(self.0.len());
        if text.len() <= room {
            self.0.push_str(text);
            return Ok(());
        }
        self.0.push_str(&text[..text.floor_char_boundary(room)]);
        self.0.push('…');
        Err(fmt::Error)
    }
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
        assert!(excerpt(Endless).ends_with("\u{7f}\u{e4}…"));
    }

    proptest! {
        #[test]
        fn it_is_the_beginning_on_a_character_boundary(text in "\\PC{0,400}") {
            let cut = excerpt(&text);
            if text.len() <= MAX_EXCERPT {
                prop_assert_eq!(cut, text);
            } else {
                let beginning = cut.strip_suffix('…').unwrap();
                prop_assert!(text.starts_with(beginning));
                prop_assert!((MAX_EXCERPT - 3..=MAX_EXCERPT).contains(&beginning.len()));
            }
        }
    }
}
