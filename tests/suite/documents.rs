//! What the documents say, compared with what is.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::process::Command;
use std::time::{Duration, Instant};

use catchall::batch::Batch;
use catchall::broker::{DEAD, EVENTS};
use catchall::event::{Event, IdempotencyKey, MAX_COUNT, Outcome};
use harness::processes::{Service, binary, run};
use harness::servers::{Servers, topology};

const README: &str = include_str!("../../README.md");
const ARCHITECTURE: &str = include_str!("../../ARCHITECTURE.md");

/// How long counters may take to be at the replica.
const MOMENT: Duration = Duration::from_mins(1);

/// The text between two headings.
fn section<'a>(document: &'a str, from: &str, to: &str) -> &'a str {
    let (_, rest) = document.split_once(from).unwrap_or_else(|| panic!("no {from:?}"));
    rest.split_once(to).unwrap_or_else(|| panic!("no {to:?} after {from:?}")).0
}

/// The fenced blocks of one language.
fn blocks<'a>(document: &'a str, language: &str) -> Vec<&'a str> {
    let fence = format!("```{language}\n");
    document
        .split(&*fence)
        .skip(1)
        .map(|rest| rest.split_once("```").expect("an end of the block").0)
        .collect()
}

/// The commands of console blocks, each with what it prints. A command goes on to the end of its
/// here-document.
fn transcript(document: &str) -> Vec<(String, String)> {
    let mut steps: Vec<(String, String)> = Vec::new();
    for block in blocks(document, "console") {
        let mut here_document = false;
        for line in block.lines() {
            if let Some(command) = line.strip_prefix("$ ") {
                here_document = command.ends_with("<<'END'");
                steps.push((command.to_owned(), String::new()));
            } else {
                let (command, printed) = steps.last_mut().expect("a block begins with a command");
                let text = if here_document { command } else { printed };
                writeln!(text, "{}{line}", if here_document { "\n" } else { "" }).unwrap();
                here_document = here_document && line != "END";
            }
        }
    }
    steps
}

#[tokio::test]
async fn the_walkthrough_prints_what_it_says() {
    let servers = Servers::fresh().await;
    let ingest = Service::ready("ingest", &servers, &[]).await;
    let _worker = Service::ready("worker", &servers, &[]).await;
    let query = Service::ready("query", &servers, &[]).await;
    let steps = transcript(section(README, "## Use it", "### Publish to the broker directly"));
    assert!(steps.len() >= 9, "{steps:?}");
    for (command, printed) in steps {
        let expected = (printed, String::new());
        let run = || {
            let output = Command::new("bash")
                .args(["-c", &command])
                .env("CATCHALL_INGEST_URL", ingest.url())
                .env("CATCHALL_QUERY_URL", query.url())
                .output()
                .unwrap();
            (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
        };
        let mut output = run();
        // The moment after which counters are at the replica is longer on a machine that does ten other
        // things.
        let begun = Instant::now();
        while output != expected && command.contains("$CATCHALL_QUERY_URL") && begun.elapsed() < MOMENT {
            tokio::time::sleep(Duration::from_millis(100)).await;
            output = run();
        }
        assert_eq!(output, expected, "{command}");
    }
}

#[tokio::test]
async fn the_commands_for_dead_letters_are_valid() {
    let servers = Servers::fresh().await;
    let (_, help, _) = run("dead", &["--help"], &[]);
    let examples = help.lines().filter_map(|line| line.strip_prefix("  catchall-dead "));
    // What is behind a pipe is another program's.
    let examples = examples.map(|example| example.split(" | ").next().unwrap().to_owned());
    let steps = transcript(section(README, "### Dead letters", "### Configuration"));
    let steps = steps.iter().map(|(command, _)| command.strip_prefix("catchall-dead ").unwrap().to_owned());
    let commands: Vec<String> = examples.chain(steps).collect();
    assert!(commands.len() >= 10, "{commands:?}");
    for command in commands {
        let output = Command::new("bash")
            .args(["-c", &format!("exec {} {command}", binary("dead"))])
            .env("CATCHALL_AMQP_URL", &servers.amqp_url)
            .env("CATCHALL_DATABASE_URL", &servers.database_url)
            .output()
            .unwrap();
        let unknown = command.contains("3f2a9c1b04de");
        assert_eq!(output.status.code(), Some(i32::from(unknown)), "{command}: {output:?}");
    }
}

#[test]
fn the_broker_refuses_what_the_workers_would_not_read_and_nothing_of_ours() {
    let conf = include_str!("../../rabbitmq/rabbitmq.conf");
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
    let samples = blocks(README, "json");
    assert!(!samples.is_empty());
    for sample in samples {
        Batch::from_json(sample.as_bytes()).unwrap_or_else(|error| panic!("{sample}: {error}"));
    }
    let python = blocks(README, "python").concat();
    assert!(
        python.contains(&format!("exchange=\"{EVENTS}\"")) && python.contains("application/json"),
        "{python}"
    );
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
    let programs = ["ingest", "worker", "query", "migrate", "dead"];
    let table = section(README, "### Configuration", "\n## ");
    let rows = table.lines().filter_map(|line| line.strip_prefix("| `")).map(|row| {
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
                let of_variable = help.split(&*format!("[env: {variable}")).nth(1).unwrap_or_default();
                let of_variable = of_variable.split("[env: ").next().unwrap();
                let given = of_variable.split("[default: ").nth(1).and_then(|rest| rest.split(']').next());
                defaults.insert(given.unwrap_or("required").to_owned());
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
fn the_code_map_is_that_of_the_crate() {
    let listed: Vec<&str> = section(ARCHITECTURE, "## Code map", "\n## ")
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split('|').next())
        .flat_map(|cell| cell.split(',').map(|module| module.trim_matches([' ', '`'])))
        .collect();
    let modules: Vec<&str> = include_str!("../../src/lib.rs")
        .lines()
        .filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';'))
        .collect();
    assert_eq!(listed, modules);
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
