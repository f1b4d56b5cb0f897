//! The way up: the content of the file goes to a Postgres, and nobody is turned away meanwhile.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use harness::processes::{Service, command, run};
use harness::servers::{Servers, eventually};
use harness::system::data_file;
use hyper::{Method, StatusCode};

use super::crashes::{Clients, DOMAINS};
use super::start;

fn move_to(data: &Path, servers: &Servers) -> (i32, String) {
    let arguments = ["move", "--data", data.to_str().unwrap(), "--to", &servers.database_url];
    let (status, out, said) = run("standalone", &arguments, &[]);
    (status.code().unwrap(), out + &said)
}

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

/// The steps of docs/operating.md, under load.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_go_over_to_the_services_and_every_event_counts_once() {
    let data = data_file();
    let mut standalone = start(&data, &[]).await;
    let clients = Clients::start(&standalone.address());
    clients.go_on().await;
    // 1. The servers and ingest, without workers.
    let servers = Servers::fresh().await;
    let ingest = Service::ready("ingest", &servers, &[]).await;
    // 2. The clients go over.
    clients.go_to(&ingest.address());
    clients.go_on().await;
    // 3. The standalone stops, and its content is moved.
    standalone.signal("TERM");
    assert!(standalone.ended().await.success());
    let (status, said) = move_to(&data, &servers);
    assert_eq!((status, said.contains("and verified: 3 domains")), (0, true), "{said}");
    // 4. The workers.
    let _worker = Service::ready("worker", &servers, &[]).await;
    clients.go_on().await;
    let accepted = clients.end().await;
    let counted = async || {
        let mut sum = 0;
        for domain in DOMAINS {
            sum += servers.counters(domain).await.0;
        }
        u64::try_from(sum).unwrap()
    };
    eventually("all is counted", async || (counted().await >= accepted).then_some(())).await;
    servers.settle().await;
    assert_eq!(counted().await, accepted);
}

#[tokio::test]
async fn a_move_that_is_killed_again_and_again_adds_everything_once() {
    const ROWS: usize = 60_000;
    let data = data_file();
    let mut standalone = start(&data, &[]).await;
    post(&standalone, 0..ROWS).await;
    let servers = Servers::bare().await;
    let (status, said) = move_to(&data, &servers);
    assert_eq!((status, said.contains("in use by another process")), (15, true), "{said}");
    standalone.signal("TERM");
    standalone.ended().await;
    // One that a kill comes before the first step of, and some that it comes in the middle of.
    for milliseconds in [30, 150, 250, 400, 600] {
        let mut killed = command("standalone");
        killed.args(["move", "--data", data.to_str().unwrap(), "--to", &servers.database_url]);
        let mut killed = killed.stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
        tokio::time::sleep(Duration::from_millis(milliseconds)).await;
        let _ = killed.kill();
        killed.wait().unwrap();
    }
    for _ in 0..2 {
        let (status, said) = move_to(&data, &servers);
        assert_eq!(status, 0, "{said}");
        assert!(said.contains(&format!("verified: {ROWS} domains")), "{said}");
        assert!(said.contains(&format!("{ROWS} claims; the file is not served any more")), "{said}");
    }
    let sum = i64::try_from(ROWS * (ROWS + 1) / 2).unwrap();
    assert_eq!(servers.number("select sum(delivered)::int8 from domain_counters").await, sum);
    assert_eq!(servers.number("select count(*) from event_claims").await, i64::try_from(ROWS).unwrap());
    let (status, _, said) = run("standalone", &["--data", data.to_str().unwrap()], &[]);
    assert_eq!(status.code(), Some(18));
    assert!(said.contains("has been moved to postgres://"), "{said}");
}

#[tokio::test]
async fn a_used_ledger_gets_the_sum_and_a_copy_of_the_file_is_not_counted_again() {
    let data = data_file();
    let copy = data.with_file_name("copy.db");
    let mut standalone = start(&data, &[]).await;
    post(&standalone, 0..3).await;
    let backup = ["backup", "--data", data.to_str().unwrap(), copy.to_str().unwrap()];
    assert!(run("standalone", &backup, &[]).0.success());
    standalone.signal("TERM");
    standalone.ended().await;

    let servers = Servers::fresh().await;
    servers.execute("insert into domain_counters values ('d1.com', 40, 2)").await;
    let (status, said) = move_to(&data, &servers);
    assert_eq!(status, 0, "{said}");
    assert_eq!(servers.counters("d1.com").await, (42, 2));
    assert_eq!(servers.counters("d2.com").await, (3, 0));
    let (status, said) = move_to(&copy, &servers);
    assert_eq!((status, said.contains("would count it twice")), (1, true), "{said}");

    // What has begun can only be finished where it began.
    let elsewhere = Servers::fresh().await;
    let (status, said) = move_to(&data, &elsewhere);
    assert_eq!((status, said.contains("finish it there")), (1, true), "{said}");
    let behind = Servers { database_url: "postgres://nobody:secret@127.0.0.1:1/none".into(), ..servers };
    let (status, said) = move_to(&copy, &behind);
    assert_eq!(status, 1);
    assert!(said.contains("connection refused") && !said.contains("secret"), "{said}");
    // Nothing had begun there, so the copy serves as before.
    start(&copy, &[]).await;
}
