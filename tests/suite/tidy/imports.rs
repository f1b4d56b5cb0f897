//! Who may use what: vendors' crates, modules, files.

use std::collections::{BTreeMap, BTreeSet};

use syn::visit::{self, Visit};
use syn::{Attribute, Item, UseTree, Visibility};

use super::source::{Source, complain, crates, sources};

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
fn module_of(path: &str, folder: &str) -> Vec<String> {
    let path = path[folder.len() + 1..].trim_end_matches(".rs");
    if matches!(path, "lib" | "main") { Vec::new() } else { path.split('/').map(str::to_owned).collect() }
}

/// Each file of a crate, with the others that it uses.
fn imports_of(folder: &str) -> BTreeMap<String, BTreeSet<String>> {
    let mut sources = sources(&[folder]);
    let (library, program) = (format!("{folder}/lib.rs"), format!("{folder}/main.rs"));
    if sources.iter().any(|source| source.path == library) {
        // A crate of its own, which uses the library by its name.
        sources.retain(|source| source.path != program);
    }
    let files: BTreeMap<Vec<String>, &str> =
        sources.iter().map(|source| (module_of(&source.path, folder), source.path.as_str())).collect();
    let mut imports: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for Source { path, syntax, .. } in &sources {
        let own = module_of(path, folder);
        for used in Paths::of(syntax) {
            let ups = used.iter().take_while(|segment| *segment == "super").count();
            let mut module = match used[0].as_str() {
                "crate" => used[1..].to_vec(),
                _ if ups > 0 => [&own[..own.len().saturating_sub(ups)], &used[ups..]].concat(),
                // A child, or a name of another crate.
                _ => [&own[..], &used].concat(),
            };
            // The longest beginning of the path that is a file.
            while !module.is_empty() && !files.contains_key(&module) {
                module.pop();
            }
            if let Some(used) = files.get(&module).filter(|used| *used != path) {
                imports.entry(path.clone()).or_default().insert((*used).to_owned());
            }
        }
    }
    imports
}

#[test]
fn no_files_import_each_other_in_a_circle() {
    let mut complaints = Vec::new();
    for folder in crates() {
        let imports = imports_of(&folder);
        for start in imports.keys() {
            let (mut reached, mut next) = (BTreeSet::new(), vec![start]);
            while let Some(file) = next.pop() {
                next.extend(imports.get(file).into_iter().flatten().filter(|used| reached.insert(*used)));
            }
            if reached.contains(start) {
                complaints.push(format!("{start}, which imports {:?}", imports[start]));
            }
        }
    }
    complain("no file imports itself by way of others", &complaints);
}
