//! The prose of the pages: links lead somewhere, and no two pages say the same.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::PAGES;

/// Sentences of fewer words may stand in several places.
const SHORT: usize = 6;

/// The Rust files of a folder.
pub(super) fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}

#[test]
fn every_page_is_compared_with_what_is() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for entry in fs::read_dir(root.join("docs")).unwrap().map(Result::unwrap) {
        let name = format!("docs/{}", entry.file_name().into_string().unwrap());
        if entry.path().is_dir() {
            assert_eq!(name, "docs/images");
            continue;
        }
        // The one for programs is compared in `asyncapi.rs`.
        assert!(PAGES.iter().any(|(page, _)| *page == name) || name == "docs/asyncapi.yaml", "{name}");
    }
}

/// A page without its blocks of code.
fn prose(document: &str) -> String {
    document.split("```").step_by(2).collect()
}

/// The sentences of a page, of cells of tables too.
fn sentences(document: &str) -> Vec<String> {
    let mut paragraphs = vec![String::new()];
    for line in prose(document).lines() {
        let line = line.trim();
        let is_item = line.starts_with("- ")
            || line.split(". ").next().is_some_and(|number| number.parse::<u32>().is_ok());
        if line.is_empty() || line.starts_with('#') || line.starts_with('|') || is_item {
            paragraphs.push(String::new());
        }
        let paragraph = paragraphs.last_mut().unwrap();
        paragraph.push_str(line);
        paragraph.push(' ');
    }
    let mut sentences = Vec::new();
    for text in paragraphs.iter().flat_map(|paragraph| paragraph.split('|')) {
        let words: Vec<&str> = text.split_whitespace().collect();
        let sentence = words.split_inclusive(|word| word.ends_with(['.', ':', ';', '?']));
        sentences.extend(sentence.filter(|words| words.len() >= SHORT).map(|words| words.join(" ")));
    }
    sentences
}

#[test]
fn no_sentence_stands_in_two_pages() {
    let mut seen: BTreeMap<String, &str> = BTreeMap::new();
    for (page, document) in PAGES {
        for sentence in sentences(document) {
            let other = seen.insert(sentence.clone(), page).filter(|other| *other != page);
            assert_eq!(other, None, "{page} says it too: {sentence}");
        }
    }
    assert!(seen.len() > 300, "{}", seen.len());
}

/// Where the links of a page lead.
fn links(document: &str) -> Vec<String> {
    let prose = prose(document);
    let targets = prose.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    targets.map(str::to_owned).collect()
}

/// The anchors of a page's headings, as forges make them.
fn anchors(document: &str) -> Vec<String> {
    let prose = prose(document);
    let headings =
        prose.lines().filter(|line| line.starts_with('#')).map(|line| line.trim_start_matches('#').trim());
    let anchor = |heading: &str| {
        let kept = heading.to_lowercase().replace(' ', "-");
        kept.chars().filter(|letter| letter.is_alphanumeric() || ['-', '_'].contains(letter)).collect()
    };
    headings.map(anchor).collect()
}

#[test]
fn every_link_leads_somewhere() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let more =
        ["BENCHMARKS.md", "CHANGELOG.md"].map(|page| (page, fs::read_to_string(root.join(page)).unwrap()));
    let more = more.iter().map(|(page, document)| (*page, &**document));
    let mut local = 0;
    for (page, document) in PAGES.into_iter().chain(more) {
        for link in links(document) {
            if link.contains("://") {
                for registry in ["crates.io", "pypi.org", "npmjs.com"] {
                    assert!(!link.contains(registry), "{page}: {link} is no documentation");
                }
                continue;
            }
            let (path, anchor) = link.split_once('#').unwrap_or((&link, ""));
            let target =
                if path.is_empty() { root.join(page) } else { root.join(page).parent().unwrap().join(path) };
            assert!(target.exists(), "{page}: there is no {link}");
            if !anchor.is_empty() {
                let target = fs::read_to_string(target).unwrap();
                assert!(anchors(&target).iter().any(|known| known == anchor), "{page}: there is no {link}");
            }
            local += 1;
        }
    }
    assert!(local > 30, "{local}");
}
