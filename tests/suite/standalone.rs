//! The one process with one file: what it survives, and what it says when something is wrong.

mod clients;
mod greeting;
mod commits;
mod crashes;
mod failing;
mod backups;
mod moving;
mod reads;
mod space;
mod trouble;

use std::path::Path;
use std::process::Output;

use harness::processes::{LONG_DEADLINE, Service, command, run};
use harness::servers::Servers;
use hyper::{Method, StatusCode};

/// Starts the process on this data file, with these settings more.
async fn start(data: &Path, more: &[(&str, &str)]) -> Service {
    let variables = [&[LONG_DEADLINE][..], more, &[("CATCHALL_DATA", data.to_str().unwrap())]].concat();
    Service::ready("standalone", &Servers::none(), &variables).await
}

/// Sends events for these domains, each under an id: one event for `d0.com`, two for `d1.com`, and so on.
async fn post(service: &Service, domains: std::ops::Range<usize>) {
    let headers = [("content-type", "application/x-ndjson")];
    for begin in domains.clone().step_by(10_000) {
        let lines = (begin..domains.end.min(begin + 10_000)).map(|n| {
            format!(
                "{{\"domain\":\"d{n}.com\",\"event\":\"delivered\",\"count\":{},\"id\":\"{n}\"}}\n",
                n + 1
            )
        });
        let sent = service.request(Method::POST, "/events", &headers, lines.collect::<String>()).await;
        assert_eq!(sent.0, StatusCode::ACCEPTED, "{}", sent.2);
    }
}

/// What a check finds in a sound file: domains, delivered and bounced events, and claims.
fn checked(data: &Path) -> [u64; 4] {
    let (status, found, said) = run("standalone", &["check", "--data", data.to_str().unwrap()], &[]);
    assert!(status.success(), "{said}");
    let (_, counts) = found.split_once(" is sound: ").unwrap();
    let numbers: Vec<u64> = counts.split([' ', ',']).filter_map(|word| word.parse().ok()).collect();
    numbers.try_into().unwrap()
}

/// Copies a data file.
fn back_up(data: &Path, to: &Path) -> Output {
    command("standalone").args(["backup", "--data"]).arg(data).arg(to).output().unwrap()
}

/// The exit status of a process that could not do what it should, and the one sentence that it ended with.
fn refusal(output: Output) -> (i32, String) {
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.starts_with("catchall: ") && said.trim_end().lines().count() == 1, "{said}");
    (output.status.code().unwrap(), said)
}
