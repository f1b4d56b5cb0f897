//! What the documents say, compared with what is.

mod commands;
mod prose;
mod tables;

/// The pages, each by its path.
const PAGES: [(&str, &str); 8] = [
    ("README.md", README),
    ("docs/api.md", API),
    ("docs/configuration.md", CONFIGURATION),
    ("docs/glossary.md", include_str!("../../docs/glossary.md")),
    ("docs/operating.md", OPERATING),
    ("ARCHITECTURE.md", ARCHITECTURE),
    ("CONTRIBUTING.md", include_str!("../../CONTRIBUTING.md")),
    ("SECURITY.md", include_str!("../../SECURITY.md")),
];

const README: &str = include_str!("../../README.md");
pub(super) const API: &str = include_str!("../../docs/api.md");
const CONFIGURATION: &str = include_str!("../../docs/configuration.md");
pub(super) const OPERATING: &str = include_str!("../../docs/operating.md");
const ARCHITECTURE: &str = include_str!("../../ARCHITECTURE.md");

/// The text between two headings.
pub(super) fn section<'a>(document: &'a str, from: &str, to: &str) -> &'a str {
    let (_, rest) = document.split_once(from).unwrap_or_else(|| panic!("no {from:?}"));
    rest.split_once(to).unwrap_or_else(|| panic!("no {to:?} after {from:?}")).0
}

/// The fenced blocks of one language.
pub(super) fn blocks<'a>(document: &'a str, language: &str) -> Vec<&'a str> {
    let fence = format!("```{language}\n");
    document
        .split(&*fence)
        .skip(1)
        .map(|rest| rest.split_once("```").expect("an end of the block").0)
        .collect()
}
