//! Sends the requests that a run hands out, one after another.

use std::rc::Rc;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use tokio::time::Instant;

use crate::run::{Keys, Request, RequestOutcome, Run};

/// The delays between retries. Jitter keeps thousands of senders from retrying at the same moment.
pub(crate) fn backoff() -> impl Iterator<Item = Duration> {
    ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(50))
        .with_max_delay(Duration::from_secs(1))
        .with_jitter()
        .without_max_times()
        .build()
}

/// A way to send requests to the server.
pub(crate) trait Transport {
    /// How many requests it sends at a time.
    fn capacity(&self) -> usize;

    /// Sends the requests once and waits for the answer. All have the same outcome.
    async fn send(&mut self, requests: &[Request]) -> RequestOutcome;
}

/// Sends until the run has nothing more to hand out.
pub(crate) async fn send(run: Rc<Run>, mut transport: impl Transport) {
    let mut requests: Vec<Request> = (0..transport.capacity()).map(|_| Request::new()).collect();
    let mut delays = None;
    while run.next(&mut requests[0]).await {
        let further = requests[1..].iter_mut().position(|request| !run.next_if_due(request));
        let requests = &requests[..further.map_or(requests.len(), |further| 1 + further)];
        let outcome = match transport.send(requests).await {
            RequestOutcome::Acknowledged => RequestOutcome::Acknowledged,
            outcome => retry(&run, &mut transport, requests, outcome).await,
        };
        let failed = matches!(outcome, RequestOutcome::Unknown(_) | RequestOutcome::Unsent(_));
        if matches!(outcome, RequestOutcome::Unsent(_)) {
            // No server took anything during all retries, so the rest of the run would fail as well.
            run.give_up();
        }
        run.settle(requests, &outcome);
        if failed && !run.is_over() {
            // A server in trouble is given a pause.
            pause(delays.get_or_insert_with(backoff)).await;
        } else {
            delays = None;
        }
    }
}

/// Retries what cannot be counted twice, until its outcome is known or the time is over.
async fn retry(
    run: &Run,
    transport: &mut impl Transport,
    requests: &[Request],
    mut outcome: RequestOutcome,
) -> RequestOutcome {
    let give_up = Instant::now() + run.retry_for;
    let events: u64 = requests.iter().map(|request| request.draws.len() as u64).sum();
    let mut delays = backoff();
    let mut in_doubt = false;
    loop {
        match &outcome {
            RequestOutcome::Acknowledged => return outcome,
            RequestOutcome::Unsent(reason) => run.stats.borrow_mut().note_trouble(reason),
            RequestOutcome::Partly(_, reason)
            | RequestOutcome::Refused(reason)
            | RequestOutcome::Unknown(reason) => run.note_error(reason),
        }
        outcome = match outcome {
            RequestOutcome::Partly(..) => return outcome,
            // An earlier attempt may have been accepted, whatever the outcome of this one.
            RequestOutcome::Refused(reason) | RequestOutcome::Unsent(reason) if in_doubt => {
                RequestOutcome::Unknown(reason)
            }
            outcome => outcome,
        };
        let again = match &outcome {
            RequestOutcome::Unknown(_) => run.keys != Keys::None,
            RequestOutcome::Unsent(_) => true,
            RequestOutcome::Acknowledged | RequestOutcome::Partly(..) | RequestOutcome::Refused(_) => false,
        };
        if !again || run.is_interrupted() || Instant::now() >= give_up {
            return outcome;
        }
        in_doubt = matches!(outcome, RequestOutcome::Unknown(_));
        pause(&mut delays).await;
        if in_doubt {
            run.stats.borrow_mut().retried += events;
        }
        outcome = transport.send(requests).await;
    }
}

async fn pause(delays: &mut impl Iterator<Item = Duration>) {
    tokio::time::sleep(delays.next().unwrap_or_default()).await;
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;
    use crate::workload::{Shape, Workload};
    use uuid::Uuid;

    /// Answers by a script, then with an acknowledgement, and keeps the keys it saw.
    struct Script {
        outcomes: VecDeque<RequestOutcome>,
        seen: Rc<std::cell::RefCell<Vec<Option<Uuid>>>>,
    }

    impl Transport for Script {
        fn capacity(&self) -> usize {
            1
        }

        async fn send(&mut self, requests: &[Request]) -> RequestOutcome {
            self.seen.borrow_mut().push(requests[0].keys.first().copied());
            self.outcomes.pop_front().unwrap_or(RequestOutcome::Acknowledged)
        }
    }

    /// What becomes of three events: acknowledged, refused, unknown, retried, errors; and the keys that were
    /// sent.
    async fn outcome_of(
        keys: Keys,
        outcomes: impl Into<VecDeque<RequestOutcome>>,
    ) -> ([u64; 5], Vec<Option<Uuid>>) {
        let mut run = Run::new(Workload::new(Shape::Zipf, 1, 100), keys, Duration::from_secs(10));
        run.hand_out(3, 1, None);
        let (run, seen) = (Rc::new(run), Rc::default());
        send(Rc::clone(&run), Script { outcomes: outcomes.into(), seen: Rc::clone(&seen) }).await;
        let stats = run.stats.borrow();
        let numbers = [stats.acknowledged, stats.refused, stats.unknown, stats.retried, stats.errors];
        (numbers, seen.take())
    }

    fn unknown() -> RequestOutcome {
        RequestOutcome::Unknown("no answer".into())
    }

    fn unsent() -> RequestOutcome {
        RequestOutcome::Unsent("nobody there".into())
    }

    fn refused() -> RequestOutcome {
        RequestOutcome::Refused("no".into())
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_key_only_what_was_not_sent_is_sent_again() {
        let (numbers, seen) =
            outcome_of(Keys::None, [unsent(), unknown(), refused(), unsent(), unsent()]).await;
        assert_eq!((numbers, seen.len()), ([1, 1, 1, 0, 2], 6));
    }

    #[tokio::test(start_paused = true)]
    async fn with_a_key_the_same_event_is_sent_until_it_is_answered() {
        let (numbers, seen) = outcome_of(Keys::Event, [unknown(), unsent(), unknown()]).await;
        assert_eq!(numbers, [3, 0, 0, 3, 2]);
        assert!(seen[0].is_some() && seen[..4].iter().all(|key| *key == seen[0]));
        assert!(seen[4] != seen[0] && seen[5] != seen[4]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_after_a_doubt_leaves_the_doubt() {
        let outcomes = [unknown(), refused()].into_iter().chain(std::iter::repeat_n(unknown(), 100));
        let (numbers, _) = outcome_of(Keys::Event, outcomes.collect::<VecDeque<RequestOutcome>>()).await;
        assert_eq!(numbers[..3], [0, 0, 3]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_stays_away_ends_the_run() {
        let begun = Instant::now();
        let (numbers, _) = outcome_of(Keys::None, vec![unsent(); 1000]).await;
        assert_eq!(numbers[..3], [0, 0, 0]);
        assert!((10..13).contains(&begun.elapsed().as_secs()));
    }
}
