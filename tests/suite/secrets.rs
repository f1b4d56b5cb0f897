//! Secrets: they come from variables and files, and show nowhere.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use harness::instance;
use harness::processes::{Service, command, run};
use harness::servers::Servers;
use harness::system::directory;

/// A password that would be found anywhere.
const PASSWORD: &str = "s3cr3t-0f-th1s-t3st";

const VARIABLES: [(&str, &str); 3] = [
    ("CATCHALL_AMQP_URL", "amqp"),
    ("CATCHALL_DATABASE_URL", "postgres"),
    ("CATCHALL_REPLICA_URL", "postgres"),
];

/// URLs at which nobody answers.
fn urls() -> Vec<(&'static str, String)> {
    VARIABLES.map(|(name, scheme)| (name, format!("{scheme}://alice:{PASSWORD}@127.0.0.1:1/x"))).into()
}

#[tokio::test]
async fn no_log_no_answer_and_no_list_of_processes_shows_a_password() {
    let mut servers = Servers::none();
    let urls = urls();
    (servers.amqp_url, servers.database_url, servers.replica_url) =
        (urls[0].1.clone(), urls[1].1.clone(), urls[2].1.clone());
    for (program, dependency) in [("ingest", "broker"), ("worker", "database"), ("query", "replica")] {
        for level in ["info", "trace"] {
            let more = [("CATCHALL_LOG", level)];
            let service = Service::start(program, &servers, &more).await;
            service.becomes_unready(&format!("{dependency}: ")).await;
            let metrics = service.ops("/metrics").await.1;
            let readyz = service.readyz().await.1;
            let line = fs::read_to_string(format!("/proc/{}/cmdline", service.pid())).unwrap();
            let log = service.log().concat();
            assert!(log.contains("127.0.0.1:1"), "{log}");
            for (what, shown) in [("log", log), ("metrics", metrics), ("readyz", readyz), ("arguments", line)]
            {
                assert!(!shown.contains(PASSWORD), "{program} shows it in its {what}, {level}: {shown}");
            }
        }
    }
}

#[tokio::test]
async fn a_password_that_a_server_refuses_does_not_show() {
    let mut servers = Servers::fresh().await;
    for url in [&mut servers.amqp_url, &mut servers.database_url, &mut servers.replica_url] {
        let (scheme, rest) = url.split_once("://").unwrap();
        let (login, place) = rest.split_once('@').unwrap();
        let (user, _) = login.split_once(':').unwrap();
        *url = format!("{scheme}://{user}:{PASSWORD}@{place}");
    }
    for (program, reason) in [
        ("ingest", "ACCESS_REFUSED"),
        ("worker", "password authentication failed"),
        ("query", "password authentication failed"),
    ] {
        let more = [("CATCHALL_LOG", "debug")];
        let service = Service::start(program, &servers, &more).await;
        service.becomes_unready(reason).await;
        service.logs(reason).await;
        let shown = service.readyz().await.1 + &service.ops("/metrics").await.1 + &service.log().concat();
        assert!(!shown.contains(PASSWORD), "{program}: {shown}");
    }
}

#[test]
fn no_help_and_no_error_shows_a_password() {
    let urls = urls();
    let variables: Vec<_> = urls.iter().map(|(name, url)| (*name, &**url)).collect();
    let commands = [
        ("ingest", &["--help"][..]),
        ("worker", &["--help"]),
        ("query", &["--help"]),
        ("migrate", &["--help"]),
        ("migrate", &[]),
        ("dead", &["count"]),
        ("dead", &["replay", "--help"]),
        ("dead", &["replay", "--all"]),
        ("standalone", &["move", "--help"]),
        ("standalone", &["move", "--data", "/nowhere/catchall.db"]),
        ("load", &["--help"]),
        ("load", &["--via", "amqp", "--events", "1", "--retry-for", "0"]),
    ];
    for (program, arguments) in commands {
        let (_, stdout, stderr) = run(program, arguments, &variables);
        assert!(!stdout.contains(PASSWORD) && !stderr.contains(PASSWORD), "{program}: {stdout}{stderr}");
        assert!(!(stdout.is_empty() && stderr.is_empty()), "{program} says nothing");
    }
    // Values that are no URLs at all, in each of the ways a value can be given.
    for (program, option, variable) in [
        ("ingest", "--amqp-url", "CATCHALL_AMQP_URL"),
        ("worker", "--database-url", "CATCHALL_DATABASE_URL"),
        ("query", "--replica-url", "CATCHALL_REPLICA_URL"),
    ] {
        let others: Vec<_> = variables.iter().copied().filter(|(name, _)| *name != variable).collect();
        for (arguments, more) in [(&[option, PASSWORD][..], None), (&[], Some((variable, PASSWORD)))] {
            let variables: Vec<_> = others.iter().copied().chain(more).collect();
            let (status, _, stderr) = run(program, arguments, &variables);
            assert_eq!(status.code(), Some(2), "{stderr}");
            assert!(stderr.contains(variable) && !stderr.contains(PASSWORD), "{stderr}");
        }
    }
}

#[tokio::test]
async fn a_url_comes_from_a_file_too() {
    let servers = Servers::fresh().await;
    let directory = directory();
    let mut started = command("worker");
    for (name, url) in
        [("CATCHALL_AMQP_URL", &servers.amqp_url), ("CATCHALL_DATABASE_URL", &servers.database_url)]
    {
        let file = directory.join(name);
        fs::write(&file, format!("{url}\n")).unwrap();
        started.env(format!("{name}_FILE"), file);
    }
    let nowhere = Servers::none();
    let _worker = Service::ready_by(started, "worker", &nowhere, &[]).await;
    let file = directory.join("CATCHALL_DATABASE_URL");
    let file = ("CATCHALL_DATABASE_URL_FILE", file.to_str().unwrap());
    let (status, said, stderr) = run("migrate", &[], &[file]);
    assert!(status.success(), "{said}{stderr}");
    for (variables, says) in [
        (&[file, ("CATCHALL_DATABASE_URL", "postgres://x")][..], "are both set: set one of them"),
        (&[("CATCHALL_DATABASE_URL_FILE", "/nowhere")], "CATCHALL_DATABASE_URL_FILE: cannot read /nowhere"),
    ] {
        let (status, _, stderr) = run("migrate", &[], variables);
        assert_eq!(status.code(), Some(2), "{stderr}");
        assert!(stderr.contains(says) && stderr.lines().count() == 1, "{stderr}");
    }
    // What needs no database asks for no file.
    let nowhere = ("CATCHALL_DATABASE_URL_FILE", "/nowhere");
    for (program, arguments) in
        [("migrate", &["--help"][..]), ("migrate", &["--version"]), ("standalone", &["check"])]
    {
        let (_, said, stderr) =
            run(program, arguments, &[nowhere, ("CATCHALL_DATA", "/nowhere/catchall.db")]);
        assert!(!(said + &stderr).contains("URL_FILE: "), "{program} {arguments:?}: {stderr}");
    }
    for (program, arguments) in [("standalone", &["move"][..]), ("dead", &["replay", "--all"])] {
        let broker = ("CATCHALL_AMQP_URL", "amqp://127.0.0.1:1");
        let (status, _, stderr) = run(program, arguments, &[nowhere, broker]);
        assert!(status.code() == Some(2) && stderr.contains("URL_FILE: cannot read"), "{program}: {stderr}");
    }
    let wrong = directory.join("wrong");
    fs::write(&wrong, PASSWORD).unwrap();
    let (status, _, stderr) = run("migrate", &[], &[("CATCHALL_DATABASE_URL_FILE", wrong.to_str().unwrap())]);
    assert_eq!(status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("CATCHALL_DATABASE_URL") && !stderr.contains(PASSWORD), "{stderr}");
}

/// The files below a directory.
fn files(directory: &Path) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

#[test]
fn no_file_for_others_and_no_argument_of_a_server_holds_a_password() {
    let directory = std::env::var("CATCHALL_TEST_SECRETS").expect("./dev test sets it");
    let secrets: Vec<String> =
        files(Path::new(&directory)).iter().map(|file| fs::read_to_string(file).unwrap()).collect();
    assert!(secrets.len() >= 10 && secrets.iter().all(|secret| secret.len() == 32), "{}", secrets.len());
    let holds = |text: &str| secrets.iter().any(|secret| text.contains(&**secret));
    let mut holding = files(Path::new(&directory));
    let definitions = files(&instance::data("rabbitmq").unwrap().join("definitions"));
    holding.extend(definitions.into_iter().filter(|file| holds(&fs::read_to_string(file).unwrap())));
    assert!(holding.len() > secrets.len(), "the broker has its passwords from a file");
    for file in holding {
        let mode = fs::metadata(&file).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{} can be read by others", file.display());
    }
    for server in ["rabbitmq", "primary", "replica"] {
        let pid = instance::pid(server).unwrap();
        let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap();
        assert!(!line.is_empty() && !holds(&line), "{server} shows a password in its arguments");
    }
}
