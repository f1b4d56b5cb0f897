//! The Dockerfile, compared with what it packs: no container engine runs in the tests.

use std::collections::BTreeSet;

use crate::compose::{PROGRAMS, by_default, members, setting, text};

const DOCKERFILE: &str = include_str!("../../Dockerfile");
const IGNORED: &str = include_str!("../../.dockerignore");
const MANIFEST: &str = include_str!("../../Cargo.toml");

/// The stage that builds and the one that runs, without comments, each instruction on a line of its own.
fn stages() -> (String, String) {
    let lines = DOCKERFILE.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    let joined = lines.collect::<Vec<_>>().join("\n").replace("\\\n", " ");
    let (build, image) = joined.split_once("\nFROM debian:").expect("two stages");
    (build.split(' ').filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" "), image.to_owned())
}

#[test]
fn the_image_holds_the_programs_of_this_crate() {
    let (build, image) = stages();
    let (base, _) = build.strip_prefix("FROM rust:").unwrap().split_once(" AS build\n").unwrap();
    let (rust, debian) = base.split_once('-').unwrap();
    let minor = |version: &str| version.split('.').nth(1).unwrap().parse::<u32>().unwrap();
    assert!(minor(rust) >= minor(setting(MANIFEST, "rust-version")), "Rust {rust} is too old");
    assert!(image.starts_with(&format!("{debian}-slim\n")), "the C library is that of another Debian");
    // Every program there is: no list to forget one in.
    let install =
        |path| format!(" && cargo install --locked --profile dist --path {path} --root /out --no-track");
    let install = [".", "crates/catchall-load"].map(install).concat();
    assert!(build.ends_with(&format!("touch src/lib.rs bin/*.rs crates/*/src/*.rs{install}")), "{build}");
    assert!(image.contains("\nCOPY --from=build /out/bin/ /usr/local/bin/\n"), "{image}");
    for program in PROGRAMS {
        assert!(MANIFEST.contains(&format!("[[bin]]\nname = \"catchall-{program}\"\npath = \"bin/")));
    }
    for (label, key) in [("description", "description"), ("licenses", "license")] {
        let label = format!("org.opencontainers.image.{label}=\"{}\"", setting(MANIFEST, key));
        assert!(image.contains(&label), "no {label}");
    }
    let (_, user) = image.split_once("\nUSER ").expect("a user");
    let user = user.lines().next().unwrap();
    assert!(user.split(':').all(|id| id.parse::<u32>().unwrap() > 0), "{user} could be root");
    for instruction in ["ENTRYPOINT", "ARG", "ENV"] {
        assert!(!image.contains(&format!("\n{instruction}")), "{instruction} in the image");
    }
}

#[test]
fn the_image_serves_the_standalone_by_default_with_its_data_in_a_directory_of_its_own() {
    let (_, image) = stages();
    let command = image.lines().find_map(|line| line.strip_prefix("CMD ")).unwrap();
    let command: Vec<String> = serde_json::from_str(command).unwrap();
    assert_eq!(command[0], "catchall");
    // The arguments are those of the program, which then finds that there is no such directory.
    let arguments: Vec<&str> = command[1..].iter().map(String::as_str).collect();
    let arguments: Vec<&str> = arguments
        .iter()
        .map(|argument| if argument.starts_with("/data/") { "/missing/catchall.db" } else { argument })
        .collect();
    let (status, _, said) = harness::processes::run("standalone", &arguments, &[("CATCHALL_OPEN", "yes")]);
    assert_eq!(status.code(), Some(10), "{said}");
    let (status, _, said) = harness::processes::run("standalone", &arguments, &[]);
    assert_eq!(status.code(), Some(2), "{said}");
    assert!(said.contains("CATCHALL_TOKENS"), "{said}");
    let data = command.iter().find(|argument| argument.starts_with("/data/"));
    assert!(data.is_some(), "{command:?}");
    let (_, user) = image.split_once("\nUSER ").unwrap();
    let (user, group) = user.lines().next().unwrap().split_once(':').unwrap();
    assert!(image.contains(&format!("\nRUN install -d -m 700 -o {user} -g {group} /data\n")));
    assert!(image.contains("\nEXPOSE 8080 9080"));
}

#[test]
fn the_image_is_built_once_and_from_all_it_takes() {
    let compose = by_default();
    let building = members(&compose["services"]).filter(|(_, service)| service.get("build").is_some());
    assert_eq!(
        building.map(|(name, service)| (name, text(&service["build"]))).collect::<Vec<_>>(),
        [("migrate", ".")]
    );
    for program in PROGRAMS {
        assert_eq!(compose["services"][program]["pull_policy"], "never", "{program} may be somebody else's");
    }
    let ignored: BTreeSet<&str> = IGNORED.lines().filter(|line| !line.starts_with('#')).collect();
    assert!(
        ignored.is_superset(&["/.dev", "/.git", "/target"].into()),
        "they would all be sent to the engine"
    );
    for entry in std::fs::read_dir(env!("CARGO_MANIFEST_DIR")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let unneeded =
            name.starts_with('.') || ["target", "Dockerfile", "docker-compose.yml"].contains(&&*name);
        assert!(unneeded || !ignored.contains(&*format!("/{name}")), "the build needs {name}");
    }
    assert!(ignored.iter().all(|path| path.starts_with('/') && !path.contains('*')), "{ignored:?}");
}
