//! Clients in Python and in TypeScript, made from the documents of the services as their users make them. Each
//! uses every request. What its program got is compared here, so that both have to get the same.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use harness::access::Access;
use harness::processes::{LONG_DEADLINE, Service};
use harness::servers::Servers;
use harness::system::{data_file, directory};
use hyper::{Method, StatusCode};
use serde_json::{Value, json};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients");

/// The services that a program talks to, by the names it knows them by.
struct Talk<'a> {
    events: &'a Service,
    domains: &'a Service,
}

impl<'a> Talk<'a> {
    fn named(&self) -> [(&'static str, &'a Service); 2] {
        [("events", self.events), ("domains", self.domains)]
    }

    /// Has a program made and run in a directory that has both documents, and compares what it printed.
    async fn holds(&self, program: fn(&Path) -> Command) {
        let folder = directory();
        for (name, service) in self.named() {
            let (status, _, document) = service.request(Method::GET, "/openapi.json", &[], "").await;
            assert_eq!(status, StatusCode::OK, "{document}");
            fs::write(folder.join(name).with_extension("json"), document).unwrap();
        }
        let mut program = program(&folder);
        for (name, service) in self.named() {
            let name = name.to_uppercase();
            let token = service.access().bearer.as_ref().unwrap().strip_prefix("Bearer ").unwrap();
            program.env(format!("{name}_URL"), service.url()).env(format!("{name}_TOKEN"), token);
        }
        let printed: Value = serde_json::from_str(&succeeds(&mut program)).unwrap();
        assert_eq!(printed, expected());
    }
}

/// What a program prints: of each domain its name, status and counters, and whether it says since when.
fn expected() -> Value {
    let problem =
        |name: &str, status: u16, title: &str| json!([format!("urn:catchall:problem:{name}"), status, title]);
    let a = json!(["a.example", "catch-all", 1001, 0, true]);
    let b = json!(["b.example", "not catch-all", 0, 1, true]);
    let c = json!(["c.example", "unknown", 5, 0, false]);
    let no_domain = problem("invalid-domain", 400, "Invalid domain");
    json!({
        "put": [202, 202],
        "bulk": [3, [[2, "urn:catchall:problem:invalid-domain"]]],
        "domain": a,
        "unchanged": true,
        "list": [a, b, c],
        "bounced": [b],
        "names": [a, "localhost", no_domain],
        "map": "a.example\n",
        "totals": [[1, 1, 1], [1006, 1], 1007],
        "changes": [a, b],
        "problems": [
            no_domain,
            no_domain,
            problem("invalid-parameter", 400, "Invalid parameter"),
            problem("unauthorized", 401, "Unauthorized"),
        ],
        "document": "3.1.0",
    })
}

/// What a command that has to succeed prints.
fn succeeds(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let said = String::from_utf8(output.stdout).unwrap();
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}{complained}");
    said + &complained
}

/// What makes clients in a language.
fn installed(variable: &str) -> PathBuf {
    std::env::var(variable).expect("./dev test installs what makes clients").into()
}

/// The program in Python, with the packages that are made of the documents in a directory.
fn python(folder: &Path) -> Command {
    let bin = installed("CATCHALL_TEST_CLIENTS").join("bin");
    for name in ["events", "domains"] {
        let mut generator = Command::new(bin.join("openapi-python-client"));
        generator.args(["generate", "--meta", "none", "--config", "python.yaml", "--path"]);
        generator.arg(folder.join(name).with_extension("json"));
        let said = succeeds(generator.arg("--output-path").arg(folder.join(name)).current_dir(FOLDER));
        // It sends no NDJSON, for which there are arrays, and reads no picture. It must leave out nothing else.
        let known = ["content type application/x-ndjson\n", "content_type image/svg+xml)"];
        let known: usize =
            known.map(|what| said.matches(&format!("Unsupported {what}")).count()).iter().sum();
        assert_eq!(said.matches("WARNING").count(), known, "{said}");
        assert!(!said.contains("Unable to"), "{said}");
    }
    let mut program = Command::new(bin.join("python"));
    program.arg(Path::new(FOLDER).join("program.py"));
    program.env("PYTHONPATH", folder).env("PYTHONDONTWRITEBYTECODE", "yes");
    program
}

/// The program in TypeScript, checked against the types that are made of the documents in a directory.
fn typescript(folder: &Path) -> Command {
    let packages = installed("CATCHALL_TEST_CLIENTS_NODE").join("node_modules");
    symlink(&packages, folder.join("node_modules")).unwrap();
    let node = |script: &str| {
        let mut node = Command::new("node");
        node.arg(packages.join(script)).current_dir(folder);
        node
    };
    for name in ["events", "domains"] {
        let (document, types) = (format!("{name}.json"), format!("{name}.ts"));
        succeeds(node("openapi-typescript/bin/cli.js").args([&*document, "--output", &*types]));
    }
    for file in ["package.json", "program.ts", "tsconfig.json"] {
        fs::copy(Path::new(FOLDER).join(file), folder.join(file)).unwrap();
    }
    succeeds(node("typescript/bin/tsc").args(["--project", "."]));
    let mut program = Command::new("node");
    program.arg(folder.join("out/program.js"));
    program
}

async fn cluster(program: fn(&Path) -> Command) {
    let servers = Servers::fresh().await;
    let ingest = Service::guarded("ingest", &servers, &[LONG_DEADLINE], Access::by_token()).await;
    let query = Service::guarded("query", &servers, &[], Access::by_token()).await;
    let _worker = Service::ready("worker", &servers, &[]).await;
    Talk { events: &ingest, domains: &query }.holds(program).await;
}

async fn standalone(program: fn(&Path) -> Command) {
    let data = data_file();
    let data = [LONG_DEADLINE, ("CATCHALL_DATA", data.to_str().unwrap())];
    let service = Service::guarded("standalone", &Servers::none(), &data, Access::by_token()).await;
    Talk { events: &service, domains: &service }.holds(program).await;
}

#[tokio::test]
async fn a_client_in_python_uses_every_request_of_ingest_and_query() {
    cluster(python).await;
}

#[tokio::test]
async fn a_client_in_python_uses_every_request_of_the_standalone() {
    standalone(python).await;
}

#[tokio::test]
async fn a_client_in_typescript_uses_every_request_of_ingest_and_query() {
    cluster(typescript).await;
}

#[tokio::test]
async fn a_client_in_typescript_uses_every_request_of_the_standalone() {
    standalone(typescript).await;
}
