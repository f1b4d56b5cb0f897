//! Sends what a run hands out, request after request.

use std::rc::Rc;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use tokio::time::Instant;

use crate::run::{Fate, Keys, Request, Run};

/// How soon something is tried again that failed, and how seldom at most. The jitter keeps thousands of
/// senders from coming back in step.
pub(crate) fn backoff() -> impl Iterator<Item = Duration> {
    ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(50))
        .with_max_delay(Duration::from_secs(1))
        .with_jitter()
        .without_max_times()
        .build()
}

/// A way to the server for some requests at a time.
pub(crate) trait Transport {
    /// Most requests it takes at a time.
    fn capacity(&self) -> usize;

    /// Sends requests once and waits for the answer. They share their fate.
    async fn send(&mut self, requests: &[Request]) -> Fate;
}

/// Sends until there is nothing more.
pub(crate) async fn send(run: Rc<Run>, mut transport: impl Transport) {
    let mut requests: Vec<Request> = (0..transport.capacity()).map(|_| Request::new()).collect();
    let mut delays = None;
    while run.next(&mut requests[0]).await {
        let further = requests[1..].iter_mut().position(|request| !run.next_if_due(request));
        let requests = &requests[..further.map_or(requests.len(), |further| 1 + further)];
        let fate = match transport.send(requests).await {
            Fate::Acknowledged => Fate::Acknowledged,
            fate => insist(&run, &mut transport, requests, fate).await,
        };
        let failed = matches!(fate, Fate::Unknown(_) | Fate::Unsent(_));
        if matches!(fate, Fate::Unsent(_)) {
            // Nobody was there for all the time events are tried: the others would only wait as long.
            run.give_up();
        }
        run.settle(requests, &fate);
        if failed && !run.is_over() {
            // A server in trouble is not helped by being asked as fast as it can say no.
            pause(delays.get_or_insert_with(backoff)).await;
        } else {
            delays = None;
        }
    }
}

/// Sends again what cannot count twice, until its fate is known or the time is up.
async fn insist(run: &Run, transport: &mut impl Transport, requests: &[Request], mut fate: Fate) -> Fate {
    let give_up = Instant::now() + run.retry_for;
    let events: u64 = requests.iter().map(|request| request.draws.len() as u64).sum();
    let mut delays = backoff();
    let mut in_doubt = false;
    loop {
        match &fate {
            Fate::Acknowledged => return fate,
            Fate::Unsent(reason) => run.figures.borrow_mut().note_trouble(reason),
            Fate::Partly(_, reason) | Fate::Refused(reason) | Fate::Unknown(reason) => run.note_error(reason),
        }
        fate = match fate {
            Fate::Partly(..) => return fate,
            // An earlier attempt may have been accepted whatever this one came to.
            Fate::Refused(reason) | Fate::Unsent(reason) if in_doubt => Fate::Unknown(reason),
            fate => fate,
        };
        let again = match &fate {
            Fate::Unknown(_) => run.keys != Keys::None,
            Fate::Unsent(_) => true,
            Fate::Acknowledged | Fate::Partly(..) | Fate::Refused(_) => false,
        };
        if !again || run.is_interrupted() || Instant::now() >= give_up {
            return fate;
        }
        in_doubt = matches!(fate, Fate::Unknown(_));
        pause(&mut delays).await;
        if in_doubt {
            run.figures.borrow_mut().retried += events;
        }
        fate = transport.send(requests).await;
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
        fates: VecDeque<Fate>,
        seen: Rc<std::cell::RefCell<Vec<Option<Uuid>>>>,
    }

    impl Transport for Script {
        fn capacity(&self) -> usize {
            1
        }

        async fn send(&mut self, requests: &[Request]) -> Fate {
            self.seen.borrow_mut().push(requests[0].keys.first().copied());
            self.fates.pop_front().unwrap_or(Fate::Acknowledged)
        }
    }

    /// What becomes of three events: acknowledged, refused, unknown, retried, errors; and the keys that were
    /// sent.
    async fn outcome(keys: Keys, fates: impl Into<VecDeque<Fate>>) -> ([u64; 5], Vec<Option<Uuid>>) {
        let mut run = Run::new(Workload::new(Shape::Zipf, 1, 100), keys, Duration::from_secs(10));
        run.hand_out(3, 1, None);
        let (run, seen) = (Rc::new(run), Rc::default());
        send(Rc::clone(&run), Script { fates: fates.into(), seen: Rc::clone(&seen) }).await;
        let figures = run.figures.borrow();
        let numbers =
            [figures.acknowledged, figures.refused, figures.unknown, figures.retried, figures.errors];
        (numbers, seen.take())
    }

    fn unknown() -> Fate {
        Fate::Unknown("no answer".into())
    }

    fn unsent() -> Fate {
        Fate::Unsent("nobody there".into())
    }

    fn refused() -> Fate {
        Fate::Refused("no".into())
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_key_only_what_was_not_sent_is_sent_again() {
        let (numbers, seen) = outcome(Keys::None, [unsent(), unknown(), refused(), unsent(), unsent()]).await;
        assert_eq!((numbers, seen.len()), ([1, 1, 1, 0, 2], 6));
    }

    #[tokio::test(start_paused = true)]
    async fn with_a_key_the_same_event_is_sent_until_it_is_answered() {
        let (numbers, seen) = outcome(Keys::Event, [unknown(), unsent(), unknown()]).await;
        assert_eq!(numbers, [3, 0, 0, 3, 2]);
        assert!(seen[0].is_some() && seen[..4].iter().all(|key| *key == seen[0]));
        assert!(seen[4] != seen[0] && seen[5] != seen[4]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_after_a_doubt_leaves_the_doubt() {
        let fates = [unknown(), refused()].into_iter().chain(std::iter::repeat_n(unknown(), 100));
        let (numbers, _) = outcome(Keys::Event, fates.collect::<VecDeque<Fate>>()).await;
        assert_eq!(numbers[..3], [0, 0, 3]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_stays_away_ends_the_run() {
        let begun = Instant::now();
        let (numbers, _) = outcome(Keys::None, vec![unsent(); 1000]).await;
        assert_eq!(numbers[..3], [0, 0, 0]);
        assert!((10..13).contains(&begun.elapsed().as_secs()));
    }
}
