//! `kill -9` loses nothing and counts nothing twice.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use futures::future::join_all;
use harness::http::HttpClient;
use harness::proxy::{address, reserve};
use harness::servers::eventually;
use harness::system::data_file;
use http_body_util::Full;
use hyper::{Request, StatusCode};

use super::clients::{Clients, DOMAINS};
use super::{checked, start};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_is_killed_again_and_again_counts_every_event_once() {
    let data = data_file();
    let reserved = reserve();
    let address = address(&reserved).to_string();
    let listen = [("CATCHALL_LISTEN", &*address)];
    let mut service = start(&data, &listen).await;
    let clients = Clients::start(&address);
    for _ in 0..6 {
        clients.go_on().await;
        service.signal("KILL");
        service.ended().await;
        service = start(&data, &listen).await;
    }
    clients.go_on().await;
    let (accepted, _) = clients.end().await;
    let mut counted = 0;
    for domain in DOMAINS {
        let (status, answer) = service.get(&format!("/domains/{domain}")).await;
        assert_eq!(status, StatusCode::OK);
        counted += answer["delivered"].as_u64().unwrap();
    }
    assert_eq!(counted, accepted);
}

#[tokio::test]
async fn an_accepted_event_is_seen_by_the_next_read_also_after_a_crash() {
    let data = data_file();
    let mut service = start(&data, &[]).await;
    for number in 1..=20 {
        assert_eq!(service.put("/events/seen.example/delivered").await, StatusCode::ACCEPTED);
        let (_, answer) = service.get("/domains/seen.example").await;
        assert_eq!(answer["delivered"], number);
    }
    service.signal("KILL");
    service.ended().await;
    let service = start(&data, &[]).await;
    let (_, answer) = service.get("/domains/seen.example").await;
    assert_eq!(answer["delivered"], 20);
}

#[tokio::test]
async fn a_stopped_process_answers_what_it_has_taken_and_leaves_one_whole_file() {
    let data = data_file();
    let mut service = start(&data, &[]).await;
    let requests = join_all((0..50).map(|_| service.put("/events/last.example/bounced")));
    let (answers, ()) = tokio::join!(requests, async {
        tokio::task::yield_now().await;
        service.signal("TERM");
    });
    let accepted = answers.iter().filter(|status| **status == StatusCode::ACCEPTED).count();
    assert!(service.ended().await.success());
    let log = fs::metadata(data.with_extension("db-wal")).map_or(0, |log| log.len());
    assert_eq!(log, 0, "all of it is in the file");
    let service = start(&data, &[]).await;
    let (_, answer) = service.get("/domains/last.example").await;
    assert_eq!(answer["bounced"], accepted);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_in_the_middle_of_a_flood_leaves_one_whole_file() {
    let data = data_file();
    let mut service = start(&data, &[]).await;
    let uri = format!("{}/events", service.url());
    let stop = Arc::new(AtomicBool::new(false));
    let senders = (0..4_usize).map(|sender| {
        let (uri, stop) = (uri.clone(), Arc::clone(&stop));
        tokio::spawn(async move {
            let client = HttpClient::with_keep_alive();
            let mut accepted = 0_u64;
            for round in 0.. {
                let lines = (0..5000).map(|line| {
                    let domain = format!("d{sender}-{round}-{line}.example");
                    format!("{{\"domain\":\"{domain}\",\"event\":\"delivered\"}}\n")
                });
                let request = Request::post(&uri).header("content-type", "application/x-ndjson");
                let request = request.body(Full::from(lines.collect::<String>())).unwrap();
                match client.send(request, Duration::from_secs(70)).await {
                    Ok((StatusCode::ACCEPTED, _)) => accepted += 5000,
                    _ if stop.load(Relaxed) => break,
                    answer => panic!("{answer:?}"),
                }
            }
            accepted
        })
    });
    let senders: Vec<_> = senders.collect();
    let rows = "catchall_worker_rows_total";
    eventually("a checkpoint has something to do", async || {
        (service.metric(rows).await > 100_000.0).then_some(())
    })
    .await;
    stop.store(true, Relaxed);
    service.signal("TERM");
    assert!(service.ended().await.success());
    let accepted: u64 = join_all(senders).await.into_iter().map(Result::unwrap).sum();
    assert!(!service.has_logged("stays beside the data file"), "{:?}", service.log());
    let log = fs::metadata(data.with_extension("db-wal")).map_or(0, |log| log.len());
    assert_eq!(log, 0, "all of it is in the file");
    let [counted, ..] = checked(&data);
    // What was counted as the process stopped may have lost its answer.
    assert!(counted >= accepted, "{counted} are counted, and {accepted} were accepted");
}

/// Senders of a flood, and the events of each of their requests.
const SENDERS: u64 = 4;
const EVENTS: u64 = 2000;

/// A WAL of so many pages is carried into the file.
const LONG_WAL: f64 = 65_536.0;

/// Sends events for domains of its own until the process is gone. Returns one domain of each request that was
/// accepted. The names are nearly as long as they may be, and all bounce: each event writes some four pages.
async fn flood(url: String, sender: String) -> Vec<String> {
    let client = HttpClient::with_keep_alive();
    let rest = [63, 63, 63, 40].map(|length| "x".repeat(length)).join(".");
    let mut accepted = Vec::new();
    for round in 0.. {
        let domain = |line: u64| format!("d{sender}-{round}-{line}.{rest}.com");
        let lines = (0..EVENTS).map(|line| {
            let domain = domain(line);
            format!("{{\"domain\":\"{domain}\",\"event\":\"bounced\"}}\n")
        });
        let request = Request::post(format!("{url}/events")).header("content-type", "application/x-ndjson");
        let request = request.body(Full::from(lines.collect::<String>())).unwrap();
        match client.send(request, Duration::from_secs(70)).await {
            Ok((StatusCode::ACCEPTED, _)) => accepted.push(domain(EVENTS - 1)),
            Ok(answer) => panic!("{answer:?}"),
            Err(_) => break,
        }
    }
    accepted
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_loses_nothing_while_the_wal_is_carried_over_or_after_it_has_begun_anew() {
    let data = data_file();
    let mut accepted = Vec::new();
    for kill in 1..=2 {
        let mut service = start(&data, &[]).await;
        let senders =
            (0..SENDERS).map(|sender| tokio::spawn(flood(service.url(), format!("{kill}-{sender}"))));
        let senders: Vec<_> = senders.collect();
        eventually("it is the moment for a kill", async || {
            let pages = service.metric("catchall_data_wal_pages").await;
            let rows = service.metric("catchall_worker_rows_total").await;
            let is_long = pages >= LONG_WAL;
            // The second process finds the long WAL that the first one left.
            let is_moment = if kill == 1 { is_long } else { rows > 10_000.0 && !is_long };
            is_moment.then_some(())
        })
        .await;
        service.signal("KILL");
        service.ended().await;
        for sender in senders {
            accepted.extend(sender.await.unwrap());
        }
    }
    let [domains, delivered, bounced, _] = checked(&data);
    assert_eq!((delivered, bounced), (0, domains), "each domain has one event");
    let least = EVENTS * accepted.len() as u64;
    // A request that has lost its answer counts as a whole or not at all.
    let may_be = least..=least + 2 * SENDERS * EVENTS;
    assert!(may_be.contains(&domains) && domains.is_multiple_of(EVENTS), "{domains} of {may_be:?}");
    let service = start(&data, &[]).await;
    for domain in &accepted {
        let (_, answer) = service.get(&format!("/domains/{domain}")).await;
        assert_eq!(answer["bounced"], 1, "{domain}");
    }
    drop(service);
    // It takes some room.
    fs::remove_dir_all(data.parent().unwrap()).unwrap();
}
