//! Sends a PUT and a GET at short intervals, to see when answers stop and when they come again.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use harness::expected::ExpectedCounts;
use harness::http::{HttpClient, HttpResult};
use http_body_util::Full;
use hyper::{Request, StatusCode};
use tokio::task::JoinSet;

use crate::subject::Subject;

/// How often each request is sent.
const EVERY: Duration = Duration::from_millis(40);

/// How long to wait for an answer: longer than every deadline of a service.
const TIMEOUT: Duration = Duration::from_secs(10);

/// So many good answers in a row show that the system works again.
const FLOW: usize = 15;

/// The outcome of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ProbeOutcome {
    /// Not known yet.
    None,
    /// The expected answer.
    Good,
    /// 503, and what it says about the event.
    Refused(RefusalKind),
    /// No answer, for this reason.
    Lost(String),
    /// An unexpected answer.
    Wrong(String),
}

/// What a 503 says about the event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RefusalKind {
    /// It was not counted and will not be.
    NothingCounted,
    /// It may be counted.
    MaybeCounted,
}

/// The type of the problem that says so, in quotes as in the document.
const NOT_COUNTED: &str = "\"urn:catchall:problem:not-counted\"";

/// A request and its answer.
#[derive(Clone, Debug)]
pub(crate) struct Probe {
    pub(crate) sent: Instant,
    /// How long the answer took.
    pub(crate) took: Duration,
    pub(crate) answer: ProbeOutcome,
}

/// The requests of one kind, in the order they were sent.
#[derive(Clone, Debug, Default)]
pub(crate) struct Track(Arc<Mutex<Vec<Probe>>>);

/// Sends until it is stopped.
pub(crate) struct Prober {
    domain: String,
    puts: Track,
    gets: Track,
    stop: Arc<AtomicBool>,
    sending: tokio::task::JoinHandle<()>,
}

/// All requests of a stopped prober.
#[derive(Debug)]
pub(crate) struct Probes {
    pub(crate) puts: Vec<Probe>,
    pub(crate) gets: Vec<Probe>,
    /// An event is counted once after a 202, never after a 503 that says so, and at most once otherwise.
    pub(crate) expected: ExpectedCounts,
}

impl Prober {
    /// Begins to send. `label` makes the domains of this round unique.
    pub(crate) fn start(subject: &Subject, label: &str) -> Self {
        let domain = format!("{label}.probe.test");
        let (puts, gets, stop) = (Track::default(), Track::default(), Arc::new(AtomicBool::new(false)));
        let sending = {
            let (events, domains) = (subject.events_url().to_owned(), subject.domains_url().to_owned());
            let (domain, puts, gets, stop) = (domain.clone(), puts.clone(), gets.clone(), Arc::clone(&stop));
            tokio::spawn(async move {
                let mut under_way = JoinSet::new();
                for number in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    under_way.spawn(put(events.clone(), of(number, &domain), puts.clone(), puts.begin()));
                    under_way.spawn(look(domains.clone(), of(0, &domain), gets.clone(), gets.begin()));
                    while under_way.try_join_next().is_some() {}
                    tokio::time::sleep(EVERY).await;
                }
                under_way.join_all().await;
            })
        };
        Self { domain, puts, gets, stop, sending }
    }

    /// How long after `lifted` both kinds of requests were answered as usual again, if they are.
    pub(crate) fn flow(&self, lifted: Instant) -> Option<Duration> {
        Some(self.puts.flow(lifted)?.max(self.gets.flow(lifted)?))
    }

    /// Some domains with events that were sent after `lifted` and acknowledged.
    pub(crate) fn acknowledged_after(&self, lifted: Instant) -> Vec<String> {
        let puts = self.puts.0.lock().unwrap();
        let fresh =
            puts.iter().enumerate().filter(|(_, put)| put.sent > lifted && put.answer == ProbeOutcome::Good);
        fresh.take(FLOW).map(|(number, _)| of(number, &self.domain)).collect()
    }

    /// Stops sending and waits for the last answers.
    pub(crate) async fn stop(self) -> Probes {
        self.stop.store(true, Ordering::Relaxed);
        self.sending.await.expect("it does not panic");
        let (puts, gets) = (self.puts.take(), self.gets.take());
        let mut expected = ExpectedCounts::default();
        for (number, put) in puts.iter().enumerate() {
            let (least, most) = match put.answer {
                ProbeOutcome::Good => (1, 1),
                ProbeOutcome::Refused(RefusalKind::NothingCounted) => (0, 0),
                _ => (0, 1),
            };
            expected.expect(of(number, &self.domain), least, most);
        }
        Probes { puts, gets, expected }
    }
}

/// The domain of a PUT. Each has its own, so that a lost event and one counted twice cannot cancel out.
fn of(number: usize, domain: &str) -> String {
    format!("p{number}.{domain}")
}

async fn put(events: String, domain: String, track: Track, number: usize) {
    let request =
        Request::put(format!("{events}/events/{domain}/delivered")).header("idempotency-key", domain);
    let answer =
        HttpClient::without_keep_alive().send(request.body(Full::<Bytes>::default()).unwrap(), TIMEOUT).await;
    track.end(number, judge(answer, StatusCode::ACCEPTED, ""));
}

async fn look(domains: String, domain: String, track: Track, number: usize) {
    let answer = HttpClient::without_keep_alive().get(&format!("{domains}/domains/{domain}"), TIMEOUT).await;
    track.end(number, judge(answer, StatusCode::OK, &domain));
}

fn judge(answer: HttpResult, good: StatusCode, holds: &str) -> ProbeOutcome {
    match answer {
        Ok((status, body)) if status == good && body.contains(holds) => ProbeOutcome::Good,
        Ok((StatusCode::SERVICE_UNAVAILABLE, body)) if body.contains(NOT_COUNTED) => {
            ProbeOutcome::Refused(RefusalKind::NothingCounted)
        }
        Ok((StatusCode::SERVICE_UNAVAILABLE, _)) => ProbeOutcome::Refused(RefusalKind::MaybeCounted),
        Ok((status, body)) => ProbeOutcome::Wrong(format!("{status} {body}")),
        Err(reason) => ProbeOutcome::Lost(reason),
    }
}

impl Track {
    fn begin(&self) -> usize {
        let mut probes = self.0.lock().unwrap();
        probes.push(Probe { sent: Instant::now(), took: Duration::ZERO, answer: ProbeOutcome::None });
        probes.len() - 1
    }

    fn end(&self, number: usize, answer: ProbeOutcome) {
        let probe = &mut self.0.lock().unwrap()[number];
        *probe = Probe { took: probe.sent.elapsed(), answer, ..*probe };
    }

    /// It works again from the first answer after the last bad one.
    fn flow(&self, lifted: Instant) -> Option<Duration> {
        let probes = self.0.lock().unwrap();
        let good = |probe: &&Probe| probe.answer == ProbeOutcome::Good;
        let open = probes
            .iter()
            .rposition(|probe| probe.answer != ProbeOutcome::Good && probe.answer != ProbeOutcome::None);
        let since = &probes[open.map_or(0, |last| last + 1)..];
        // Answers that came before the fault ended do not show that it is over.
        let first = since.iter().position(|probe| probe.sent + probe.took >= lifted && good(&probe))?;
        let row = since[first..].iter().take_while(good).count();
        let begins = since[first].sent + since[first].took;
        (row >= FLOW).then(|| begins.saturating_duration_since(lifted))
    }

    fn take(&self) -> Vec<Probe> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}
