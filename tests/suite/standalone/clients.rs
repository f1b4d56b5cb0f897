//! Clients that do as they should: each sends an event under a key until it is accepted, then the next one.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::join_all;
use harness::http::HttpClient;
use harness::servers::eventually;
use http_body_util::Full;
use hyper::{Request, StatusCode};

/// Clients at a time.
const CLIENTS: usize = 8;

/// The domains that the clients have events for: several rows, so that a transaction is more than one.
pub(super) const DOMAINS: [&str; 3] = ["one.example", "two.example", "three.example"];

/// How long a client waits for an answer: longer than the longest deadline of a service here.
const TIMEOUT: Duration = Duration::from_secs(70);

/// Several clients, wherever the system is at the time.
pub(super) struct Clients {
    shared: Arc<Shared>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

/// What the clients know, and what is known of them.
#[derive(Default)]
struct Shared {
    address: Mutex<String>,
    stop: AtomicBool,
    /// Events of each client that were accepted.
    accepted: [AtomicU64; CLIENTS],
    /// What was heard instead of a 202, or why nothing was heard.
    refusals: Mutex<Vec<String>>,
}

impl Clients {
    /// Starts them at this address.
    pub(super) fn start(address: &str) -> Self {
        let shared = Arc::new(Shared { address: Mutex::new(address.to_owned()), ..Shared::default() });
        let tasks = (0..CLIENTS).map(|client| tokio::spawn(run(Arc::clone(&shared), client))).collect();
        Self { shared, tasks }
    }

    /// Leads them to this address. Returns when none of them uses the one before any more.
    pub(super) async fn go_over(&self, address: &str) {
        address.clone_into(&mut self.shared.address.lock().unwrap());
        let accepted = || self.shared.accepted.each_ref().map(|accepted| accepted.load(Relaxed));
        let before = accepted();
        eventually("every client uses the new address", async || {
            // One event may have been under way. The next one went to the new address, as all that follow.
            accepted().iter().zip(before).all(|(now, before)| *now >= before + 2).then_some(())
        })
        .await;
    }

    /// Waits until some more events are accepted.
    pub(super) async fn go_on(&self) {
        let before = self.accepted();
        eventually("events are accepted", async || (self.accepted() > before + 200).then_some(())).await;
    }

    /// How many events were accepted.
    pub(super) fn accepted(&self) -> u64 {
        self.shared.accepted.iter().map(|accepted| accepted.load(Relaxed)).sum()
    }

    /// No more events than these can be counted by now: each client has one under way.
    pub(super) fn sent(&self) -> u64 {
        self.accepted() + CLIENTS as u64
    }

    /// Stops them, once what they are sending is accepted. Returns how many events were, and what was heard
    /// before they were.
    pub(super) async fn end(mut self) -> (u64, Vec<String>) {
        self.shared.stop.store(true, Relaxed);
        join_all(self.tasks.drain(..)).await.into_iter().for_each(|ended| ended.unwrap());
        let refusals = std::mem::take(&mut *self.shared.refusals.lock().unwrap());
        (self.accepted(), refusals)
    }
}

/// One client.
async fn run(shared: Arc<Shared>, client: usize) {
    for number in 0.. {
        if shared.stop.load(Relaxed) {
            break;
        }
        let domain = DOMAINS[number % DOMAINS.len()];
        send(&shared, domain, &format!("{client}-{number}")).await;
        shared.accepted[client].fetch_add(1, Relaxed);
    }
}

/// Sends an event until it is accepted.
async fn send(shared: &Shared, domain: &str, key: &str) {
    let client = HttpClient::without_keep_alive();
    loop {
        let uri = format!("http://{}/events/{domain}/delivered", shared.address.lock().unwrap());
        let request = Request::put(&uri).header("idempotency-key", key).body(Full::default()).unwrap();
        let heard = match client.send(request, TIMEOUT).await {
            Ok((StatusCode::ACCEPTED, _)) => return,
            Ok((StatusCode::SERVICE_UNAVAILABLE, body)) => body,
            Ok((status, body)) => panic!("{status} {body}"),
            Err(reason) => reason,
        };
        shared.refusals.lock().unwrap().push(format!("{uri}: {heard}"));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
