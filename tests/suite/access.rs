//! Tokens: who is let in, and what the others hear.

use std::fs;
use std::path::{Path, PathBuf};

use harness::access::Access;
use harness::processes::{LONG_DEADLINE, Service, metric, run};
use harness::servers::{Servers, eventually};
use harness::system::{System, data_file, directory};
use hyper::{Method, StatusCode};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A file of tokens, made by the tool.
pub(super) struct Tokens {
    pub(super) file: PathBuf,
}

impl Tokens {
    pub(super) fn new() -> Self {
        Self { file: directory().join("tokens") }
    }

    /// Makes a token for the scopes, and returns the header that shows it.
    pub(super) fn add(&self, name: &str, scopes: &str) -> String {
        let file = self.file.to_str().unwrap();
        let arguments = ["new", "--name", name, "--scope", scopes, "--file", file];
        let (status, token, stderr) = run("token", &arguments, &[]);
        assert!(status.success() && stderr.is_empty(), "{stderr}");
        assert_eq!(token.lines().count(), 1, "{token}");
        format!("Bearer {}", token.trim_end())
    }

    pub(super) fn variable(&self) -> (&str, &str) {
        ("CATCHALL_TOKENS", self.file.to_str().unwrap())
    }
}

/// The answer to a request from an address.
async fn status(
    service: &Service,
    from: &str,
    method: Method,
    path: &str,
    bearer: Option<&str>,
) -> StatusCode {
    let bearer = bearer.iter().map(|bearer| ("authorization", *bearer));
    let headers: Vec<_> = bearer.chain([("x-forwarded-for", from)]).collect();
    service.request(method, path, &headers, "").await.0
}

#[test]
fn a_port_that_a_network_reaches_is_locked_or_said_to_be_open() {
    let data = data_file();
    let reachable = [
        ("CATCHALL_AMQP_URL", "amqp://127.0.0.1:1"),
        ("CATCHALL_DATABASE_URL", "postgres://127.0.0.1:1/x"),
        ("CATCHALL_REPLICA_URL", "postgres://127.0.0.1:1/x"),
        ("CATCHALL_DATA", data.to_str().unwrap()),
    ];
    for (program, variable, address) in [
        ("ingest", "CATCHALL_LISTEN", "0.0.0.0:0"),
        ("query", "CATCHALL_LISTEN", "[::]:0"),
        ("query", "CATCHALL_OPS_LISTEN", "192.0.2.1:9081"),
        ("worker", "CATCHALL_OPS_LISTEN", "0.0.0.0:0"),
        ("standalone", "CATCHALL_LISTEN", "0.0.0.0:0"),
        ("standalone", "CATCHALL_OPS_LISTEN", "[::ffff:0.0.0.0]:0"),
    ] {
        let (status, _, stderr) = run(program, &[], &[&reachable[..], &[(variable, address)]].concat());
        assert_eq!(status.code(), Some(2), "{program}: {stderr}");
        let last = stderr.lines().last().unwrap();
        assert!(
            last.contains(&format!("{variable} is {address}, which other machines can reach")),
            "{stderr}"
        );
        assert!(last.contains("CATCHALL_TOKENS") && last.contains("CATCHALL_OPEN=yes"), "{stderr}");
    }
    assert!(!data.exists(), "the data file was made before the check");
}

#[test]
fn what_is_wrong_with_the_tokens_is_said_at_the_start() {
    let tokens = Tokens::new();
    let data = data_file();
    let start = |open: &str| {
        let variables =
            [tokens.variable(), ("CATCHALL_DATA", data.to_str().unwrap()), ("CATCHALL_OPEN", open)];
        let (status, _, stderr) = run("standalone", &[], &variables);
        assert_eq!(status.code(), Some(2), "{stderr}");
        stderr
    };
    assert!(start("no").contains("CATCHALL_TOKENS: cannot read"));
    tokens.add("mailer", "write");
    assert!(start("yes").contains("CATCHALL_OPEN lets everybody in, and CATCHALL_TOKENS does not"));
    let good = fs::read_to_string(&tokens.file).unwrap();
    fs::write(&tokens.file, format!("{good}boss read 1234 never\n")).unwrap();
    let error = start("no");
    assert!(error.contains("/tokens: line 2: a SHA-256 is 64 hexadecimal digits"), "{error}");
    fs::write(&tokens.file, [&good[..], &good[..]].concat()).unwrap();
    assert!(start("no").contains("the tokens of mailer and of mailer are the same"));
}

#[tokio::test]
async fn everybody_is_let_in_where_that_was_said() {
    let service = Service::ready(
        "standalone",
        &Servers::none(),
        &[
            LONG_DEADLINE,
            ("CATCHALL_DATA", data_file().to_str().unwrap()),
            ("CATCHALL_LISTEN", "0.0.0.0:0"),
            ("CATCHALL_OPS_LISTEN", "0.0.0.0:0"),
            ("CATCHALL_OPEN", "yes"),
        ],
    )
    .await;
    let address = service.address();
    assert!(address.starts_with("0.0.0.0:"), "{address}");
    assert_eq!(service.put("/events/example.com/delivered").await, StatusCode::ACCEPTED);
}

#[tokio::test]
async fn who_may_do_what_and_what_the_others_hear() {
    let tokens = Tokens::new();
    let holders = ["write", "read", "operate"].map(|scope| Some(tokens.add(scope, scope)));
    let mistyped = Some(holders[0].clone().unwrap().replacen("Bearer catchall_", "Bearer catchall_0", 1));
    let callers = [vec![None, mistyped], holders.to_vec()].concat();
    // Each request comes from an address of its own, so that none is refused too often.
    let mut addresses = (0..u32::MAX).map(|number| std::net::Ipv4Addr::from_bits(number).to_string());
    let [cluster, standalone] = System::both(&[tokens.variable(), ("CATCHALL_PROXIES", "127.0.0.0/8")]).await;
    for system in [&cluster, &standalone] {
        for (method, path, expected) in [
            (Method::PUT, "/events/example.com/delivered", [401, 401, 202, 403, 403]),
            (Method::PUT, "/events/example.com/bounced", [401, 401, 202, 403, 403]),
            (Method::PUT, "/events/localhost/bounced", [401, 401, 400, 403, 403]),
            (Method::POST, "/events", [401, 401, 415, 403, 403]),
            (Method::GET, "/events/example.com/bounced", [401, 401, 405, 403, 403]),
            (Method::GET, "/unknown", [401, 401, 404, 404, 404]),
            (Method::GET, "/domains/example.com", [401, 401, 403, 200, 403]),
            (Method::HEAD, "/domains/example.com", [401, 401, 403, 200, 403]),
            (Method::GET, "/", [401, 401, 403, 200, 403]),
            (Method::GET, "/page/script.js", [401, 401, 403, 200, 403]),
            (Method::GET, "/maps/rspamd/catch-all", [401, 401, 403, 200, 403]),
        ] {
            let is_asked =
                ["/domains", "/maps", "/page"].iter().any(|of| path.starts_with(of)) || path == "/";
            let service = if is_asked { system.domains() } else { system.events() };
            for (caller, expected) in callers.iter().zip(expected) {
                let from = addresses.next().unwrap();
                let status = status(service, &from, method.clone(), path, caller.as_deref()).await;
                assert_eq!(status.as_u16(), expected, "{method} {path} {caller:?}");
            }
        }
    }
    for service in [cluster.events(), cluster.domains(), standalone.events()] {
        for (path, expected) in
            [("/livez", [200; 5]), ("/readyz", [200; 5]), ("/metrics", [401, 401, 403, 403, 200])]
        {
            for (caller, expected) in callers.iter().zip(expected) {
                let headers: Vec<_> = caller.iter().map(|bearer| ("authorization", &**bearer)).collect();
                let (status, _) = service.ops_with(path, &headers).await;
                assert_eq!(status.as_u16(), expected, "{path} {caller:?}");
            }
        }
        let (_, metrics) =
            service.ops_with("/metrics", &[("authorization", callers[4].as_ref().unwrap())]).await;
        assert!(metric(&metrics, "catchall_http_unauthorized_total") > 0.0, "{metrics}");
        assert!(metric(&metrics, "catchall_http_forbidden_total") > 0.0, "{metrics}");
    }
}

#[tokio::test]
async fn a_refusal_is_a_problem_with_a_challenge_and_comes_before_the_body() {
    let tokens = Tokens::new();
    let reader = tokens.add("reader", "read");
    let system = System::standalone(&[tokens.variable()]).await;
    let request = async |headers: &[(&str, &str)]| {
        let (status, headers, body) =
            system.events().request(Method::PUT, "/events/example.com/bounced", headers, "").await;
        let body: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(headers["content-type"], "application/problem+json");
        let challenge = headers["www-authenticate"].to_str().unwrap().to_owned();
        (status, body["type"].as_str().unwrap().to_owned(), challenge)
    };
    assert_eq!(
        request(&[]).await,
        (
            StatusCode::UNAUTHORIZED,
            "urn:catchall:problem:unauthorized".into(),
            r#"Bearer realm="catchall""#.into()
        )
    );
    assert_eq!(
        request(&[("authorization", &reader)]).await,
        (
            StatusCode::FORBIDDEN,
            "urn:catchall:problem:forbidden".into(),
            r#"Bearer realm="catchall", error="insufficient_scope", scope="write""#.into()
        )
    );
    // A body that never comes.
    let mut stream = TcpStream::connect(system.events().address()).await.unwrap();
    stream.write_all(b"POST /events HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n").await.unwrap();
    let mut answer = vec![0; 12];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(answer, b"HTTP/1.1 401");
}

#[tokio::test]
async fn a_change_of_the_tokens_counts_without_a_restart_and_a_broken_one_changes_nothing() {
    let tokens = Tokens::new();
    let (first, operator) = (tokens.add("first", "write"), tokens.add("operator", "operate"));
    let system = System::standalone(&[tokens.variable()]).await;
    let service = system.events();
    let put = async |bearer: &str| {
        status(service, "127.0.0.1", Method::PUT, "/events/example.com/delivered", Some(bearer))
            .await
            .as_u16()
    };
    let stale = async || {
        let (_, metrics) = service.ops_with("/metrics", &[("authorization", &*operator)]).await;
        metric(&metrics, "catchall_tokens_stale")
    };
    assert_eq!((put(&first).await, stale().await), (202, 0.0));
    let second = tokens.add("second", "write");
    eventually("the second token counts", async || (put(&second).await == 202).then_some(())).await;
    assert_eq!(put(&first).await, 202);
    let lines = fs::read_to_string(&tokens.file).unwrap();
    let (_, without_first) = lines.split_once('\n').unwrap();
    fs::write(&tokens.file, without_first).unwrap();
    eventually("the first token is taken back", async || (put(&first).await == 401).then_some(())).await;
    fs::write(&tokens.file, format!("{without_first}nonsense\n")).unwrap();
    eventually("the broken file is told", async || (stale().await > 0.0).then_some(())).await;
    assert_eq!((put(&second).await, put(&first).await), (202, 401));
    service.logs_times("line 3: 1 fields instead of name", 1).await;
    fs::write(&tokens.file, lines).unwrap();
    eventually("the first token is back", async || (put(&first).await == 202).then_some(())).await;
    assert!(stale().await < 1.0);
    assert!(!service.log().concat().contains(first.strip_prefix("Bearer ").unwrap()));
}

#[tokio::test]
async fn reasons_and_metrics_are_for_operators() {
    let tokens = Tokens::new();
    let (operator, writer) = (tokens.add("operator", "operate"), tokens.add("writer", "write"));
    let mut servers = Servers::fresh().await;
    servers.amqp_url = "amqp://127.0.0.1:1/%2f".into();
    let service = Service::launch("ingest", &servers, &[tokens.variable()]).await;
    let readyz = async |headers: &[(&str, &str)]| {
        let (status, body) = service.ops_with("/readyz", headers).await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        body
    };
    eventually("the operator hears the reason", async || {
        readyz(&[("authorization", &operator)]).await.contains("127.0.0.1:1").then_some(())
    })
    .await;
    assert_eq!(readyz(&[]).await, "not ready\n");
    assert_eq!(readyz(&[("authorization", &writer)]).await, "not ready\n");
}

#[tokio::test]
async fn a_holder_sends_so_many_events_and_no_more_and_nobody_else_pays_for_it() {
    let tokens = Tokens::new();
    let (first, second) = (tokens.add("first", "write,read,operate"), tokens.add("second", "write"));
    let limit = ("CATCHALL_TOKEN_EVENTS_PER_SEC", "10");
    for system in System::both(&[tokens.variable(), limit]).await {
        let post = async |bearer: &str, events: usize| {
            let body = r#"{"domain": "example.com", "event": "delivered"}"#.to_owned() + "\n";
            let headers = [("authorization", bearer), ("content-type", "application/x-ndjson")];
            system.events().request(Method::POST, "/events", &headers, body.repeat(events)).await
        };
        assert_eq!(post(&first, 10_000).await.0, StatusCode::ACCEPTED);
        let (status, headers, body) = post(&first, 5000).await;
        assert_eq!(status, StatusCode::TOO_MANY_REQUESTS);
        assert!(body.contains("urn:catchall:problem:too-many-requests"), "{body}");
        let (_, metrics) = system.events().ops_with("/metrics", &[("authorization", &*first)]).await;
        assert!(metric(&metrics, "catchall_http_throttled_total") > 0.0, "{metrics}");
        let wait: u64 = headers["retry-after"].to_str().unwrap().parse().unwrap();
        assert!((400..=501).contains(&wait), "{wait}");
        assert_eq!(post(&second, 10_000).await.0, StatusCode::ACCEPTED);
        let count = async || {
            let path = "/domains/example.com";
            let (_, _, body) =
                system.domains().request(Method::GET, path, &[("authorization", &first)], "").await;
            serde_json::from_str::<Value>(&body).unwrap()["delivered"].as_u64().unwrap()
        };
        eventually("both requests are counted", async || (count().await >= 20_000).then_some(())).await;
        assert_eq!(count().await, 20_000);
    }
}

#[tokio::test]
async fn an_address_has_so_many_connections_and_a_proxy_as_many_as_there_are() {
    let open = async |variables: &[(&str, &str)], told: usize| {
        let variables =
            [variables, &[("CATCHALL_ADDRESS_CONNECTIONS", "3"), ("CATCHALL_THREADS", "1")]].concat();
        let system = System::standalone(&variables).await;
        let mut answered = 0;
        let mut kept = Vec::new();
        for _ in 0..6 {
            let mut stream = TcpStream::connect(system.events().address()).await.unwrap();
            let _ = stream.write_all(b"GET /domains/example.com HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
            answered += usize::from(stream.read(&mut [0; 12]).await.is_ok_and(|size| size > 0));
            kept.push(stream);
        }
        system.events().logs_times("connection limit for one address reached", told).await;
        answered
    };
    assert_eq!(open(&[], 1).await, 3);
    assert_eq!(open(&[("CATCHALL_PROXIES", "192.0.2.0/24,127.0.0.1")], 0).await, 6);
}

fn new_token(arguments: &[&str]) -> (Option<i32>, String, String) {
    let (status, stdout, stderr) = run("token", &[&["new"], arguments].concat(), &[]);
    (status.code(), stdout, stderr)
}

#[test]
fn the_tool_prints_a_token_once_and_keeps_its_digest() {
    let (code, token, line) = new_token(&["--name", "mailer", "--scope", "write", "--expires", "2099-01-31"]);
    assert_eq!(code, Some(0), "{line}");
    assert!(token.starts_with("catchall_") && token.len() == "catchall_".len() + 38 + 1, "{token}");
    assert!(line.starts_with("mailer write ") && line.ends_with(" 2099-01-31T00:00:00Z\n"), "{line}");
    assert!(!line.contains(token.trim()), "{line}");
    let (_, other, _) = new_token(&["--name", "mailer", "--scope", "write"]);
    assert_ne!(token, other);
}

#[test]
fn the_tool_adds_to_a_file_and_leaves_alone_what_is_none() {
    let file = directory().join("tokens");
    let path = file.to_str().unwrap();
    let add = |name: &str| new_token(&["--name", name, "--scope", "read,write", "--file", path]);
    assert_eq!(add("first").0, Some(0));
    let kept = fs::read_to_string(&file).unwrap();
    fs::write(&file, kept.trim_end()).unwrap();
    assert_eq!(add("second").0, Some(0));
    let kept = fs::read_to_string(&file).unwrap();
    let names: Vec<_> = kept.lines().map(|line| line.split(' ').take(2).collect::<Vec<_>>()).collect();
    assert_eq!(names, [["first", "write,read"], ["second", "write,read"]]);
    fs::write(&file, "127.0.0.1 localhost\n").unwrap();
    let (code, stdout, stderr) = add("third");
    assert_eq!((code, &*stdout), (Some(1), ""));
    assert!(stderr.contains("cannot add to") && stderr.contains("line 1: 2 fields instead of"), "{stderr}");
    assert_eq!(fs::read_to_string(&file).unwrap(), "127.0.0.1 localhost\n");
    let (code, stdout, stderr) = new_token(&["--name", "x", "--scope", "read", "--file", "/nowhere/tokens"]);
    assert_eq!((code, &*stdout), (Some(1), ""), "{stderr}");
    assert!(!Path::new("/nowhere").exists());
}

#[test]
fn the_tool_says_what_is_wrong_with_its_arguments() {
    for (arguments, says) in [
        (&["--name", "a b", "--scope", "read"][..], "\"a b\" is not a name of 1 to 64"),
        (
            &["--name", "a", "--scope", "admin"],
            "\"admin\" is not a scope: the scopes are write, read and operate",
        ),
        (&["--name", "a", "--scope", "read", "--expires", "soon"], "\"soon\" is not a time"),
        (&["--name", "a", "--scope", "read", "--expires", "2020-01-01"], "2020-01-01T00:00:00Z has passed"),
        (&["--name", "a"], "--scope <SCOPES> is required"),
    ] {
        let (code, stdout, stderr) = new_token(arguments);
        assert_eq!((code, &*stdout), (Some(2), ""), "{stderr}");
        assert!(stderr.starts_with("catchall-token: ") && stderr.contains(says), "{stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
    }
}

#[tokio::test]
async fn the_load_tool_speaks_tls_and_shows_its_token() {
    let data = data_file();
    let more = [LONG_DEADLINE, ("CATCHALL_DATA", data.to_str().unwrap())];
    let service = Service::guarded("standalone", &Servers::none(), &more, Access::by_tls()).await;
    let url = service.url();
    assert!(url.starts_with("https://localhost:"), "{url}");
    for via in [&["put"][..], &["put", "--reconnect"], &["put-h2"], &["bulk"]] {
        let addresses = ["--events", "300", "--verify", "--ingest-url", &url, "--query-url", &url, "--via"];
        let arguments = [&addresses[..], via].concat();
        let (status, report, stderr) = run("load", &arguments, &service.access().of_client());
        assert_eq!(status.code(), Some(0), "{via:?}: {report}{stderr}");
        // Without them it does not get in.
        let (status, _, stderr) = run("load", &arguments, &service.access().of_client()[..1]);
        assert!(status.code() == Some(3) && stderr.contains("https needs --ca"), "{stderr}");
        let (status, _, stderr) = run("load", &arguments, &service.access().of_client()[1..]);
        assert!(status.code() == Some(3) && stderr.contains("401"), "{stderr}");
    }
}
