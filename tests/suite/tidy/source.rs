//! What is written in Rust here, file by file.

use std::fs;
use std::path::{Path, PathBuf};

/// A file of Rust.
pub(crate) struct Source {
    /// Its path from the top of the repository.
    pub(crate) path: String,
    pub(crate) text: String,
    pub(crate) syntax: syn::File,
}

/// The top of the repository.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn find(folder: &Path, found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for path in entries.map(|entry| entry.unwrap().path()) {
        if path.is_dir() && !path.ends_with("target") {
            find(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// All files under these folders.
pub(crate) fn sources(folders: &[&str]) -> Vec<Source> {
    let mut paths = Vec::new();
    for folder in folders {
        find(&root().join(folder), &mut paths);
    }
    paths.sort();
    assert!(!paths.is_empty(), "{folders:?}");
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).unwrap();
        let syntax = syn::parse_file(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        Source { path: path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned(), text, syntax }
    };
    paths.into_iter().map(read).collect()
}

/// The folders whose files are one crate each.
pub(crate) fn crates() -> Vec<String> {
    let mut crates: Vec<String> =
        ["src", "tests/suite", "tests/chaos", "benches/system"].map(str::to_owned).into();
    let members = fs::read_dir(root().join("crates")).unwrap();
    crates.extend(members.map(|entry| format!("crates/{}/src", entry.unwrap().file_name().display())));
    crates
}

/// Fails with all that breaks a rule.
pub(crate) fn complain(rule: &str, complaints: &[String]) {
    assert!(complaints.is_empty(), "{rule}:\n{}", complaints.join("\n"));
}
