//! What a newcomer reads when the process starts, and can do at once.

use std::process::Command;

use harness::access::Access;
use harness::http::send;
use harness::processes::{Service, command};
use harness::servers::Servers;
use harness::system::data_file;
use http_body_util::Full;
use hyper::Request;
use serde_json::Value;

/// What the lines of the log say, without the time and the like.
fn messages(service: &Service) -> Vec<String> {
    let lines = service.log().into_iter().map(|line| serde_json::from_str::<Value>(&line).unwrap());
    lines.filter_map(|line| Some(line["message"].as_str()?.to_owned())).collect()
}

/// The command that the log offers.
fn offer(service: &Service) -> String {
    let messages = messages(service);
    let offers: Vec<_> = messages.iter().filter_map(|line| line.strip_prefix("try: ")).collect();
    assert_eq!(offers.len(), 1, "{messages:?}");
    assert!(offers[0].starts_with("curl -X PUT "), "{offers:?}");
    offers[0].to_owned()
}

/// The status that a shell gets with this command. Where there is no curl, the request is sent without it.
async fn status_of(command: &str) -> String {
    let script = format!("{command} -s -o /dev/null -w '%{{http_code}}'");
    let output = Command::new("sh").args(["-c", &script]).output().unwrap();
    if output.status.code() != Some(127) {
        return String::from_utf8(output.stdout).unwrap();
    }
    let (before, url) = command.rsplit_once(' ').unwrap();
    let header = before.split('\'').nth(1).and_then(|header| header.split_once(": "));
    let mut request = Request::put(url);
    if let Some((name, value)) = header {
        request = request.header(name, value);
    }
    send(request.body(Full::default()).unwrap()).await.0.as_str().to_owned()
}

#[tokio::test]
async fn the_first_lines_say_what_runs_and_where_and_a_command_that_works() {
    let data = data_file();
    // However the file is named, the line has its absolute path.
    let mut command = command("standalone");
    command.current_dir(data.parent().unwrap());
    let variables = [("CATCHALL_DATA", "catchall.db")];
    let service = Service::ready_by(command, "standalone", &Servers::none(), &variables).await;
    let (messages, url) = (messages(&service), service.url());
    for line in [
        format!("catchall {}", env!("CARGO_PKG_VERSION")),
        format!("its data is in {}", data.canonicalize().unwrap().display()),
        "taking events and answering queries".to_owned(),
        format!("look: {url}/"),
    ] {
        assert!(messages.contains(&line), "{line:?} is not in {messages:?}");
    }
    let offer = offer(&service);
    assert_eq!(offer, format!("curl -X PUT {url}/events/example.com/delivered"));
    assert_eq!(status_of(&offer).await, "202");
    service.answers("example.com", "unknown", 1, 0).await;
}

#[tokio::test]
async fn the_command_has_a_place_for_a_token_where_one_is_asked_for() {
    let data = data_file();
    let variables = [("CATCHALL_DATA", data.to_str().unwrap())];
    let service = Service::guarded("standalone", &Servers::none(), &variables, Access::by_token()).await;
    let offer = offer(&service);
    assert!(offer.contains(" -H 'Authorization: Bearer TOKEN' "), "{offer}");
    assert_eq!(status_of(&offer).await, "401");
    let bearer = service.access().bearer.as_deref().unwrap();
    let token = bearer.strip_prefix("Bearer ").unwrap();
    assert_eq!(status_of(&offer.replace("TOKEN", token)).await, "202");
    assert!(!service.has_logged(token), "a token is a secret");
}
