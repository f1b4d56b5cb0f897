//! The tables, lists and samples of the pages.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use catchall::batch::Batch;
use catchall::broker::{DEAD, EVENTS};
use catchall::event::{Event, MAX_COUNT, Outcome};
use catchall::http::ProblemType;
use catchall::idempotency_key::IdempotencyKey;
use harness::processes::run;
use harness::servers::topology;

use super::prose::sources;
use super::{API, ARCHITECTURE, CONFIGURATION, OPERATING, blocks, section};

#[test]
fn the_broker_refuses_what_the_workers_would_not_read_and_nothing_of_ours() {
    let conf = include_str!("../../../rabbitmq/rabbitmq.conf");
    let refused = conf.lines().find_map(|line| line.strip_prefix("max_message_size = ")).unwrap();
    let largest: usize = refused.parse().unwrap();
    for program in ["worker", "dead"] {
        let help = help(program);
        let (_, limit) = help.split_once("[env: CATCHALL_MAX_MESSAGE_BYTES=]").unwrap();
        let (_, limit) = limit.split_once("[default: ").unwrap();
        assert_eq!(limit.split_once(']').unwrap().0, refused, "{program}");
    }
    // As large as ingest can make one: its events are written a thousand at a time.
    let label = "x".repeat(60);
    let mut batch = Batch::default();
    for number in 0..1000 {
        let domain = format!("{label}.{label}.{label}.{label}.d{number:05}");
        assert_eq!(domain.len(), 250);
        batch.record(Event {
            domain: domain.parse().unwrap(),
            outcome: Outcome::Delivered,
            count: MAX_COUNT,
            key: Some(IdempotencyKey::fresh()),
        });
    }
    let bodies = batch.to_json();
    assert_eq!(bodies.len(), 1);
    // The least that a worker may be told to read.
    assert!(bodies[0].len() < 512 << 10 && 512 << 10 <= largest, "{}", bodies[0].len());
}

#[test]
fn the_samples_of_messages_can_be_read() {
    let samples = blocks(API, "json");
    assert!(samples.len() >= 2);
    for sample in samples {
        let batch = Batch::from_json(sample.as_bytes()).unwrap_or_else(|error| panic!("{sample}: {error}"));
        assert!(!batch.is_empty(), "{sample}");
    }
}

/// The help of a program and of its commands.
fn help(program: &str) -> String {
    let (_, mut help, _) = run(program, &["--help"], &[]);
    if let Some((_, commands)) = help.clone().split_once("\nCommands:\n") {
        let names = commands.lines().map_while(|line| line.strip_prefix("  ")?.split(' ').next());
        for name in names.filter(|name| *name != "help") {
            help += &run(program, &[name, "--help"], &[]).1;
        }
    }
    help
}

/// The variables a program knows, from its own help.
fn variables(program: &str) -> BTreeSet<String> {
    let help = help(program);
    let named = help.split("[env: ").skip(1).filter_map(|rest| rest.split(['=', ']']).next());
    named.map(str::to_owned).collect()
}

#[test]
fn the_table_of_the_configuration_is_that_of_the_programs() {
    let programs = ["ingest", "worker", "query", "migrate", "dead", "admin", "standalone"];
    let rows = CONFIGURATION.lines().filter_map(|line| line.strip_prefix("| `")).map(|row| {
        let mut cells = row.split('|').map(str::trim);
        let variable = cells.next().unwrap().trim_end_matches('`').to_owned();
        (variable, cells.next().unwrap().to_owned(), cells.next().unwrap().to_owned())
    });
    let mut documented: Vec<BTreeSet<String>> = vec![BTreeSet::new(); programs.len()];
    for (variable, services, default) in rows {
        let mut defaults = BTreeSet::new();
        for (program, documented) in programs.iter().zip(&mut documented) {
            if services == "all" || services.split(", ").any(|service| service == *program) {
                documented.insert(variable.clone());
                let help = help(program);
                let (before, of_variable) = help.split_once(&format!("[env: {variable}")).unwrap_or_default();
                let option = before.rsplit("\n      --").next().and_then(|rest| rest.split(' ').next());
                let usages = help.lines().filter(|line| line.starts_with("Usage:"));
                let asked = option.is_some_and(|option| {
                    usages.clone().any(|usage| usage.contains(&format!(" --{option} ")))
                });
                let of_variable = of_variable.split("[env: ").next().unwrap();
                let given = of_variable.split("[default: ").nth(1).and_then(|rest| rest.split(']').next());
                defaults.insert(given.unwrap_or(if asked { "required" } else { "none" }).to_owned());
            }
        }
        if default != "one per core" {
            let stated: BTreeSet<String> = default.split(", ").map(|text| text.replace('`', "")).collect();
            let stated =
                if variable == "CATCHALL_LOG" { BTreeSet::from([default.replace('`', "")]) } else { stated };
            assert_eq!(stated, defaults, "{variable}");
        }
    }
    for (program, documented) in programs.iter().zip(documented) {
        assert_eq!(documented, variables(program), "{program}");
    }
}

#[test]
fn the_table_of_the_problems_is_that_of_the_code() {
    let rows = section(API, "\n## Problems\n", "\n## ").lines().filter_map(|line| line.strip_prefix("| `"));
    let documented: BTreeSet<(String, String)> = rows
        .map(|row| {
            let mut cells = row.split(" | ");
            let name = cells.next().unwrap().trim_end_matches('`');
            (format!("urn:catchall:problem:{name}"), cells.next().unwrap().to_owned())
        })
        .collect();
    let known = ProblemType::ALL.map(|kind| (kind.urn().to_owned(), kind.status().as_u16().to_string()));
    assert_eq!(documented, known.into());
}

/// The code of a file without its tests.
fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    text.split("#[cfg(test)]").next().unwrap().to_owned()
}

#[test]
fn the_table_of_the_metrics_is_that_of_the_programs() {
    let mut recorded = BTreeSet::new();
    for path in sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src")) {
        let code = code(&path);
        for kind in ["counter!(", "gauge!(", "histogram!("] {
            let names = code
                .split(kind)
                .skip(1)
                .filter_map(|rest| rest.trim_start().strip_prefix('"')?.split('"').next());
            recorded.extend(names.map(str::to_owned));
        }
    }
    let documented = section(OPERATING, "\n## Watch it\n", "\n## ")
        .lines()
        .filter_map(|line| line.strip_prefix("| `catchall_")?.split('`').next());
    let documented: BTreeSet<String> = documented.map(|name| format!("catchall_{name}")).collect();
    assert_eq!(documented, recorded);
}

#[test]
fn the_code_map_is_that_of_the_crate() {
    let listed: Vec<&str> = section(ARCHITECTURE, "## Code map", "\n## ")
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split('|').next())
        .flat_map(|cell| cell.split(',').map(|name| name.trim_matches([' ', '`'])))
        .filter(|name| !name.contains('/') && *name != "dev")
        .collect();
    let modules: Vec<&str> = include_str!("../../../src/lib.rs")
        .lines()
        .filter_map(|line| line.trim_start_matches("pub ").strip_prefix("mod ")?.strip_suffix(';'))
        .collect();
    assert_eq!(listed, modules);
}

/// The items of the lists in a text, each with all of its lines.
fn items(text: &str) -> Vec<String> {
    let mut items: Vec<String> = Vec::new();
    let mut open = false;
    for line in text.lines() {
        let (mark, rest) = line.split_once(' ').unwrap_or_default();
        let begins =
            mark == "-" || mark.strip_suffix('.').is_some_and(|number| number.parse::<u32>().is_ok());
        if begins {
            items.push(rest.to_owned());
        } else if open && line.starts_with(' ') {
            let item = items.last_mut().unwrap();
            *item = format!("{item} {}", line.trim_start());
        }
        open = begins || (open && line.starts_with(' '));
    }
    items
}

/// Each file that a text names, with the function whose name comes next, as in "`src/ingest.rs` `put_event`
/// does this"; without one it is empty.
fn stops(text: &str) -> Vec<(&str, &str)> {
    let parts: Vec<&str> = text.split('`').collect();
    let is_file =
        |place: &usize| place % 2 == 1 && Path::new(parts[*place]).extension().is_some_and(|it| it == "rs");
    let files = (0..parts.len()).filter(is_file);
    let function = |file: usize| parts.get(file + 2).filter(|_| parts[file + 1] == " ").copied();
    files.map(|file| (parts[file], function(file).unwrap_or_default())).collect()
}

#[test]
fn every_file_of_an_item_is_a_stop() {
    let text = "Before `src/none.rs`.\n\n1. `src/a.rs` `one` does it. `src/b.rs`\n   `two` says `three`.\n\
                - `src/c.rs` and `four`\n\n   not of an item: `src/d.rs`\n";
    let items = items(text);
    let stops: Vec<_> = items.iter().map(|item| stops(item)).collect();
    assert_eq!(stops, [vec![("src/a.rs", "one"), ("src/b.rs", "two")], vec![("src/c.rs", "")]]);
}

#[test]
fn each_stop_of_the_walks_is_a_function_of_its_file() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let entries = section(ARCHITECTURE, "\n## Entry points\n", "\n## ");
    let walks: Vec<&str> =
        section(ARCHITECTURE, "\n## Three walks\n", "\n## ").split("\n### ").skip(1).collect();
    assert_eq!(walks.len(), 3);
    for (walk, least) in walks.into_iter().zip([16, 16, 6]).chain([(entries, 18)]) {
        let items = items(walk);
        assert!(items.iter().all(|item| !stops(item).is_empty()), "{items:?}");
        let stops: Vec<_> = items.iter().flat_map(|item| stops(item)).collect();
        assert!(stops.len() >= least, "{stops:?}");
        for (file, function) in stops {
            let code = code(&root.join(file));
            let defines = |opening| code.contains(&format!("fn {function}{opening}"));
            assert!(
                !function.is_empty() && (defines('(') || defines('<')),
                "{file} defines no function {function:?}"
            );
        }
    }
}

#[test]
fn the_topology_is_the_one_the_code_relies_on() {
    let topology = topology();
    let find = |kind: &str, name: &str| {
        let objects = topology[kind].as_array().unwrap();
        objects
            .iter()
            .find(|object| object["name"] == name)
            .unwrap_or_else(|| panic!("no {name} in {kind}"))
            .clone()
    };
    for name in [EVENTS, DEAD] {
        assert_eq!(find("exchanges", name)["durable"], true);
        assert_eq!(find("queues", name)["arguments"]["x-queue-type"], "quorum");
        let bound = topology["bindings"].as_array().unwrap();
        assert!(bound.iter().any(|binding| binding["source"] == name && binding["destination"] == name));
    }
    let arguments = find("queues", EVENTS)["arguments"].clone();
    assert_eq!(arguments["x-dead-letter-exchange"], DEAD);
    assert_eq!(arguments["x-dead-letter-strategy"], "at-least-once");
    assert_eq!(arguments["x-overflow"], "reject-publish");
    assert!(arguments["x-delivery-limit"].as_u64() > Some(0));
    assert!(topology.get("users").is_none(), "importing it must not create a known password");
}
