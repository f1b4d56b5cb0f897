//! Tests of which requests get memory and which lose it.

use super::books::{FAIR_CHANCE, SMALL};
use super::*;
use futures::FutureExt;
use futures::future::join_all;

const MIB: usize = 1024 * 1024;

async fn holding(budget: &Budget, bytes: usize) -> Share {
    let mut share = budget.share();
    share.hold(bytes).await.unwrap();
    share
}

/// A share whose client has moved `moved` bytes, and the notification that it was dropped.
async fn transferring(budget: &Budget, bytes: usize, moved: u64) -> (Share, Arc<Notify>) {
    let (share, give_up) = (holding(budget, bytes).await, Arc::new(Notify::new()));
    share.begin_transfer(Instant::now(), Arc::clone(&give_up));
    share.moved(moved);
    (share, give_up)
}

#[tokio::test(start_paused = true)]
async fn what_is_held_is_given_back() {
    let budget = Budget::new(16 * MIB);
    let mut share = holding(&budget, 10 * MIB).await;
    share.hold(3 * MIB).await.unwrap();
    assert_eq!(budget.held(), 3 * MIB);
    drop(share);
    assert_eq!(budget.held(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_wait_ends_when_there_is_room_or_in_time() {
    let budget = Budget::new(16 * MIB);
    let first = holding(&budget, 12 * MIB).await;
    let mut second = budget.share();
    let begun = Instant::now();
    assert_eq!(second.hold(8 * MIB).await, Err(Exhausted));
    assert_eq!(begun.elapsed().as_secs(), WAIT.as_secs());
    assert_eq!(budget.held(), 12 * MIB);
    let (granted, ()) = tokio::join!(second.hold(8 * MIB), async {
        sleep(Duration::from_secs(1)).await;
        drop(first);
    });
    assert_eq!(granted, Ok(()));
    assert_eq!(budget.held(), 8 * MIB);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_stops_waiting_holds_no_memory() {
    let budget = Budget::new(16 * MIB);
    let first = holding(&budget, 12 * MIB).await;
    let mut second = budget.share();
    let mut waiting = Box::pin(second.hold(8 * MIB));
    assert!(waiting.as_mut().now_or_never().is_none());
    // The grant arrives, and the waiting future never polls it.
    drop(first);
    drop(waiting);
    drop(second);
    assert_eq!(budget.held(), 0);
}

#[tokio::test(start_paused = true)]
async fn large_requests_leave_room_for_small_ones() {
    let budget = Budget::new(16 * MIB);
    let _large = holding(&budget, 14 * MIB).await;
    let mut waiting = budget.share();
    let mut waiting = Box::pin(waiting.hold(MIB));
    assert!(waiting.as_mut().now_or_never().is_none());
    let small: Vec<Share> = join_all((0..8).map(|_| holding(&budget, SMALL))).await;
    assert_eq!(budget.held(), 16 * MIB);
    drop(small);
    assert_eq!(waiting.await, Err(Exhausted));
}

#[tokio::test(start_paused = true)]
async fn the_slowest_are_given_up_for_those_who_wait() {
    let budget = Budget::new(16 * MIB);
    let (slow, slow_ends) = transferring(&budget, 4 * MIB, 1000).await;
    let (slower, slower_ends) = transferring(&budget, 4 * MIB, 999).await;
    let (quick, quick_ends) = transferring(&budget, 4 * MIB, 1_000_000).await;
    let working = holding(&budget, 2 * MIB).await;
    sleep(Duration::from_secs(1)).await;
    let mut more = budget.share();
    let (granted, ()) = tokio::join!(more.hold(2 * MIB), async {
        slower_ends.notified().await;
        drop(slower);
    });
    assert_eq!(granted, Ok(()));
    assert!(slow_ends.notified().now_or_never().is_none());
    let (granted, ()) = tokio::join!(more.hold(7 * MIB), async {
        slow_ends.notified().await;
        drop(slow);
    });
    assert_eq!(granted, Ok(()));
    assert!(quick_ends.notified().now_or_never().is_none());
    let (granted, ()) = tokio::join!(more.hold(14 * MIB), async {
        quick_ends.notified().await;
        drop(quick);
    });
    // A share without a transfer is never given up.
    assert_eq!(granted, Err(Exhausted));
    drop(working);
    assert_eq!(more.hold(14 * MIB).await, Ok(()));
}

#[tokio::test(start_paused = true)]
async fn nobody_is_called_slow_before_he_had_a_chance() {
    let budget = Budget::new(16 * MIB);
    let (_new, new_ends) = transferring(&budget, 14 * MIB, 0).await;
    let mut more = budget.share();
    let begun = Instant::now();
    let (granted, ()) = tokio::join!(more.hold(MIB), async {
        new_ends.notified().await;
        assert!(begun.elapsed() >= FAIR_CHANCE);
    });
    assert_eq!(granted, Err(Exhausted));
}

#[tokio::test(start_paused = true)]
async fn those_who_wait_for_each_other_do_not_all_wait_in_vain() {
    let budget = Budget::new(16 * MIB);
    let mut halves = Vec::new();
    for _ in 0..7 {
        halves.push(holding(&budget, 2 * MIB).await);
    }
    let begun = Instant::now();
    let ended = join_all(halves.into_iter().map(async |mut share| {
        let held = share.hold(4 * MIB).await;
        sleep(Duration::from_millis(10)).await;
        held
    }));
    let ended = ended.await;
    assert_eq!(ended.iter().filter(|held| held.is_ok()).count(), 4, "{ended:?}");
    assert!(begun.elapsed() < Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn a_body_that_grew_is_refused_before_one_that_was_sent() {
    let budget = Budget::new(16 * MIB);
    let mut grown = Vec::new();
    for _ in 0..5 {
        grown.push(transferring(&budget, 2 * MIB, 2000).await.0);
    }
    let (mut sent, _) = transferring(&budget, 3 * MIB, 2 * MIB as u64).await;
    // It is the last to begin, and holds the most.
    let (granted, refused) = tokio::join!(
        async {
            let granted = sent.hold(8 * MIB).await;
            drop(sent);
            granted
        },
        join_all(grown.into_iter().map(async |mut share| share.hold(9 * MIB).await)),
    );
    assert_eq!(granted, Ok(()));
    assert!(refused.contains(&Err(Exhausted)), "{refused:?}");
}

/// Shares that use the whole budget up.
async fn filling(budget: &Budget) -> Vec<Share> {
    let mut all = vec![holding(budget, budget.0.size - budget.0.reserve()).await];
    for _ in 0..budget.0.reserve() / SMALL {
        all.push(holding(budget, SMALL).await);
    }
    assert_eq!(budget.held(), budget.0.size);
    all
}

/// A request whose client has yet to send most of it.
fn begun(budget: &Budget) -> Share {
    let share = budget.share();
    share.begin_transfer(Instant::now(), Arc::default());
    share
}

#[tokio::test(start_paused = true)]
async fn small_requests_are_served_in_the_order_in_which_they_began() {
    const KIB: usize = 1024;
    let budget = Budget::new(16 * MIB);
    let mut all = filling(&budget).await;
    let mut larger = begun(&budget);
    let mut ahead = Box::pin(larger.hold(200 * KIB));
    assert!(ahead.as_mut().now_or_never().is_none());
    // Those that ask for less came later.
    let mut crowd: Vec<Share> = (0..100).map(|_| begun(&budget)).collect();
    let mut crowd = Box::pin(join_all(crowd.iter_mut().map(|share| share.hold(8 * KIB))));
    assert!(crowd.as_mut().now_or_never().is_none());
    all[1].shrink_to(SMALL - 200 * KIB);
    assert_eq!(ahead.await, Ok(()));
    assert_eq!(crowd.await, [Err(Exhausted); 100]);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_has_arrived_whole_waits_for_no_client() {
    let budget = Budget::new(16 * MIB);
    let mut all = filling(&budget).await;
    let mut crowd: Vec<Share> = (0..256).map(|_| begun(&budget)).collect();
    let mut crowd = Box::pin(join_all(crowd.iter_mut().map(|share| share.hold(SMALL))));
    assert!(crowd.as_mut().now_or_never().is_none());
    // The line is full, so the last one in it makes room.
    let mut whole = begun(&budget);
    whole.arrived();
    let (granted, refused) = tokio::join!(whole.hold(SMALL), async {
        sleep(Duration::from_millis(10)).await;
        all.pop();
        crowd.await
    });
    assert_eq!(granted, Ok(()));
    assert_eq!(refused, [Err(Exhausted); 256]);
    // It owes nothing, so nobody calls it slow.
    let mut more = budget.share();
    assert_eq!(more.hold(SMALL).await, Err(Exhausted));
    assert_eq!(budget.held(), 16 * MIB);
}

#[tokio::test(start_paused = true)]
async fn beyond_the_line_a_request_is_refused_at_once() {
    let budget = Budget::new(16 * MIB);
    let _all = filling(&budget).await;
    let mut crowd: Vec<Share> = (0..300).map(|_| begun(&budget)).collect();
    let since = Instant::now();
    let ended =
        join_all(crowd.iter_mut().map(async |share| (share.hold(SMALL).await, since.elapsed()))).await;
    let at_once = ended.iter().filter(|(_, waited)| waited.is_zero()).count();
    assert_eq!(at_once, 300 - 16 * MIB / WAITS_IN);
    assert!(ended.iter().all(|(held, _)| held.is_err()));
}

/// Each waits for 3 s, in which all of them together are looked at 60 times.
#[tokio::test(start_paused = true)]
async fn the_work_of_looking_does_not_grow_with_those_who_wait() {
    const WAITING: usize = 4000;
    let budget = Budget::new(256 * MIB);
    let held = filling(&budget).await;
    let mut crowd: Vec<Share> = (0..WAITING).map(|_| begun(&budget)).collect();
    let ended = join_all(crowd.iter_mut().map(async |share| {
        let held = share.hold(SMALL).await;
        share.budget.books().check(256 * MIB);
        held
    }));
    assert!(ended.await.iter().all(Result::is_err));
    let looks = usize::try_from(WAIT.as_millis() / LOOK_INTERVAL.as_millis()).unwrap() + 1;
    let visits = budget.0.books().visits;
    assert!(visits <= looks * (WAITING + held.len()), "{visits}");
    assert!(visits > 0, "nobody looked");
    budget.0.books().check(256 * MIB);
}

#[tokio::test(start_paused = true)]
async fn nobody_is_looked_at_while_enough_comes_back() {
    let budget = Budget::new(16 * MIB);
    let mut held = Vec::new();
    for mib in [4, 4, 4, 2] {
        held.push(transferring(&budget, mib * MIB, 1000).await);
    }
    sleep(Duration::from_secs(1)).await;
    let mut more = budget.share();
    let granted = tokio::join!(more.hold(MIB), async {
        // One who was asked for it is slow to return it.
        sleep(Duration::from_secs(2)).await;
        budget.0.books().check(16 * MIB);
        held.retain(|(_, give_up)| give_up.notified().now_or_never().is_none());
        held.len()
    });
    assert_eq!(granted, (Ok(()), 3));
    assert_eq!(budget.0.books().visits, 4 + 1, "it was enough to look once");
    drop((held, more));
    budget.0.books().check(16 * MIB);
    assert_eq!(budget.held(), 0);
}

#[tokio::test(start_paused = true)]
async fn who_sends_nothing_is_not_on_the_books() {
    let budget = Budget::new(16 * MIB);
    let silent: Vec<Share> = (0..1000).map(|_| budget.share()).collect();
    let all = holding(&budget, 14 * MIB).await;
    let mut more = budget.share();
    assert_eq!(more.hold(4 * MIB).await, Err(Exhausted));
    assert!(budget.0.books().visits <= 2 * 61, "{}", budget.0.books().visits);
    drop((silent, all, more));
    assert_eq!(budget.held(), 0);
}
