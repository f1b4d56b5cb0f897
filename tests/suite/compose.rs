//! The compose file, compared with what it starts: no container engine runs in the tests.

mod file;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use catchall::broker;
use catchall::shutdown::GRACE;
use catchall::store::postgres;
use harness::processes::{Service, run};
use harness::proxy::{address, reserve};
use harness::servers::{Servers, eventually, topology};
use harness::system::directory;
use serde_json::{Value, json};

pub(crate) use file::{by_default, members, text};
use file::{compose, items, texts, variables};

const OPERATING: &str = include_str!("../../docs/operating.md");
const ROLES: &str = include_str!("../../postgres/roles.sql");
const DEV: &str = include_str!("../../dev");

/// The services that run a program of this crate, which has their name.
pub(crate) const PROGRAMS: [&str; 6] = ["admin", "dead", "ingest", "migrate", "query", "worker"];

fn seconds(duration: &Value) -> Duration {
    let duration = text(duration);
    let (number, unit) = duration.split_at(duration.len() - 1);
    Duration::from_secs(number.parse::<u64>().unwrap() * if unit == "m" { 60 } else { 1 })
}

/// What a service waits for before it starts, and what that waits for.
fn awaited<'a>(compose: &'a Value, name: &str) -> BTreeSet<&'a str> {
    let direct = members(&compose["services"][name]["depends_on"]);
    direct.flat_map(|(other, _)| awaited(compose, other).into_iter().chain([other])).collect()
}

#[test]
fn every_program_gets_what_it_needs_and_nothing_it_does_not_know() {
    let (compose, tokens) = (by_default(), directory());
    let ours = members(&compose["services"]).filter(|(_, service)| service["image"] == "catchall");
    assert_eq!(ours.map(|(name, _)| name).collect::<BTreeSet<_>>(), PROGRAMS.into());
    for program in PROGRAMS {
        let service = &compose["services"][program];
        let command: &[&str] = match program {
            "admin" => &["audit"],
            "dead" => &["replay", "--all"],
            _ => &[],
        };
        let started = if command.is_empty() { "command" } else { "entrypoint" };
        assert_eq!(service[started], json!([format!("catchall-{program}")]));
        let (_, help, _) = run(program, &[command, &["--help"]].concat(), &[]);
        let mut given = Vec::new();
        for (name, value) in variables(service, "") {
            let known = help.split("[env: ").any(|rest| rest.split(['=', ']']).next() == Some(name));
            assert!(known, "catchall-{program} does not know {name}");
            // An address no machine has, and a port nobody listens on: all that may go wrong.
            let value = match name {
                "CATCHALL_LISTEN" | "CATCHALL_OPS_LISTEN" => "203.0.113.1:1",
                // A directory without a token, where the container's is mounted.
                "CATCHALL_TOKENS" => {
                    assert_eq!(service["volumes"][0]["target"], value);
                    tokens.to_str().unwrap()
                }
                _ => value,
            };
            given.push((
                name,
                value.replace("@primary:5432", "@127.0.0.1:1").replace("@rabbitmq:", "@127.0.0.1:"),
            ));
        }
        let given: Vec<(&str, &str)> = given.iter().map(|(name, value)| (*name, &**value)).collect();
        let (status, _, stderr) = run(program, command, &given);
        let reason = match program {
            "admin" | "migrate" => "connection refused",
            "dead" => "no connection was available in time",
            _ => "cannot listen on 203.0.113.1:1",
        };
        assert!(status.code() == Some(1) && stderr.contains(reason), "{stderr}");
    }
}

#[test]
fn every_address_is_that_of_a_service_which_is_waited_for() {
    let compose = by_default();
    let mut found = BTreeSet::new();
    for (name, service) in members(&compose["services"]) {
        for (variable, url) in variables(service, "_URL") {
            let url = match variable {
                "CATCHALL_AMQP_URL" => url.parse::<broker::AmqpUrl>().unwrap().to_string(),
                _ => url.parse::<postgres::PostgresUrl>().unwrap().to_string(),
            };
            let host = url.split(['/', ':']).nth(3).unwrap().to_owned();
            assert!(awaited(&compose, name).contains(&*host), "{name} does not wait for {host}");
            found.insert((name, url));
        }
    }
    let expected = [
        ("admin", "postgres://primary:5432/catchall"),
        ("dead", "amqp://rabbitmq:5672/%2f"),
        ("dead", "postgres://primary:5432/catchall"),
        ("ingest", "amqp://rabbitmq:5672/%2f"),
        ("migrate", "postgres://primary:5432/catchall"),
        ("query", "postgres://replica:5432/catchall"),
        ("worker", "amqp://rabbitmq:5672/%2f"),
        ("worker", "postgres://primary:5432/catchall"),
    ];
    assert_eq!(found, expected.map(|(name, url)| (name, url.to_owned())).into());
}

#[test]
fn the_ports_are_the_usual_ones_and_only_this_machine_reaches_them() {
    let compose = by_default();
    for (name, service) in members(&compose["services"]) {
        for (variable, address) in variables(service, "LISTEN") {
            let (_, help, _) = run(name, &["--help"], &[]);
            let default = address.replace("0.0.0.0:", "127.0.0.1:");
            assert_ne!(address, default, "{variable} of {name} is out of reach");
            assert!(help.contains(&format!("[default: {default}]")), "{variable} of {name} is {address}");
        }
        let mut published = Vec::new();
        if let [(_, address)] = variables(service, "CATCHALL_LISTEN")[..] {
            let port = address.rsplit(':').next().unwrap();
            assert!(DEV.contains(&format!("[{name}]={port}")), "./dev has another port for {name}");
            published.push(format!("127.0.0.1:{port}:{port}"));
        }
        assert_eq!(texts(&service["ports"]), published, "{name}");
        assert!(service.get("container_name").is_none(), "{name} cannot be scaled");
    }
    assert_eq!(compose["services"]["worker"]["deploy"]["replicas"], 2);
}

/// Runs the health check of a service as if its operations routes were at `port`.
fn check(service: &Value, port: u16) -> (bool, String) {
    let [kind, program, arguments @ ..] = &texts(&service["healthcheck"]["test"])[..] else { panic!() };
    assert_eq!(*kind, "CMD");
    let mut command = Command::new(program);
    command.args(arguments).env("CATCHALL_OPS_LISTEN", format!("0.0.0.0:{port}"));
    let output = command.output().unwrap();
    (output.status.success(), String::from_utf8(output.stdout).unwrap())
}

fn any_port() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").unwrap()
}

/// Answers every request with this status, for as long as the test runs; returns the port.
fn answering(status: &'static str) -> u16 {
    let socket = any_port();
    let port = socket.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for connection in socket.incoming() {
            let mut connection = BufReader::new(connection.unwrap());
            let head = connection.by_ref().lines().map(Result::unwrap).take_while(|line| !line.is_empty());
            assert_eq!(head.collect::<Vec<_>>()[..2], ["GET /readyz HTTP/1.1", "Host: localhost"]);
            write!(connection.get_mut(), "HTTP/1.1 {status}\r\nConnection: close\r\n\r\n").unwrap();
        }
    });
    port
}

#[tokio::test]
async fn a_service_is_healthy_when_it_is_ready() {
    let compose = by_default();
    let away = Servers {
        amqp_url: "amqp://127.0.0.1:1/%2f".into(),
        database_url: "postgres://127.0.0.1:1/catchall".into(),
        replica_url: "postgres://127.0.0.1:1/catchall".into(),
        ..Servers::none()
    };
    for (program, dependency) in [("ingest", "broker"), ("worker", "database"), ("query", "replica")] {
        let service = &compose["services"][program];
        assert!(check(service, answering("200 OK")).0);
        assert!(!check(service, answering("503 Service Unavailable")).0);
        let reserved = reserve();
        let port = address(&reserved).port();
        assert!(!check(service, port).0, "nothing listens there");
        let ops_listen = format!("127.0.0.1:{port}");
        let _running = Service::start(program, &away, &[("CATCHALL_OPS_LISTEN", &ops_listen)]).await;
        eventually("the health check tells what is missing", async || {
            let (healthy, said) = check(service, port);
            assert!(!healthy, "{program} is healthy without its {dependency}");
            let mut lines = said.lines().filter(|line| line.ends_with("connection refused"));
            lines.any(|line| line.starts_with(dependency)).then_some(())
        })
        .await;
    }
}

#[test]
fn everything_starts_in_order_and_up_wait_comes_back() {
    let compose = by_default();
    let services = &compose["services"];
    let mut one_shots = BTreeSet::new();
    for (name, service) in members(services) {
        for (other, dependency) in members(&service["depends_on"]) {
            match text(&dependency["condition"]) {
                "service_healthy" => assert!(services[other]["healthcheck"]["test"].is_array(), "{other}"),
                // Of what nobody waits for like this, `up --wait` expects that it goes on running.
                "service_completed_successfully" => _ = one_shots.insert(other),
                condition => panic!("{name} waits for {other} only until {condition}"),
            }
        }
    }
    assert_eq!(one_shots, ["migrate", "roles"].into());
    for (name, service) in members(services) {
        if one_shots.contains(name) || service["profiles"] == json!(["tools"]) {
            assert!(matches!(service["restart"].as_str(), None | Some("no")), "{name} would not end");
        } else {
            assert_eq!(service["restart"], "unless-stopped", "{name}");
            assert!(service["healthcheck"]["test"].is_array(), "{name} has no health check");
            assert!(seconds(&service["stop_grace_period"]) > GRACE, "{name} is killed before it is done");
        }
    }
    for name in ["worker", "query"] {
        assert!(awaited(&compose, name).contains("migrate"), "{name} needs the schema");
    }
}

/// What the configs of a service put into its container: by path, the content.
fn mounted(compose: &Value, name: &str) -> BTreeMap<String, String> {
    let mut files = BTreeMap::new();
    for config in items(&compose["services"][name]["configs"]) {
        let source = &compose["configs"][text(&config["source"])];
        let content = match source["file"].as_str() {
            Some(file) => {
                let name = Path::new(file).file_name().unwrap().to_str().unwrap();
                assert!(DEV.contains(file) || ROLES.contains(name), "./dev does not use {file}");
                std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap()
            }
            None => text(&source["content"]).to_owned(),
        };
        files.insert(text(&config["target"]).to_owned(), content);
    }
    files
}

/// The value in `key = value`, without quotes.
pub(crate) fn setting<'a>(file: &'a str, key: &str) -> &'a str {
    let value = file.lines().find_map(|line| line.strip_prefix(key)?.trim_start().strip_prefix('='));
    value.unwrap_or_else(|| panic!("no {key}")).trim().trim_matches(['\'', '"'])
}

#[test]
fn every_file_of_the_servers_is_in_use() {
    let compose = by_default();
    let mut files = BTreeSet::new();
    for folder in ["rabbitmq", "postgres"] {
        let entries = std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)).unwrap();
        files.extend(entries.map(|file| format!("{folder}/{}", file.unwrap().file_name().display())));
    }
    let configs = || members(&compose["configs"]);
    let named = configs().filter_map(|(_, config)| config["file"].as_str()).map(str::to_owned);
    assert_eq!(named.collect::<BTreeSet<_>>(), files);
    let mounts = members(&compose["services"]).flat_map(|(_, service)| items(&service["configs"]));
    let mounted: BTreeSet<&str> = mounts.map(|config| text(&config["source"])).collect();
    assert_eq!(configs().map(|(name, _)| name).collect::<BTreeSet<_>>(), mounted);
}

#[test]
fn the_broker_has_the_topology_and_a_user_who_cannot_change_it() {
    let compose = compose(|name, _| name.to_owned());
    let broker = &compose["services"]["rabbitmq"];
    assert!(text(&broker["image"]).starts_with("rabbitmq:4-"));
    assert_eq!(broker["hostname"], "rabbitmq", "under another name it does not find its data again");
    assert_eq!(texts(&broker["volumes"]), ["rabbitmq:/var/lib/rabbitmq"]);
    assert!(texts(&broker["healthcheck"]["test"]).ends_with(&["check_port_listener", "5672"]));
    let files = mounted(&compose, "rabbitmq");
    assert!(
        ["rabbitmq.conf", "enabled_plugins"]
            .iter()
            .all(|file| files.contains_key(&format!("/etc/rabbitmq/{file}")))
    );
    let folder = setting(&files["/etc/rabbitmq/conf.d/90-definitions.conf"], "definitions.local.path");
    let definitions = files.iter().filter(|(path, _)| path.starts_with(folder));
    let definitions: Vec<Value> = definitions.map(|(_, json)| serde_json::from_str(json).unwrap()).collect();
    let users = ["ingest", "worker", "publisher", "subscriber", "dead", "monitoring"].map(|user| {
        let tags = if user == "monitoring" { user } else { "" };
        let password = format!("CATCHALL_AMQP_{}_PASSWORD", user.to_uppercase());
        json!({"name": format!("catchall_{user}"), "password": password, "tags": tags})
    });
    // Loaded in the order of their names: what the permissions are about comes first.
    let [first, second, third] = &definitions[..] else { panic!("{definitions:?}") };
    assert_eq!([first, second], [&topology(), &json!({"users": users})]);
    let permissions = items(&third["permissions"]);
    let of_whom: Vec<&str> = permissions.clone().map(|permission| text(&permission["user"])).collect();
    assert_eq!(of_whom, users.iter().map(|user| text(&user["name"])).collect::<Vec<_>>());
    for permission in permissions {
        let own = permission["user"] == "catchall_subscriber";
        assert_eq!(permission["configure"], if own { r"^catchall\.changes\..+$" } else { "^$" });
    }
}

#[test]
fn the_replica_is_like_the_primary_and_follows_it() {
    let compose = by_default();
    for name in ["primary", "replica"] {
        let server = &compose["services"][name];
        assert_eq!(server["image"], "postgres:17");
        assert_eq!(server["configs"], compose["services"]["primary"]["configs"]);
        // Where the images up to 17 have their volume: data in any other place goes with the container.
        assert_eq!(texts(&server["volumes"]), [format!("{name}:/var/lib/postgresql/data")]);
        let command = texts(&server["command"]).join(" ");
        assert!(command.contains("config_file=/etc/postgresql/container.conf"), "{command}");
        assert!(command.contains(&format!("cluster_name={name}")), "{command}");
    }
    let files = mounted(&compose, "primary");
    let own = &files["/etc/postgresql/container.conf"];
    assert!(
        own.contains("include 'postgresql.conf'") && files.contains_key("/etc/postgresql/postgresql.conf")
    );
    assert_eq!(setting(own, "listen_addresses"), "*");
    let admitted = &files[setting(own, "hba_file")];

    let replica = &compose["services"]["replica"];
    let ["bash", "-euc", script] = texts(&replica["command"])[..] else { panic!("{}", replica["command"]) };
    let parsed = Command::new("bash").args(["-n", "-c", script]).output().unwrap();
    assert!(parsed.status.success(), "{parsed:?}");
    assert!(script.contains("export PGPASSWORD=\"$CATCHALL_REPLICATION_PASSWORD\"\n"), "{script}");
    let (_, role) = script.split_once("primary='host=primary user=").expect("where the primary is");
    let role = role.split_whitespace().next().unwrap();
    let sql = &mounted(&compose, "roles")["/sql/replication.sql"];
    assert!(sql.contains(&format!("alter role {role} login replication")), "{sql}");
    assert!(admitted.contains(&format!("host  replication {role} samenet scram-sha-256")), "{admitted}");
    assert!(awaited(&compose, "replica").contains("roles"));
    // A complete copy is moved into place, which the root of a volume cannot be.
    assert_eq!(replica["environment"]["PGDATA"], "/var/lib/postgresql/data/copy");
}

#[test]
fn a_secret_has_to_be_set_and_is_that_of_one_user() {
    let mut defaults: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let compose = compose(|name, default| {
        defaults.entry(name.to_owned()).or_default().insert(default.to_owned());
        name.to_owned()
    });
    let secrets = defaults.iter().filter(|(name, _)| name.ends_with("PASSWORD"));
    assert!(
        secrets.clone().all(|(name, defaults)| *defaults == [name.clone()].into()),
        "a default: {defaults:?}"
    );
    let mut secrets: BTreeSet<&str> = secrets.map(|(name, _)| &**name).collect();
    // The line of the pages makes all of them.
    let (_, names) = OPERATING.split_once("for name in ").unwrap();
    let (names, _) = names.split_once(';').unwrap();
    let made: BTreeSet<String> =
        names.split(' ').map(|name| format!("CATCHALL_{}PASSWORD", name.trim_matches('"'))).collect();
    assert_eq!(made, secrets.iter().map(|name| (*name).to_owned()).collect());
    for (name, variable, login) in [
        ("ingest", "CATCHALL_AMQP_URL", "catchall_ingest:CATCHALL_AMQP_INGEST_PASSWORD"),
        ("worker", "CATCHALL_AMQP_URL", "catchall_worker:CATCHALL_AMQP_WORKER_PASSWORD"),
        ("dead", "CATCHALL_AMQP_URL", "catchall_dead:CATCHALL_AMQP_DEAD_PASSWORD"),
        ("migrate", "CATCHALL_DATABASE_URL", "catchall:CATCHALL_PASSWORD"),
        ("admin", "CATCHALL_DATABASE_URL", "catchall:CATCHALL_PASSWORD"),
        ("worker", "CATCHALL_DATABASE_URL", "catchall_worker:CATCHALL_WORKER_PASSWORD"),
        ("dead", "CATCHALL_DATABASE_URL", "catchall_worker:CATCHALL_WORKER_PASSWORD"),
        ("query", "CATCHALL_REPLICA_URL", "catchall_query:CATCHALL_QUERY_PASSWORD"),
    ] {
        let [(_, url)] = variables(&compose["services"][name], variable)[..] else {
            panic!("{name} {variable}")
        };
        assert!(url.contains(&format!("://{login}@")), "{name}: {url}");
    }
    let value = |service: &str, variable: &str| text(&compose["services"][service]["environment"][variable]);
    for (service, variable, name) in [
        ("primary", "POSTGRES_PASSWORD", "CATCHALL_SUPERUSER_PASSWORD"),
        ("roles", "PGPASSWORD", "CATCHALL_SUPERUSER_PASSWORD"),
        ("replica", "CATCHALL_REPLICATION_PASSWORD", "CATCHALL_REPLICATION_PASSWORD"),
    ] {
        assert_eq!(value(service, variable), name);
    }
    // The scripts read the passwords they set from the environment.
    let roles = &compose["services"]["roles"];
    for (path, script) in mounted(&compose, "roles") {
        let runs = texts(&roles["command"]).windows(2).any(|pair| pair == ["-f", &path]);
        assert!(runs || path == "/sql/grants.sql", "{path} is not run");
        for line in script.lines().filter(|line| line.starts_with("\\getenv ")) {
            let name = line.split_whitespace().nth(2).unwrap();
            assert_eq!(value("roles", name), name);
            assert!(secrets.remove(name));
        }
    }
    secrets.retain(|name| !name.starts_with("CATCHALL_AMQP_"));
    assert_eq!(secrets, ["CATCHALL_SUPERUSER_PASSWORD"].into());
}
