//! The state of a run: the events that are handed out, and their outcomes.

use std::cell::{Cell, RefCell};
use std::time::{Duration, Instant};

use uuid::Uuid;

use crate::pace::Pace;
use crate::record::SendRecord;
use crate::stats::LoadStats;
use crate::workload::{Draw, Workload};

/// Events that are sent and answered together: those of an HTTP request or of an AMQP message.
#[derive(Debug)]
pub(crate) struct Request {
    /// The events.
    pub(crate) draws: Vec<Draw>,
    /// Their keys: none, one for all of them, or one each; see [`Keys`].
    pub(crate) keys: Vec<Uuid>,
    /// When it was due.
    due: Instant,
}

/// What gets a key, so that it counts once however often it is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keys {
    /// Nothing. A request without an answer is not sent again.
    None,
    /// Each event.
    Event,
    /// Each request.
    Request,
}

/// The outcome of requests that were sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum RequestOutcome {
    /// All events are accepted.
    Acknowledged,
    /// All events are accepted except those at these indices; the text is the reason for the first.
    Partly(Vec<usize>, String),
    /// No event is accepted, and sending it again will not help.
    Refused(String),
    /// The events may be accepted or not.
    Unknown(String),
    /// Nothing was counted: the events reached no server, or it said so.
    Unsent(String),
}

/// What the senders share.
#[derive(Debug)]
pub(crate) struct Run {
    /// What gets a key.
    pub(crate) keys: Keys,
    /// How long to retry events that were certainly not counted or, with a key, may have been.
    pub(crate) retry_for: Duration,
    /// The outcomes so far, in total.
    pub(crate) stats: RefCell<LoadStats>,
    /// The outcomes so far by domain, if they are to be compared.
    pub(crate) record: RefCell<Option<SendRecord>>,
    workload: RefCell<Workload>,
    request_events: u64,
    left: Cell<u64>,
    handed_out: Cell<u64>,
    interrupted: Cell<bool>,
    pace: Option<Pace>,
}

impl Run {
    pub(crate) fn new(workload: Workload, keys: Keys, retry_for: Duration) -> Self {
        Self {
            keys,
            retry_for,
            stats: RefCell::new(LoadStats::new()),
            record: RefCell::new(None),
            workload: RefCell::new(workload),
            request_events: 1,
            left: Cell::new(0),
            handed_out: Cell::new(0),
            interrupted: Cell::new(false),
            pace: None,
        }
    }

    /// Hands out `events` events, `request_events` per request, at a pace or as fast as they are taken.
    pub(crate) fn hand_out(&mut self, events: u64, request_events: u64, pace: Option<Pace>) {
        self.request_events = request_events;
        self.left.set(events);
        self.pace = pace;
    }

    /// Fills the request with the next events when they are due. `false` when there are no more.
    pub(crate) async fn next(&self, request: &mut Request) -> bool {
        if self.left.get() == 0 {
            return false;
        }
        match &self.pace {
            Some(pace) if !pace.wait().await => false,
            _ => self.fill(request),
        }
    }

    /// Like [`Self::next`], but does not wait: `false` also when nothing is due yet.
    pub(crate) fn next_if_due(&self, request: &mut Request) -> bool {
        self.left.get() > 0 && self.pace.as_ref().is_none_or(Pace::is_due) && self.fill(request)
    }

    fn fill(&self, request: &mut Request) -> bool {
        let events = self.request_events.min(self.left.get());
        if events == 0 {
            return false;
        }
        self.left.set(self.left.get() - events);
        if self.left.get() == 0 {
            // Releases the senders that wait for another event.
            self.give_up();
        }
        let index = self.handed_out.replace(self.handed_out.get() + 1);
        request.due = self.pace.as_ref().map_or_else(Instant::now, |pace| pace.moment(index));
        let mut workload = self.workload.borrow_mut();
        request.draws.clear();
        request.draws.extend((0..events).map(|_| workload.draw()));
        let keys = match self.keys {
            Keys::None => 0,
            Keys::Event => request.draws.len(),
            Keys::Request => 1,
        };
        request.keys.clear();
        request.keys.extend((0..keys).map(|_| Uuid::now_v7()));
        self.stats.borrow_mut().in_flight += events;
        true
    }

    /// Notes a request that was not answered, or not with success.
    pub(crate) fn note_error(&self, reason: &str) {
        let stats = &mut *self.stats.borrow_mut();
        stats.errors += 1;
        stats.note_trouble(reason);
    }

    /// Hands out nothing more because of an interrupt. Failed requests are not retried.
    pub(crate) fn interrupt(&self) {
        self.interrupted.set(true);
        self.give_up();
    }

    /// Hands out nothing more because no server is available.
    pub(crate) fn give_up(&self) {
        self.left.set(0);
        if let Some(pace) = &self.pace {
            pace.stop();
        }
    }

    /// Whether it was interrupted.
    pub(crate) fn is_interrupted(&self) -> bool {
        self.interrupted.get()
    }

    /// Whether there is nothing more to hand out.
    pub(crate) fn is_over(&self) -> bool {
        self.left.get() == 0
    }

    /// Notes the outcome of requests.
    pub(crate) fn settle(&self, requests: &[Request], outcome: &RequestOutcome) {
        let now = Instant::now();
        let stats = &mut *self.stats.borrow_mut();
        let mut record = self.record.borrow_mut();
        for request in requests {
            let events = request.draws.len() as u64;
            stats.in_flight -= events;
            match outcome {
                RequestOutcome::Acknowledged => {
                    stats.acknowledge(events, now.saturating_duration_since(request.due), now);
                    if let Some(record) = &mut *record {
                        request.draws.iter().for_each(|draw| record.acknowledge(*draw));
                    }
                }
                RequestOutcome::Partly(rejected, _) => {
                    let refused = rejected.len() as u64;
                    stats.refused += refused;
                    stats.acknowledge(events - refused, now.saturating_duration_since(request.due), now);
                    if let Some(record) = &mut *record {
                        let accepted = request.draws.iter().enumerate();
                        let accepted = accepted.filter(|(place, _)| rejected.binary_search(place).is_err());
                        accepted.for_each(|(_, draw)| record.acknowledge(*draw));
                    }
                }
                RequestOutcome::Refused(_) => stats.refused += events,
                RequestOutcome::Unknown(_) => {
                    stats.unknown += events;
                    if let Some(record) = &mut *record {
                        request.draws.iter().for_each(|draw| record.leave_unknown(*draw));
                    }
                }
                RequestOutcome::Unsent(_) => {}
            }
        }
        if matches!(outcome, RequestOutcome::Acknowledged) {
            stats.trouble = None;
        }
    }
}

impl Request {
    pub(crate) fn new() -> Self {
        Self { draws: Vec::new(), keys: Vec::new(), due: Instant::now() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::counts::{Counts, EventKind};
    use crate::pace::Rate;
    use crate::workload::Shape;
    use futures::future::join_all;

    fn run(keys: Keys) -> Run {
        Run::new(Workload::new(Shape::Zipf, 1, 100), keys, Duration::from_secs(1))
    }

    #[tokio::test]
    async fn every_event_is_handed_out_once_and_nobody_waits_for_more() {
        for pace in [None, Some(Pace::begin(Rate::per_second(10_000.0), 11).unwrap())] {
            let mut run = run(Keys::Event);
            run.hand_out(105, 10, pace);
            let run = &run;
            let takers = (0..20).map(|_| async {
                let (mut request, mut draws) = (Request::new(), Vec::new());
                while run.next(&mut request).await {
                    assert_eq!(request.keys.len(), request.draws.len());
                    draws.append(&mut request.draws);
                    tokio::task::yield_now().await;
                }
                draws
            });
            let draws: Vec<Draw> = join_all(takers).await.into_iter().flatten().collect();
            assert_eq!(draws.len(), 105);
            assert!(run.is_over() && run.stats.borrow().in_flight == 105);
        }
    }

    #[tokio::test]
    async fn only_what_is_accepted_is_recorded() {
        let mut run = run(Keys::None);
        run.record = RefCell::new(Some(SendRecord::default()));
        run.hand_out(8, 2, None);
        let mut requests: Vec<Request> = (0..4).map(|_| Request::new()).collect();
        for request in &mut requests {
            assert!(run.next_if_due(request));
            request.draws = [0, 1].map(|domain| Draw { domain, kind: EventKind::Bounced }).into();
        }
        assert!(!run.next_if_due(&mut Request::new()));
        run.settle(&requests[..1], &RequestOutcome::Acknowledged);
        run.settle(&requests[1..2], &RequestOutcome::Partly(vec![1], "no".into()));
        run.settle(&requests[2..3], &RequestOutcome::Refused("no".into()));
        run.settle(&requests[3..], &RequestOutcome::Unknown("who knows".into()));
        let stats = run.stats.borrow();
        assert_eq!((stats.acknowledged, stats.refused, stats.unknown), (3, 3, 2));
        assert_eq!((stats.in_flight, stats.done()), (0, 8));
        let record = run.record.borrow();
        let expected = |domain| record.as_ref().unwrap().expected(domain, Counts::default());
        assert_eq!((expected(0).least.bounced, expected(0).most.bounced), (2, 3));
        assert_eq!((expected(1).least.bounced, expected(1).most.bounced), (1, 2));
    }
}
