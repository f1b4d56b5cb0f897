//! Rules of the house that no compiler checks.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let path = entry.path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}

/// The code of a file without its comments and its tests.
fn code(path: &Path) -> String {
    if path.ends_with("tests.rs") {
        return String::new();
    }
    let text = fs::read_to_string(path).unwrap();
    let code = text.split("#[cfg(test)]").next().unwrap();
    code.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

#[test]
fn each_vendor_has_one_door() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for path in sources(&root.join("src")).into_iter().chain(sources(&root.join("bin"))) {
        let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
        let code = code(&path);
        for (vendor, doors) in [
            ("lapin::", &["src/broker"][..]),
            ("async_rs::", &["src/broker"]),
            ("sqlx::", &["src/store"]),
            ("hyper_util::server", &["src/http"]),
        ] {
            let is_door = doors.iter().any(|door| name.starts_with(door));
            assert!(is_door || !code.contains(vendor), "{name} names {vendor}, which is behind {doors:?}");
        }
    }
}

/// The modules that a file imports together, as in `use crate::{broker, ledger::Ledger};`.
fn grouped(code: &str) -> BTreeSet<&str> {
    let groups = code.split("crate::{").skip(1).map(|group| {
        let mut depth = 1;
        let end = group.find(|letter| {
            depth += i32::from(letter == '{') - i32::from(letter == '}');
            depth == 0
        });
        &group[..end.expect("a group ends")]
    });
    let words = groups.flat_map(|group| {
        let mut depth = 0;
        // Not within a group of the group, which is of another module.
        let parts = group.split(move |letter| {
            depth += i32::from(letter == '{') - i32::from(letter == '}');
            letter == ',' && depth == 0
        });
        parts.map(|part| part.split("::").next().unwrap_or_default().trim())
    });
    words.filter(|word| !word.is_empty()).collect()
}

#[test]
fn imports_in_a_group_are_seen() {
    let code = "use crate::{broker, ledger::{self, Ledger}, http};\nuse crate::{\n    figures::Figures,\n};";
    assert_eq!(grouped(code), ["broker", "ledger", "http", "figures"].into());
}

#[test]
fn a_module_uses_only_those_above_it() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let list = fs::read_to_string(root.join("lib.rs")).unwrap();
    let modules: Vec<&str> =
        list.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';')).collect();
    assert!(modules.len() > 10);
    for (position, module) in modules.iter().enumerate() {
        let mut files = vec![root.join(format!("{module}.rs"))];
        if root.join(module).is_dir() {
            files.extend(sources(&root.join(module)));
        }
        for file in files {
            let code = code(&file);
            let together = grouped(&code);
            for below in &modules[position + 1..] {
                let uses = code.contains(&format!("crate::{below}::"))
                    || code.contains(&format!("crate::{below};"))
                    || together.contains(below);
                assert!(!uses, "{} uses {below}, which is below it in lib.rs", file.display());
            }
        }
    }
}

#[test]
fn nothing_unfinished_is_left_in_the_code() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for path in sources(&root.join("src")).into_iter().chain(sources(&root.join("bin"))) {
        let code = code(&path);
        for word in [".unwrap()", "todo!(", "unimplemented!(", "dbg!("] {
            assert!(!code.contains(word), "{} has {word}", path.display());
        }
    }
}

#[test]
fn every_migration_is_part_of_the_build() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let listed = fs::read_to_string(root.join("src/store/schema.rs")).unwrap();
    for entry in fs::read_dir(root.join("migrations")).unwrap().map(Result::unwrap) {
        let name = entry.file_name().into_string().unwrap();
        assert!(listed.contains(&format!("include_str!(\"../../migrations/{name}\")")), "{name}");
    }
}
