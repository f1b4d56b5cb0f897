//! `kill -9` loses nothing and counts nothing twice.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use futures::future::join_all;
use harness::http::HttpClient;
use harness::servers::eventually;
use harness::system::data_file;
use http_body_util::Full;
use hyper::{Request, StatusCode};

use super::start;

/// A client that sends each event under a key until it is accepted, wherever the system is at the time.
pub(super) struct Clients {
    address: Arc<std::sync::Mutex<String>>,
    stop: Arc<AtomicBool>,
    accepted: Arc<AtomicU64>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

/// Clients at a time.
const CLIENTS: u64 = 8;

/// The domains that the clients have events for: several rows, so that a transaction is more than one.
pub(super) const DOMAINS: [&str; 3] = ["one.example", "two.example", "three.example"];

impl Clients {
    /// Starts them at this address.
    pub(super) fn start(address: &str) -> Self {
        let address = Arc::new(std::sync::Mutex::new(address.to_owned()));
        let (stop, accepted) = <(Arc<AtomicBool>, Arc<AtomicU64>)>::default();
        let tasks = (0..CLIENTS).map(|client| {
            let (address, stop, accepted) = (Arc::clone(&address), Arc::clone(&stop), Arc::clone(&accepted));
            tokio::spawn(async move {
                for number in 0.. {
                    if stop.load(Relaxed) {
                        break;
                    }
                    let domain = DOMAINS[number % DOMAINS.len()];
                    send(&address, domain, &format!("{client}-{number}")).await;
                    accepted.fetch_add(1, Relaxed);
                }
            })
        });
        let tasks = tasks.collect();
        Self { address, stop, accepted, tasks }
    }

    /// From now on they send to this address.
    pub(super) fn go_to(&self, address: &str) {
        address.clone_into(&mut self.address.lock().unwrap());
    }

    /// Waits until some more events are accepted.
    pub(super) async fn go_on(&self) {
        let before = self.accepted.load(Relaxed);
        eventually("events are accepted", async || {
            (self.accepted.load(Relaxed) > before + 200).then_some(())
        })
        .await;
    }

    /// Stops them, once what they are sending is accepted. Returns how many events were.
    pub(super) async fn end(self) -> u64 {
        self.stop.store(true, Relaxed);
        join_all(self.tasks).await.into_iter().for_each(|ended| ended.unwrap());
        self.accepted.load(Relaxed)
    }
}

async fn send(address: &std::sync::Mutex<String>, domain: &str, key: &str) {
    let client = HttpClient::without_keep_alive();
    loop {
        let uri = format!("http://{}/events/{domain}/delivered", address.lock().unwrap());
        let request = Request::put(uri).header("idempotency-key", key).body(Full::default()).unwrap();
        let sent = client.send(request, Duration::from_secs(10)).await;
        match sent {
            Ok((StatusCode::ACCEPTED, _)) => return,
            Ok((StatusCode::SERVICE_UNAVAILABLE, _)) | Err(_) => {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            Ok((status, body)) => panic!("{status} {body}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_is_killed_again_and_again_counts_every_event_once() {
    let data = data_file();
    let mut service = start(&data, &[]).await;
    let address = service.address();
    let clients = Clients::start(&address);
    for _ in 0..6 {
        clients.go_on().await;
        service.signal("KILL");
        service.ended().await;
        service = start(&data, &[("CATCHALL_LISTEN", &address)]).await;
    }
    clients.go_on().await;
    let accepted = clients.end().await;
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
    let address = service.address();
    for number in 1..=20 {
        assert_eq!(service.put("/events/seen.example/delivered").await, StatusCode::ACCEPTED);
        let (_, answer) = service.get("/domains/seen.example").await;
        assert_eq!(answer["delivered"], number);
    }
    service.signal("KILL");
    service.ended().await;
    let service = start(&data, &[("CATCHALL_LISTEN", &address)]).await;
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
    let log = std::fs::metadata(data.with_extension("db-wal")).map_or(0, |log| log.len());
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
                match client.send(request, Duration::from_secs(20)).await {
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
    let log = std::fs::metadata(data.with_extension("db-wal")).map_or(0, |log| log.len());
    assert_eq!(log, 0, "all of it is in the file");
    let (status, said, _) =
        harness::processes::run("standalone", &["check", "--data", data.to_str().unwrap()], &[]);
    assert!(status.success());
    let counted = said.split(" domains").next().unwrap().rsplit(' ').next().unwrap().parse::<u64>().unwrap();
    // What was counted as the process stopped may have lost its answer.
    assert!(counted >= accepted, "{said}, and {accepted} were accepted");
}
