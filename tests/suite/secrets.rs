//! Secrets: they come from variables and files, and show nowhere.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use base64::prelude::{BASE64_STANDARD, Engine};
use catchall::token::Token;
use harness::access::Access;
use harness::instance;
use harness::processes::{Service, command, run};
use harness::servers::Servers;
use harness::system::{data_file, directory};
use harness::tls::TlsClient;
use http_body_util::Full;
use hyper::{Request, StatusCode};

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

/// The value of one of the variables.
fn value<'a>(variables: &[(&str, &'a str)], name: &str) -> &'a str {
    variables.iter().find(|(known, _)| *known == name).unwrap_or_else(|| panic!("no {name}")).1
}

#[tokio::test]
async fn no_log_shows_a_token_or_the_key_of_a_certificate() {
    let data = data_file();
    for level in ["info", "trace"] {
        let more = [("CATCHALL_DATA", data.to_str().unwrap()), ("CATCHALL_LOG", level)];
        let service = Service::guarded("standalone", &Servers::none(), &more, Access::by_tls()).await;
        let (address, access) = (service.address(), service.access());
        let bearer = access.bearer.as_deref().unwrap();
        let (_, token) = bearer.split_once(' ').unwrap();
        let password = BASE64_STANDARD.encode(format!("anybody:{token}"));
        let nobodys = Token::from_digits([61; 32]);
        let authority = fs::read_to_string(value(&access.of_client(), "CATCHALL_CA")).unwrap();
        for protocol in ["h2", "http/1.1"] {
            let client = TlsClient::new(&authority, None, &[protocol]);
            for (shown, expected) in [
                (bearer.to_owned(), StatusCode::OK),
                (format!("Basic {password}"), StatusCode::OK),
                (format!("Bearer {}", nobodys.expose()), StatusCode::UNAUTHORIZED),
            ] {
                let request =
                    Request::get(format!("https://{address}/totals")).header("authorization", shown);
                let request = request.body(Full::default()).unwrap();
                let (status, _, body) = client.send(&address, request).await.unwrap();
                assert_eq!(status, expected, "{body}");
            }
        }
        let metrics = service.ops("/metrics").await.1;
        service.signal("TERM");
        service.logs("stopping on").await;
        let log = service.log().concat();
        assert!(level == "info" || log.contains("h2::"), "there is nothing of HTTP/2 in the log");
        let key = fs::read_to_string(value(&access.of_service(), "CATCHALL_TLS_KEY")).unwrap();
        let key = key.lines().filter(|line| !line.starts_with("-----")).map(str::to_owned);
        let secrets = [token.to_owned(), password, nobodys.expose().to_owned()].into_iter().chain(key);
        for secret in secrets.filter(|secret| secret.len() > 16) {
            assert!(!log.contains(&secret), "the log shows a secret, {level}");
            assert!(!metrics.contains(&secret), "the metrics show a secret");
        }
    }
}

#[test]
fn a_token_in_the_place_of_its_file_does_not_show() {
    let token = Token::from_digits([61; 32]);
    let data = data_file();
    // Also one of which the end is missing.
    for token in [token.expose(), &token.expose()[..20]] {
        let variables = [
            ("CATCHALL_TOKENS", token),
            ("CATCHALL_AMQP_URL", "amqp://127.0.0.1:1"),
            ("CATCHALL_DATABASE_URL", "postgres://127.0.0.1:1/x"),
            ("CATCHALL_REPLICA_URL", "postgres://127.0.0.1:1/x"),
            ("CATCHALL_DATA", data.to_str().unwrap()),
        ];
        for program in ["ingest", "query", "worker", "standalone"] {
            let command: &[&str] = if program == "standalone" { &["serve"] } else { &[] };
            let (_, help, _) = run(program, &[command, &["--help"]].concat(), &variables);
            assert!(help.contains("CATCHALL_TOKENS") && !help.contains(token), "{program}: {help}");
            let by_argument = [command, &["--tokens", token]].concat();
            for (arguments, variables) in [(command, &variables[..]), (&by_argument[..], &variables[1..])] {
                let (status, _, stderr) = run(program, arguments, variables);
                assert_eq!(status.code(), Some(2), "{program}: {stderr}");
                assert!(stderr.contains("CATCHALL_TOKENS") && !stderr.contains(token), "{stderr}");
                assert!(stderr.contains("it looks like a token"), "{stderr}");
            }
        }
    }
    assert!(!data.exists());
    // In the wrong field of a file.
    let (file, digest) = (directory().join("tokens"), token.digest());
    for line in [
        format!("mailer {} {digest} never", token.expose()),
        format!("mailer write {digest} {}", token.expose()),
    ] {
        fs::write(&file, line).unwrap();
        let variables =
            [("CATCHALL_TOKENS", file.to_str().unwrap()), ("CATCHALL_DATA", data.to_str().unwrap())];
        let (status, _, stderr) = run("standalone", &[], &variables);
        assert_eq!(status.code(), Some(2), "{stderr}");
        assert!(stderr.contains("line 1: a token is not a ") && !stderr.contains(token.expose()), "{stderr}");
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
        (&[file, ("CATCHALL_DATABASE_URL", "postgres://x")][..], "are both set: set only one of them"),
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
