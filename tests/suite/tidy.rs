//! Rules of the house that no compiler checks.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use syn::spanned::Spanned;
use syn::visit::{self, Visit};
use syn::{Attribute, Item, UseTree, Visibility};

const MAX_COLUMNS: usize = 112;
const MAX_FILE_LINES: usize = 400;
const MAX_FUNCTION_LINES: usize = 70;

/// Who may name a vendor's crate: one folder or file for each.
const DOORS: [(&str, &str); 13] = [
    ("lapin", "src/broker"),
    ("async_rs", "src/broker"),
    ("sqlx", "src/store"),
    ("hyper_util", "src/http"),
    ("governor", "src/http/access"),
    ("ipnet", "src/http/access"),
    ("base64", "src/http/access"),
    ("maud", "src/query/page"),
    ("tower_http", "src/http"),
    ("idna", "src/domain_name"),
    ("compact_str", "src/domain_name"),
    ("backon", "src/backoff"),
    ("tracing_subscriber", "src/telemetry"),
];

/// The largest part of the product that one folder may be, with the file of the same name.
const MAX_SHARE: f64 = 0.25;

/// A file of Rust.
pub(super) struct Source {
    /// Its path from the top of the repository.
    pub(super) path: String,
    pub(super) text: String,
    syntax: syn::File,
}

fn root() -> &'static Path {
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
pub(super) fn sources(folders: &[&str]) -> Vec<Source> {
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

/// Everything that is written in Rust here.
const EVERYTHING: [&str; 6] = ["src", "bin", "tests", "benches", "crates", "examples"];

fn complain(rule: &str, complaints: &[String]) {
    assert!(complaints.is_empty(), "{rule}:\n{}", complaints.join("\n"));
}

fn is_test(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("cfg")
            && matches!(&attribute.meta, syn::Meta::List(list) if list.tokens.to_string() == "test")
    })
}

/// Each path that a file names outside its tests, as its segments.
#[derive(Default)]
struct Paths(Vec<Vec<String>>);

impl Paths {
    fn of(syntax: &syn::File) -> Vec<Vec<String>> {
        let mut paths = Self::default();
        paths.visit_file(syntax);
        paths.0
    }

    fn add(&mut self, tree: &UseTree, before: &[String]) {
        let with = |name: &syn::Ident| [before, &[name.to_string()]].concat();
        match tree {
            UseTree::Path(path) => self.add(&path.tree, &with(&path.ident)),
            UseTree::Name(name) if name.ident == "self" => self.0.push(before.to_vec()),
            UseTree::Name(name) => self.0.push(with(&name.ident)),
            UseTree::Rename(rename) => self.0.push(with(&rename.ident)),
            UseTree::Glob(_) => self.0.push(before.to_vec()),
            UseTree::Group(group) => group.items.iter().for_each(|tree| self.add(tree, before)),
        }
    }
}

impl<'ast> Visit<'ast> for Paths {
    fn visit_item_mod(&mut self, module: &'ast syn::ItemMod) {
        if !is_test(&module.attrs) {
            visit::visit_item_mod(self, module);
        }
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.add(&item.tree, &[]);
    }

    /// Who may see an item says nothing about what the file uses.
    fn visit_visibility(&mut self, _: &'ast Visibility) {}

    fn visit_path(&mut self, path: &'ast syn::Path) {
        self.0.push(path.segments.iter().map(|segment| segment.ident.to_string()).collect());
        visit::visit_path(self, path);
    }
}

#[test]
fn imports_are_seen_in_every_form() {
    let code = "use crate::{broker, ledger::{self, Ledger as L}, http::*};
        mod inner { use super::x; pub(in crate::door) fn f() { crate::deep::call::<crate::Argument>() } }
        #[cfg(test)] mod tests { use crate::only_in_tests; }";
    let paths = Paths::of(&syn::parse_file(code).unwrap());
    let mut joined: Vec<String> = paths.iter().map(|path| path.join("::")).collect();
    joined.retain(|path| path.contains("::"));
    joined.sort();
    let expected = [
        "crate::Argument",
        "crate::broker",
        "crate::deep::call",
        "crate::http",
        "crate::ledger",
        "crate::ledger::Ledger",
        "super::x",
    ];
    assert_eq!(joined, expected);
}

#[test]
fn each_vendor_has_one_door() {
    let mut complaints = Vec::new();
    for Source { path, syntax, .. } in sources(&["src", "bin"]) {
        for (vendor, door) in DOORS {
            let names = Paths::of(&syntax).iter().any(|path| path[0] == vendor);
            if names && !path.starts_with(door) {
                complaints.push(format!("{path} names {vendor}, which only {door} may"));
            }
        }
    }
    complain("each vendor's crate has one door", &complaints);
}

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

/// The modules of `lib.rs`, in their order.
fn modules() -> Vec<String> {
    let library = sources(&["src"]).into_iter().find(|source| source.path == "src/lib.rs").unwrap();
    let modules = library.syntax.items.iter().filter_map(|item| match item {
        Item::Mod(module) => Some(module.ident.to_string()),
        _ => None,
    });
    modules.collect()
}

#[test]
fn a_module_uses_only_those_above_it() {
    let modules = modules();
    let position = |name: &str| modules.iter().position(|module| module == name);
    assert!(modules.len() > 10, "{modules:?}");
    let mut complaints = Vec::new();
    for Source { path, syntax, .. } in sources(&["src"]) {
        let own = path.trim_start_matches("src/").split(['/', '.']).next().unwrap().to_owned();
        let Some(own) = position(&own) else { continue };
        for used in Paths::of(&syntax).iter().filter(|path| path[0] == "crate") {
            if used.get(1).and_then(|name| position(name)).is_some_and(|used| used > own) {
                complaints.push(format!("{path} uses {}, which is below it in lib.rs", used[1]));
            }
        }
    }
    complain("a module uses only those above it", &complaints);
}

/// The module that a file is, as in `broker::publisher`.
fn module_of(path: &str) -> Vec<String> {
    let path = path.trim_start_matches("src/").trim_end_matches(".rs");
    if path == "lib" { Vec::new() } else { path.split('/').map(str::to_owned).collect() }
}

#[test]
fn no_files_import_each_other_in_a_circle() {
    let sources = sources(&["src"]);
    let files: BTreeMap<Vec<String>, &str> =
        sources.iter().map(|source| (module_of(&source.path), source.path.as_str())).collect();
    let mut imports: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for Source { path, syntax, .. } in &sources {
        let own = module_of(path);
        for used in Paths::of(syntax) {
            let mut module = match used[0].as_str() {
                "crate" => Vec::new(),
                "super" => own[..own.len().saturating_sub(1)].to_vec(),
                // A child, or a name of another crate.
                _ => own.clone(),
            };
            let rest: Vec<String> = match used[0].as_str() {
                "crate" => used[1..].to_vec(),
                "super" => {
                    let ups = used.iter().take_while(|segment| *segment == "super").count();
                    module.truncate(own.len().saturating_sub(ups));
                    used[ups..].to_vec()
                }
                _ => used,
            };
            module.extend(rest);
            // The longest beginning of the path that is a file.
            while !module.is_empty() && !files.contains_key(&module) {
                module.pop();
            }
            if let Some(used) = files.get(&module).filter(|used| *used != path && **used != "src/lib.rs") {
                imports.entry(path).or_default().insert(used);
            }
        }
    }
    let mut complaints = Vec::new();
    for start in imports.keys() {
        let (mut reached, mut next) = (BTreeSet::new(), vec![*start]);
        while let Some(file) = next.pop() {
            for used in imports.get(file).into_iter().flatten().filter(|used| reached.insert(**used)) {
                next.push(used);
            }
        }
        if reached.contains(start) {
            complaints.push(format!("{start}, which imports {:?}", imports[start]));
        }
    }
    complain("no file imports itself by way of others", &complaints);
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

#[test]
fn no_two_public_types_share_a_name() {
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let folders = ["src", "crates"];
    for Source { path, syntax, .. } in sources(&folders) {
        for item in &syntax.items {
            let (name, visibility) = match item {
                Item::Struct(item) => (&item.ident, &item.vis),
                Item::Enum(item) => (&item.ident, &item.vis),
                Item::Trait(item) => (&item.ident, &item.vis),
                Item::Type(item) => (&item.ident, &item.vis),
                _ => continue,
            };
            if matches!(visibility, Visibility::Public(_)) {
                found.entry(name.to_string()).or_default().push(path.clone());
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
