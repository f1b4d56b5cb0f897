//! Licences and sources of the dependencies, compared with `deny.toml`, and the workflow of the public forge.

use std::collections::BTreeSet;
use std::env::consts::ARCH;
use std::process::Command;

use serde_json::Value;

const DENY: &str = include_str!("../../deny.toml");
const WORKFLOW: &str = include_str!("../../.github/workflows/ci.yml");
const DOCKERFILE: &str = include_str!("../../Dockerfile");

/// The strings of a list in `deny.toml`.
fn list(name: &str) -> BTreeSet<&'static str> {
    let (_, list) = DENY.split_once(&format!("\n{name} = [")).unwrap_or_else(|| panic!("no list {name}"));
    list.split_once(']').unwrap().0.split('"').skip(1).step_by(2).collect()
}

/// Whether an SPDX expression can be met by licences that are allowed. Old manifests write "or" as a slash.
fn is_allowed(expression: &str, allowed: &BTreeSet<&str>) -> bool {
    let spaced =
        expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ").replace(" WITH ", "-WITH-");
    let mut words = spaced.split_whitespace().rev().collect::<Vec<_>>();
    let met = any(&mut words, allowed);
    assert!(words.is_empty(), "{expression}");
    met
}

fn any(words: &mut Vec<&str>, allowed: &BTreeSet<&str>) -> bool {
    let mut met = all(words, allowed);
    while words.pop_if(|word| *word == "OR").is_some() {
        met |= all(words, allowed);
    }
    met
}

fn all(words: &mut Vec<&str>, allowed: &BTreeSet<&str>) -> bool {
    let mut met = one(words, allowed);
    while words.pop_if(|word| *word == "AND").is_some() {
        met &= one(words, allowed);
    }
    met
}

fn one(words: &mut Vec<&str>, allowed: &BTreeSet<&str>) -> bool {
    match words.pop().expect("a licence") {
        "(" => {
            let met = any(words, allowed);
            assert_eq!(words.pop(), Some(")"));
            met
        }
        licence => allowed.contains(licence),
    }
}

#[test]
fn expressions_are_understood() {
    let allowed = BTreeSet::from(["MIT", "ISC"]);
    for (expression, expected) in [
        ("MIT", true),
        ("GPL-3.0", false),
        ("GPL-3.0 OR MIT", true),
        ("Apache-2.0/MIT", true),
        ("MIT AND GPL-3.0", false),
        ("ISC AND (GPL-3.0 OR MIT)", true),
        ("(MIT OR GPL-3.0) AND GPL-3.0", false),
        ("MIT WITH LLVM-exception OR GPL-3.0", false),
    ] {
        assert_eq!(is_allowed(expression, &allowed), expected, "{expression}");
    }
}

#[test]
fn one_provider_does_all_cryptography() {
    // Unlike the metadata, the tree leaves out what no feature asks for.
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--workspace", "--locked", "--prefix", "none", "--format", "{p}"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    let tree = String::from_utf8(output.stdout).unwrap();
    let names: BTreeSet<&str> = tree.lines().filter_map(|package| package.split(' ').next()).collect();
    assert!(names.contains("ring"), "{tree}");
    for other in ["aws-lc-rs", "openssl", "rustls-openssl", "boring", "native-tls"] {
        assert!(!names.contains(other), "{other} would be a second one");
    }
}

#[test]
fn the_fuzzing_has_a_lock_file_that_is_current() {
    // It is a workspace of its own, and `cargo update` of this one does not touch it.
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked", "--manifest-path", "fuzz/Cargo.toml"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "cargo update --workspace --manifest-path fuzz/Cargo.toml: {told}");
}

/// Only `./dev fuzz` compiles the driver, because it needs libFuzzer.
#[test]
fn the_driver_of_the_fuzzing_imports_what_there_is() {
    let (driver, targets) = (include_str!("../../fuzz/src/main.rs"), include_str!("../../src/fuzzing.rs"));
    let (_, names) = driver.split_once("use catchall::fuzzing::{").unwrap();
    let (names, _) = names.split_once("};").unwrap();
    for name in names.split(", ") {
        let is_public = |kind| targets.contains(&format!("\npub {kind} {name}"));
        assert!(is_public("type") || is_public("const"), "src/fuzzing.rs has no {name}");
    }
}

#[test]
fn every_dependency_has_a_licence_and_a_source_that_are_allowed() {
    let platform = format!("{ARCH}-unknown-linux-gnu");
    assert!(list("targets").contains(&*platform));
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked", "--filter-platform", &platform])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let ids = |list: &Value, member: Option<&str>| -> BTreeSet<String> {
        let items = list.as_array().unwrap().iter();
        let id = |item: &Value| member.map_or(item, |member| &item[member]).as_str().unwrap().to_owned();
        items.map(id).collect()
    };
    let used = ids(&metadata["resolve"]["nodes"], Some("id"));
    let ours = ids(&metadata["workspace_members"], None);
    let others: Vec<Value> = metadata["packages"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|package| used.contains(package["id"].as_str().unwrap()))
        .filter(|package| !ours.contains(package["id"].as_str().unwrap()))
        .cloned()
        .collect();
    assert!(others.len() > 100);
    let (licences, registries) = (list("allow"), list("allow-registry"));
    let unmet = |allowed: &BTreeSet<&str>| {
        let licence = |package: &Value| package["license"].as_str().unwrap_or("none").to_owned();
        let unmet = others.iter().filter(|package| !is_allowed(&licence(package), allowed));
        unmet.map(|package| format!("{} {}", package["name"], licence(package))).collect::<Vec<_>>()
    };
    assert_eq!(unmet(&licences), Vec::<String>::new());
    for licence in &licences {
        let mut fewer = licences.clone();
        fewer.remove(licence);
        assert!(!unmet(&fewer).is_empty(), "no dependency needs {licence}");
    }
    for package in &others {
        let registry = package["source"].as_str().and_then(|source| source.strip_prefix("registry+"));
        assert!(registry.is_some_and(|registry| registries.contains(registry)), "{}", package["id"]);
    }
}

#[test]
fn the_workflow_runs_all_there_is_to_run_with_pinned_actions() {
    let workflow: Value = serde_saphyr::from_str(WORKFLOW).unwrap();
    assert_eq!(workflow["permissions"]["contents"], "read");
    let job = &workflow["jobs"]["all"];
    let version = |image: &str| image.split_once("rust:").unwrap().1.split_once('-').unwrap().0.to_owned();
    assert_eq!(version(job["container"].as_str().unwrap()), version(DOCKERFILE));
    let steps = job["steps"].as_array().unwrap();
    assert_eq!(steps.last().unwrap()["run"], ".ci/run");
    for action in steps.iter().filter_map(|step| step["uses"].as_str()) {
        let (_, commit) = action.split_once('@').unwrap();
        assert!(commit.len() == 40 && commit.bytes().all(|digit| digit.is_ascii_hexdigit()), "{action}");
    }
}
