//! Fuzz targets: each reads made-up bytes as if they came from a stranger, and panics if the result breaks a
//! promise.
//!
//! `./dev fuzz` builds them for libFuzzer. The tests run them over the inputs under `fuzz/corpus`, so that a
//! fault that was found once is found again. A target is a function beside the code that it tests, and a line
//! in [`TARGETS`].

use crate::domain_name::DomainName;
use crate::idempotency_key::{IdempotencyKey, MAX_KEY};
use crate::{broker, http, ingest, query};

/// A function that panics if the bytes break a promise.
pub type FuzzTarget = fn(&[u8]);

/// All targets, by their names.
pub const TARGETS: [(&str, FuzzTarget); 9] = [
    ("domain_name", domain_name),
    ("idempotency_key", idempotency_key),
    ("bulk", ingest::fuzzed::bulk),
    ("tokens", http::fuzzed::tokens),
    ("authorization", http::fuzzed::authorization),
    ("forwarded_for", http::fuzzed::forwarded_for),
    ("socketmap", query::fuzz_socketmap),
    ("message", broker::fuzz_message),
    ("frames", broker::fuzz_frames),
];

/// A name is parsed to its one spelling, which parses to itself; so do the other spellings of the name.
fn domain_name(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let name = match DomainName::parse(text) {
        Ok(name) => name,
        Err(error) => return assert!(error.to_string().len() < 100),
    };
    let spelling = name.as_str();
    let labels: Vec<&str> = spelling.split('.').collect();
    assert!(labels.len() >= 2 && spelling.len() <= 253, "{spelling}");
    for label in labels {
        let inner = !label.starts_with('-') && !label.ends_with('-');
        let known = label.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'));
        assert!((1..=63).contains(&label.len()) && inner && known, "{spelling}");
    }
    assert!(spelling.parse::<std::net::IpAddr>().is_err(), "{spelling}");
    for other in [spelling.to_owned(), spelling.to_uppercase(), format!("{spelling}.")] {
        assert_eq!(DomainName::parse(&other).as_ref(), Ok(&name), "{other}");
    }
}

/// A key is any string of 1 to 255 bytes, and the form that the ledger keeps is a key that stands for itself.
fn idempotency_key(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let key = text.parse::<IdempotencyKey>();
    assert_eq!(key.is_ok(), (1..=MAX_KEY).contains(&text.len()));
    let Ok(key) = key else { return };
    let kept = key.to_string();
    assert_eq!(kept.parse::<IdempotencyKey>(), Ok(key));
    // Two strings are two keys, unless one is the form in which the ledger keeps the other.
    let more = format!("{text}x");
    if more.len() <= MAX_KEY {
        assert_ne!(more.parse::<IdempotencyKey>(), Ok(key));
    }
    assert_ne!(key.of_event(0), key.of_event(1));
    assert_ne!(key.of_event(0), key);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::Path;

    #[test]
    fn every_target_takes_its_corpus() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
        let folders = fs::read_dir(&corpus).unwrap().map(|entry| entry.unwrap().file_name());
        let folders: BTreeSet<String> = folders.map(|name| name.into_string().unwrap()).collect();
        assert_eq!(folders, TARGETS.map(|(name, _)| name.to_owned()).into());
        for (name, target) in TARGETS {
            target(b"");
            let files: Vec<_> = fs::read_dir(corpus.join(name)).unwrap().map(|file| file.unwrap()).collect();
            assert!(files.len() >= 10, "{name} has {} inputs", files.len());
            for file in files {
                let input = fs::read(file.path()).unwrap();
                assert!(input.len() <= 4096, "{} is large", file.path().display());
                // Shown if the test fails.
                println!("{name}: {}", file.path().display());
                target(&input);
            }
        }
    }
}
