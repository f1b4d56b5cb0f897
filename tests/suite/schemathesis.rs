//! Requests of every kind that the documents describe, and of kinds that they do not: schemathesis makes them
//! up and compares each answer with the document.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use harness::access::Access;
use harness::http::HttpClient;
use harness::processes::Service;
use harness::system::System;

/// Requests of each kind that are made up. With this seed they are the same each time.
const EXAMPLES: &str = "60";
/// The same, where only the way in differs.
const FEW_EXAMPLES: &str = "15";
const SEED: &str = "4711";

/// How long a document may take.
const MOMENT: Duration = Duration::from_secs(10);

/// A program of those that are installed for this.
fn installed(name: &str) -> Command {
    let folder = std::env::var("CATCHALL_TEST_SCHEMATHESIS").expect("./dev test installs schemathesis");
    Command::new(Path::new(&folder).join("bin").join(name))
}

/// Checks the document of the service at an address against the schema of OpenAPI 3.1.
async fn is_valid(address: &str) {
    let document =
        HttpClient::without_keep_alive().get(&format!("http://{address}/openapi.json"), MOMENT).await;
    let mut validator = installed("python")
        .args(["-m", "openapi_spec_validator", "--schema", "3.1", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    validator.stdin.take().unwrap().write_all(document.unwrap().1.as_bytes()).unwrap();
    let output = validator.wait_with_output().unwrap();
    assert!(output.status.success(), "{address}: {}", String::from_utf8_lossy(&output.stdout));
}

/// Sends requests to the service at an address, with the value of the header `Authorization` if any, and checks
/// every answer.
async fn answers_as_documented(address: String, examples: &str, bearer: Option<&str>) {
    is_valid(&address).await;
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/schemathesis");
    let mut command = installed("schemathesis");
    command
        .arg("--config-file")
        .arg(folder.join("schemathesis.toml"))
        .args(["run", &format!("http://{address}/openapi.json"), "--checks", "all", "--no-color"])
        .args(["--seed", SEED, "--max-examples", examples, "--continue-on-failure"])
        .args(["--generation-database", "none", "--warnings", "off"])
        .args(bearer.iter().flat_map(|bearer| ["--header".to_owned(), format!("Authorization: {bearer}")]))
        .env("SCHEMATHESIS_HOOKS", folder.join("hooks.py"))
        .env("PYTHONDONTWRITEBYTECODE", "yes")
        .current_dir(std::env::temp_dir());
    let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{address}: {said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("No issues found"), "{said}");
}

/// The operations routes of a service.
async fn operations_answer_as_documented(service: &Service) {
    answers_as_documented(service.ops_address(), EXAMPLES, None).await;
}

#[tokio::test]
async fn the_standalone_answers_as_its_documents_say() {
    let system = System::standalone(&[]).await;
    answers_as_documented(system.events().address(), EXAMPLES, None).await;
    operations_answer_as_documented(system.events()).await;
}

#[tokio::test]
async fn ingest_and_query_answer_as_their_documents_say() {
    let system = System::cluster(&[]).await;
    answers_as_documented(system.events().address(), EXAMPLES, None).await;
    answers_as_documented(system.domains().address(), EXAMPLES, None).await;
    operations_answer_as_documented(system.domains()).await;
}

#[tokio::test]
async fn where_tokens_are_asked_for_holders_and_strangers_are_answered_as_the_documents_say() {
    let access = Access::by_token();
    let system = System::standalone(&access.of_service()).await;
    let service = system.events();
    for address in [service.address(), service.ops_address()] {
        answers_as_documented(address.clone(), FEW_EXAMPLES, access.bearer.as_deref()).await;
        answers_as_documented(address, FEW_EXAMPLES, None).await;
    }
}
