//! Sends what a run hands out, parcel after parcel.

use std::rc::Rc;
use std::time::{Duration, Instant};

use backon::{BackoffBuilder, ExponentialBuilder};

use super::run::{Fate, Keys, Parcel, Run};

/// How soon something is tried again that failed, and how seldom at most. The jitter keeps thousands of
/// senders from coming back in step.
pub(super) fn backoff() -> impl Iterator<Item = Duration> {
    ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(50))
        .with_max_delay(Duration::from_secs(1))
        .with_jitter()
        .without_max_times()
        .build()
}

/// A way to the server for some parcels at a time.
pub(super) trait Carrier {
    /// Most parcels it takes at a time.
    fn capacity(&self) -> usize;

    /// Sends parcels once and waits for the answer. They share their fate.
    async fn carry(&mut self, parcels: &[Parcel]) -> Fate;
}

/// Sends until there is nothing more.
pub(super) async fn send(run: Rc<Run>, mut carrier: impl Carrier) {
    let mut parcels: Vec<Parcel> = (0..carrier.capacity()).map(|_| Parcel::new()).collect();
    let mut delays = None;
    while run.next(&mut parcels[0]).await {
        let further = parcels[1..].iter_mut().position(|parcel| !run.next_if_due(parcel));
        let parcels = &parcels[..further.map_or(parcels.len(), |further| 1 + further)];
        let fate = match carrier.carry(parcels).await {
            Fate::Acknowledged => Fate::Acknowledged,
            fate => insist(&run, &mut carrier, parcels, fate).await,
        };
        let failed = matches!(fate, Fate::Unknown(_) | Fate::Unsent(_));
        if matches!(fate, Fate::Unsent(_)) {
            // Nobody was there for all the time events are tried: the others would only wait as long.
            run.give_up();
        }
        run.settle(parcels, &fate);
        if failed && !run.is_over() {
            // A server in trouble is not helped by being asked as fast as it can say no.
            pause(delays.get_or_insert_with(backoff)).await;
        } else {
            delays = None;
        }
    }
}

/// Sends again what cannot count twice, until its fate is known or the time is up.
async fn insist(run: &Run, carrier: &mut impl Carrier, parcels: &[Parcel], mut fate: Fate) -> Fate {
    let give_up = Instant::now() + run.retry_for;
    let events: u64 = parcels.iter().map(|parcel| parcel.draws.len() as u64).sum();
    let mut delays = backoff();
    let mut in_doubt = false;
    loop {
        fate = match fate {
            // An earlier attempt may have been accepted whatever this one was answered.
            Fate::Refused(reason) | Fate::Unsent(reason) if in_doubt => Fate::Unknown(reason),
            fate => fate,
        };
        let again = match &fate {
            Fate::Acknowledged => return fate,
            Fate::Partly(_, reason) | Fate::Refused(reason) => {
                run.note_error(reason);
                return fate;
            }
            Fate::Unknown(reason) => {
                run.note_error(reason);
                run.keys != Keys::None
            }
            Fate::Unsent(reason) => {
                run.figures.borrow_mut().note_trouble(reason);
                true
            }
        };
        if !again || run.is_interrupted() || Instant::now() >= give_up {
            return fate;
        }
        in_doubt = matches!(fate, Fate::Unknown(_));
        pause(&mut delays).await;
        if in_doubt {
            run.figures.borrow_mut().retried += events;
        }
        fate = carrier.carry(parcels).await;
    }
}

async fn pause(delays: &mut impl Iterator<Item = Duration>) {
    tokio::time::sleep(delays.next().unwrap_or_default()).await;
}
