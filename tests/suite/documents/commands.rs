//! The commands of the pages: all are run, or checked as far as they can be without running them.

use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use harness::processes::{LONG_DEADLINE, Service, binary, run};
use harness::servers::{Servers, eventually};
use harness::system::{System, data_file, directory};

use super::{API, OPERATING, PAGES, README, blocks};
use crate::compose::setting;

/// How long counters may take to be at the replica.
const MOMENT: Duration = Duration::from_mins(1);

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// What each line of a block in a list begins with.
fn indent(block: &str) -> &str {
    &block[..block.len() - block.trim_start_matches(' ').len()]
}

/// The commands of console blocks, each with what it prints. A command goes on to the end of its
/// here-document.
fn transcript(document: &str) -> Vec<(String, String)> {
    let mut steps: Vec<(String, String)> = Vec::new();
    for block in blocks(document, "console") {
        let mut here_document = false;
        for line in block.lines().map(|line| line.strip_prefix(indent(block)).unwrap_or(line)) {
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

/// The commands of a page that begin with one of these words.
fn commands(document: &str, words: &[&str]) -> Vec<(String, String)> {
    let is_one = |command: &str| words.contains(&command.split(' ').next().unwrap_or_default());
    transcript(document).into_iter().filter(|(command, _)| is_one(command)).collect()
}

/// The services of a page that is being walked through.
struct Stack {
    servers: Servers,
    ingest: Service,
    _worker: Service,
    query: Service,
}

impl Stack {
    async fn ready() -> Self {
        let servers = Servers::fresh().await;
        let ingest = Service::ready("ingest", &servers, &[LONG_DEADLINE]).await;
        let worker = Service::ready("worker", &servers, &[]).await;
        let query = Service::ready("query", &servers, &[]).await;
        Self { servers, ingest, _worker: worker, query }
    }

    /// A command of a shell that has done `eval "$(./dev env)"`.
    fn shell(&self, command: &str) -> Command {
        let mut shell = Command::new("bash");
        shell
            .args(["-c", command])
            .env("CATCHALL_INGEST_URL", self.ingest.url())
            .env("CATCHALL_QUERY_URL", self.query.url())
            .env("CATCHALL_AMQP_URL", &self.servers.amqp_url)
            .env("CATCHALL_DATABASE_URL", &self.servers.database_url);
        shell
    }

    async fn prints_what_it_says(&self, steps: &[(String, String)]) {
        for (command, printed) in steps {
            let expected = (timeless(printed), String::new());
            let run = || {
                let output = self.shell(command).output().unwrap();
                (
                    timeless(&String::from_utf8(output.stdout).unwrap()),
                    String::from_utf8(output.stderr).unwrap(),
                )
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
}

/// The text with one moment in the place of all that are written as in RFC 3339: they are others each time.
fn timeless(text: &str) -> String {
    let mut rest = text;
    let mut same = String::new();
    while let Some(place) = rest.find("20") {
        let (before, from) = rest.split_at(place);
        same.push_str(before);
        let moment = from.split(['"', '\r', '\n', ',']).next().unwrap();
        let is_moment = moment.len() >= 20 && moment.ends_with('Z') && moment.as_bytes()[10] == b'T';
        let length = if is_moment { moment.len() } else { 2 };
        same.push_str(if is_moment { "(a moment)" } else { &from[..2] });
        rest = &from[length..];
    }
    same + rest
}

#[test]
fn only_moments_differ() {
    assert_eq!(
        timeless("{\"since\":\"2026-11-28T10:47:04.125Z\",\"n\":2026}"),
        "{\"since\":\"(a moment)\",\"n\":2026}"
    );
}

#[tokio::test]
async fn the_three_commands_of_the_readme_print_what_it_says() {
    let steps = commands(README, &["curl"]);
    assert_eq!(steps.len(), 3, "{steps:?}");
    let system = System::standalone(&[]).await;
    for (command, printed) in steps {
        assert!(command.contains(" http://127.0.0.1:8080/"), "{command}");
        let command = command.replace("127.0.0.1:8080", &system.events().address());
        let output = Command::new("bash").args(["-c", &command]).output().unwrap();
        assert_eq!(timeless(&String::from_utf8(output.stdout).unwrap()), timeless(&printed), "{command}");
    }
    assert!(README.contains("\n$ cargo run --release\n"));
    assert_eq!(setting(include_str!("../../../Cargo.toml"), "default-run"), "catchall");
}

#[tokio::test]
async fn the_walkthrough_prints_the_same_with_the_standalone() {
    let system = System::standalone(&[]).await;
    for (command, printed) in commands(API, &["curl"]) {
        let url = system.events().url();
        let variables = [("CATCHALL_INGEST_URL", &url), ("CATCHALL_QUERY_URL", &url)];
        let output = Command::new("bash").args(["-c", &command]).envs(variables).output().unwrap();
        assert_eq!(timeless(&String::from_utf8(output.stdout).unwrap()), timeless(&printed), "{command}");
    }
}

#[tokio::test]
async fn the_commands_for_the_data_file_do_what_they_say() {
    let data = data_file();
    let variables = [("CATCHALL_DATA", data.to_str().unwrap())];
    let _service = Service::ready("standalone", &Servers::none(), &variables).await;
    let steps = commands(OPERATING, &["catchall"]);
    assert_eq!(steps.len(), 2, "{steps:?}");
    let copy = data.with_file_name("backup.db");
    for (command, _) in steps {
        let command = command.replace("/var/backups/catchall.db", copy.to_str().unwrap());
        let command = command.replacen("catchall", &binary("standalone"), 1);
        let output = Command::new("bash").args(["-c", &command]).envs(variables).output().unwrap();
        assert!(output.status.success(), "{command}: {output:?}");
    }
}

#[tokio::test]
async fn the_walkthrough_prints_what_it_says() {
    let steps = commands(API, &["curl", "sleep"]);
    assert!(steps.len() >= 10, "{steps:?}");
    Stack::ready().await.prints_what_it_says(&steps).await;
}

#[tokio::test]
async fn the_load_is_counted() {
    const PROGRAM: &str = "cargo run --release -p catchall-load --";
    let steps = commands(OPERATING, &["cargo"]);
    let loads: Vec<&str> = steps.iter().filter_map(|(command, _)| command.strip_prefix(PROGRAM)).collect();
    let [load] = loads[..] else { panic!("{steps:?}") };
    let command = binary("load") + load;
    let output = Stack::ready().await.shell(&command).output().unwrap();
    assert!(output.status.success(), "{command}: {output:?}");
}

/// On either backend, in an order in which each has something to do.
#[tokio::test]
async fn the_commands_for_operators_are_valid() {
    let (_, help, _) = run("admin", &["--help"], &[]);
    let examples = help.lines().filter_map(|line| line.strip_prefix("  catchall-admin ")).map(str::to_owned);
    let steps = commands(OPERATING, &["catchall-admin"]);
    let steps = steps.iter().map(|(command, _)| command.strip_prefix("catchall-admin ").unwrap().to_owned());
    let commands: Vec<String> = examples.chain(steps).collect();
    assert!(commands.len() >= 10, "{commands:?}");
    for system in System::both(&[]).await {
        let folder = directory();
        fs::write(folder.join("history.csv"), "a.com,2000,0\n").unwrap();
        for command in &commands {
            system.events().put("/events/example.com/delivered").await;
            let counted = async || {
                let (_, answer) = system.domains().get("/domains/example.com").await;
                (answer["delivered"].as_u64() > Some(0)).then_some(())
            };
            eventually("there is something to reset", counted).await;
            let output = Command::new("bash")
                .args(["-c", &format!("exec {} {command}", binary("admin"))])
                .current_dir(&folder)
                .envs([system.place()])
                .output()
                .unwrap();
            assert!(output.status.success(), "{command}: {output:?}");
        }
        assert_eq!(fs::read_to_string(folder.join("catch-alls.csv")).unwrap().lines().count(), 2);
    }
}

#[tokio::test]
async fn the_commands_for_dead_letters_are_valid() {
    let servers = Servers::fresh().await;
    let (_, help, _) = run("dead", &["--help"], &[]);
    let examples = help.lines().filter_map(|line| line.strip_prefix("  catchall-dead "));
    // What is behind a pipe is another program's.
    let examples = examples.map(|example| example.split(" | ").next().unwrap().to_owned());
    let steps = commands(OPERATING, &["catchall-dead"]);
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

/// What a program says of itself.
fn help_of(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).current_dir(ROOT).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Checks a command that takes minutes, or the whole machine, without running it.
fn check(command: &str, dev_help: &str) {
    let words: Vec<&str> = command.split(' ').collect();
    let options = |words: &[&str], help: &str| {
        for option in words.iter().take_while(|word| **word != "--").filter(|word| word.starts_with("--")) {
            assert!(help.contains(option), "{command}: {option} is in no help");
        }
    };
    match *words {
        ["./dev", "test", ref arguments @ ..] => {
            options(arguments, &help_of(env!("CARGO"), &["test", "--help"]));
            let program =
                arguments.iter().position(|word| *word == "--test").map(|place| &arguments[place + 1..]);
            if let Some([program, name, ..]) = program {
                check_test(command, program, name);
            }
        }
        ["./dev", name, ref arguments @ ..] => {
            let line = dev_help.lines().find(|line| line.trim().split(' ').next() == Some(name));
            assert!(line.is_some(), "{command}: ./dev help does not list {name}");
            options(arguments, dev_help);
            let fault =
                arguments.iter().position(|word| *word == "--fault").map(|place| arguments[place + 1]);
            if let Some(fault) = fault {
                let faults = fs::read_to_string(Path::new(ROOT).join("tests/chaos/fault.rs")).unwrap();
                let variant: String =
                    fault.split('-').map(|word| word[..1].to_uppercase() + &word[1..]).collect();
                assert!(faults.contains(&format!("    {variant},\n")), "{command}: there is no such fault");
            }
        }
        ["cargo", name, ref arguments @ ..] => options(arguments, &help_of(env!("CARGO"), &[name, "--help"])),
        ["sudo", "catchall-token", ref arguments @ ..] | ["catchall-token", ref arguments @ ..] => {
            let [arguments @ .., "--file", _] = arguments else { panic!("{command}: for which file?") };
            let (status, token, line) = harness::processes::run("token", arguments, &[]);
            assert!(status.success() && token.starts_with("catchall_"), "{command}: {line}");
        }
        ["sudo", "install", .., file, _] if file != "-d" => {
            assert!(file.starts_with("target/") || Path::new(ROOT).join(file).exists(), "{command}");
        }
        ["sudo", "systemctl", .., unit] => {
            assert!(Path::new(ROOT).join(format!("systemd/{unit}.service")).exists(), "{command}");
        }
        // No container engine runs in the tests: `image.rs` compares the image with the program.
        ["docker", "build" | "run", ..] | ["sudo", "install", "-d", _] => {}
        ["(umask", "077;", "for", "name", "in", ..] => {
            // As many as the compose file asks for: `compose.rs` compares their names.
            let script = command.replace(">.env", "");
            let output = Command::new("bash").args(["-euc", &script]).output().unwrap();
            let lines = String::from_utf8(output.stdout).unwrap();
            assert!(output.status.success() && lines.lines().all(|line| line.len() > 40), "{lines}");
        }
        ["eval", ..] => assert_eq!(command, "eval \"$(./dev env)\""),
        _ => panic!("nothing runs or checks {command:?}"),
    }
}

/// That a filter names a module or a function of a test program.
fn check_test(command: &str, program: &str, name: &str) {
    let folder = Path::new(ROOT).join("tests").join(program);
    let modules = fs::read_to_string(folder.join("main.rs")).unwrap();
    let is_module = name.strip_suffix("::").is_some_and(|name| modules.contains(&format!("mod {name};")));
    let is_function = super::prose::sources(&folder)
        .iter()
        .any(|path| fs::read_to_string(path).unwrap().contains(&format!("fn {name}(")));
    assert!(is_module || is_function || name.starts_with("--"), "{command}: there is no test {name}");
}

#[test]
fn every_other_command_is_known() {
    let dev_help = help_of("./dev", &["help"]);
    let mut checked = 0;
    for (page, document) in PAGES {
        for (command, _) in transcript(document) {
            let program = command.split(' ').next().unwrap();
            match program {
                "curl" | "sleep" => {
                    assert!(["README.md", "docs/api.md"].contains(&page), "{page}: {command}");
                }
                "catchall" | "catchall-admin" | "catchall-dead" => {
                    assert_eq!(page, "docs/operating.md", "{command}");
                }
                _ => {
                    check(&command, &dev_help);
                    checked += 1;
                }
            }
        }
    }
    assert!(checked >= 10);
}
