//! Rules of the house that no compiler checks.

mod imports;
mod source;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use syn::spanned::Spanned;
use syn::visit::{self, Visit};
use syn::{Item, Visibility};

pub(super) use source::{Source, sources};
use source::{complain, crates, root};

const MAX_COLUMNS: usize = 112;
const MAX_FILE_LINES: usize = 400;
const MAX_FUNCTION_LINES: usize = 70;

/// Everything that is written in Rust here.
const EVERYTHING: [&str; 6] = ["src", "bin", "tests", "benches", "crates", "examples"];

/// The largest part of the product that one folder may be, with the file of the same name.
const MAX_SHARE: f64 = 0.25;

#[test]
fn no_folder_is_more_than_a_quarter_of_the_product() {
    let mut lines: BTreeMap<String, u32> = BTreeMap::new();
    let mut all = 0;
    for Source { path, text, .. } in sources(&["src"]) {
        let count = u32::try_from(text.lines().count()).unwrap();
        let folder = path.trim_start_matches("src/").split(['/', '.']).next().unwrap().to_owned();
        *lines.entry(folder).or_default() += count;
        all += count;
    }
    for (folder, lines) in lines {
        let share = f64::from(lines) / f64::from(all);
        assert!(share <= MAX_SHARE, "src/{folder} has {lines} of {all} lines");
    }
}

/// Functions that are longer than they may be.
struct Functions<'a> {
    path: &'a str,
    complaints: &'a mut Vec<String>,
}

impl Functions<'_> {
    fn look(&mut self, signature: &syn::Signature, body: &syn::Block) {
        let lines = body.span().end().line - signature.span().start().line + 1;
        if lines > MAX_FUNCTION_LINES {
            self.complaints.push(format!("{}: {} has {lines} lines", self.path, signature.ident));
        }
    }
}

impl<'ast> Visit<'ast> for Functions<'_> {
    fn visit_item_fn(&mut self, function: &'ast syn::ItemFn) {
        self.look(&function.sig, &function.block);
        visit::visit_item_fn(self, function);
    }

    fn visit_impl_item_fn(&mut self, function: &'ast syn::ImplItemFn) {
        self.look(&function.sig, &function.block);
        visit::visit_impl_item_fn(self, function);
    }
}

#[test]
fn files_functions_and_lines_have_a_length_that_can_be_read() {
    let mut complaints = Vec::new();
    for Source { path, text, syntax } in sources(&EVERYTHING) {
        let lines = text.lines().count();
        if lines > MAX_FILE_LINES {
            complaints.push(format!("{path} has {lines} lines"));
        }
        for (number, line) in text.lines().enumerate() {
            let columns = line.chars().count();
            if columns > MAX_COLUMNS {
                complaints.push(format!("{path}:{} has {columns} columns", number + 1));
            }
        }
        Functions { path: &path, complaints: &mut complaints }.visit_file(&syntax);
    }
    complain("files, functions and lines are short", &complaints);
}

/// Names that stand for several types of one crate, with the reason.
const SHARED_NAMES: [(&str, &str); 3] = [
    ("Command", "each program has commands of its own, and only its folder sees them"),
    ("Delta", "each backend has its own, in the numbers that its rows have"),
    ("Rule", "each backend has its own, in the numbers that its rows have"),
];

/// The types that a file defines outside its functions, and who sees them.
fn types(syntax: &syn::File) -> impl Iterator<Item = (String, &Visibility)> {
    syntax.items.iter().filter_map(|item| {
        let (name, visibility) = match item {
            Item::Struct(item) => (&item.ident, &item.vis),
            Item::Enum(item) => (&item.ident, &item.vis),
            Item::Trait(item) => (&item.ident, &item.vis),
            Item::Type(item) => (&item.ident, &item.vis),
            _ => return None,
        };
        Some((name.to_string(), visibility))
    })
}

#[test]
fn a_name_that_others_see_is_one_type_of_its_crate() {
    let (mut complaints, mut excused) = (Vec::new(), BTreeSet::new());
    for folder in crates() {
        // A name that no other file sees may be used again.
        let mut found: BTreeMap<String, (Vec<String>, bool)> = BTreeMap::new();
        for Source { path, syntax, .. } in sources(&[&folder]) {
            for (name, visibility) in types(&syntax) {
                let (paths, seen) = found.entry(name).or_default();
                paths.push(path.clone());
                *seen |= !matches!(visibility, Visibility::Inherited);
            }
        }
        for (name, (paths, seen)) in found {
            match SHARED_NAMES.iter().find(|(shared, _)| *shared == name) {
                Some((shared, _)) if paths.len() > 1 => drop(excused.insert(*shared)),
                None if paths.len() > 1 && seen => complaints.push(format!("{name}: {paths:?}")),
                _ => {}
            }
        }
    }
    complain("a name that others see is one type of its crate", &complaints);
    assert_eq!(excused.len(), SHARED_NAMES.len(), "only {excused:?} are shared");
}

#[test]
fn no_two_public_types_share_a_name() {
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for Source { path, syntax, .. } in sources(&["src", "crates"]) {
        for (name, visibility) in types(&syntax) {
            if matches!(visibility, Visibility::Public(_)) {
                found.entry(name).or_default().push(path.clone());
            }
        }
    }
    found.retain(|_, paths| paths.len() > 1);
    let complaints: Vec<String> = found.iter().map(|(name, paths)| format!("{name}: {paths:?}")).collect();
    complain("one name is one thing", &complaints);
}

#[test]
fn nothing_unfinished_is_left_in_the_code() {
    let mut complaints = Vec::new();
    for Source { path, text, .. } in sources(&["src", "bin", "crates/catchall-load/src"]) {
        if path.ends_with("tests.rs") {
            continue;
        }
        let code = text.split("#[cfg(test)]").next().unwrap();
        let code = code.lines().filter(|line| !line.trim_start().starts_with("//"));
        for (number, line) in code.enumerate() {
            for word in [".unwrap()", "todo!(", "unimplemented!(", "dbg!("] {
                if line.contains(word) {
                    complaints.push(format!("{path}, line {} of code: {word}", number + 1));
                }
            }
        }
    }
    complain("nothing is unfinished, and nothing is unwrapped", &complaints);
}

#[test]
fn every_migration_is_part_of_the_build() {
    for (schema, folder) in
        [("src/store/schema.rs", "migrations"), ("src/store/sqlite/schema.rs", "migrations/sqlite")]
    {
        let up = "../".repeat(schema.matches('/').count());
        let schema = fs::read_to_string(root().join(schema)).unwrap();
        let entries = fs::read_dir(root().join(folder)).unwrap().map(Result::unwrap);
        for entry in entries.filter(|entry| entry.path().is_file()) {
            let name = entry.file_name().into_string().unwrap();
            assert!(schema.contains(&format!("include_str!(\"{up}{folder}/{name}\")")), "{name}");
        }
    }
}
