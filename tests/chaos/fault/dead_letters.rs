//! Dead letters, and the tool that replays them.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use catchall::broker::{DEAD, EVENTS};
use futures::future::join_all;
use harness::amqp::AmqpClient;
use harness::dead_letters::{delivered, mended, text};
use harness::expected::ExpectedCounts;
use harness::servers::Servers;
use hyper::Method;

use super::lifted::Lifted;
use crate::cluster::Cluster;
use crate::rng::Rng;

/// Dead letters that can be read now, each with its own domain. Half have an id of their own, half the id of
/// the dead letter.
const MENDED: usize = 2000;

/// Messages that can never be read, with and without an id.
const POISONS: usize = 20;

/// How often the tool is killed before it may finish.
const KILLS: usize = 2;

/// How long messages may take to become dead letters, and all dead letters to be replayed.
const TIMEOUT: Duration = Duration::from_mins(1);

pub(super) async fn replay(cluster: &mut Cluster, rng: &mut Rng, label: &str) -> Result<Lifted> {
    let mut expected = ExpectedCounts::default();
    let servers = cluster.servers.clone();
    empty(&servers).await;
    let publisher = servers.publisher().await;
    let poisons = (0..POISONS).map(|number| {
        let (publisher, id) = (&publisher, format!("{label}-poison-{number}"));
        async move { publisher.publish(b"{}", (number % 2 == 0).then_some(&*id)).await }
    });
    join_all(poisons).await;
    await_dead_letters(&publisher, POISONS).await?;
    for number in 0..MENDED {
        expected.expect(domain(number, label), 1, 1);
    }
    for numbers in (0..MENDED).collect::<Vec<_>>().chunks(500) {
        join_all(numbers.iter().map(|number| dead_letter(&publisher, *number, label))).await;
    }
    let mut killed = 0;
    for _ in 0..KILLS {
        let mut replay = servers.spawn_dead(&["replay", "--all"]);
        // Waits until it has begun.
        let begun = Instant::now();
        let before = publisher.waiting(DEAD).await;
        while publisher.waiting(DEAD).await >= before && begun.elapsed() < TIMEOUT {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        rng.pause(0, 150).await;
        let sent = replay.kill();
        let ended = replay.wait()?;
        sent?;
        // A process that has ended by itself has an exit status.
        killed += usize::from(ended.code().is_none());
    }
    let begun = Instant::now();
    let mut lifted = loop {
        // Messages that cannot be read are dead-lettered again.
        let (_, stdout, stderr) = dead(&servers, &["replay", "--all", "--reason", "count 3"]).await;
        if stdout.contains("replayed 0, skipped 0") {
            break Lifted::now();
        }
        if begun.elapsed() > TIMEOUT {
            break Lifted {
                failures: vec![format!("catchall-dead replay: {stdout}{stderr}")],
                ..Lifted::now()
            };
        }
    };
    // A dead letter that was replayed but not yet removed when the tool was killed is replayed twice, under
    // one id.
    let left = publisher.waiting(DEAD).await as usize;
    if left < POISONS {
        lifted.failures.push(format!("{left} dead letters are left of {POISONS} that cannot be read"));
    }
    empty(&servers).await;
    if killed == 0 {
        lifted.failures.push("each replay was done before it could be killed".into());
    }
    lifted.note = Some(format!("{MENDED} dead letters; the tool was killed {killed} times"));
    Ok(Lifted { expected, ..lifted })
}

fn domain(number: usize, label: &str) -> String {
    format!("d{number}.{label}.test")
}

/// Publishes a dead letter that an old worker could not read, but a worker of today can.
async fn dead_letter(publisher: &AmqpClient, number: usize, label: &str) {
    let id = format!("{label}-letter-{number}");
    let own = number.is_multiple_of(2);
    let headers: Vec<_> =
        mended().into_iter().chain((!own).then(|| ("catchall-dead-letter-id", text(&id)))).collect();
    publisher.publish_dead(&delivered(&domain(number, label)), own.then_some(&*id), &headers).await;
}

/// Waits until there are exactly so many dead letters.
pub(super) async fn await_dead_letters(publisher: &AmqpClient, letters: usize) -> Result<()> {
    let begun = Instant::now();
    loop {
        let waiting = publisher.waiting(DEAD).await as usize;
        if waiting == letters {
            return Ok(());
        }
        if begun.elapsed() > TIMEOUT {
            let queued = publisher.waiting(EVENTS).await;
            bail!("there are {waiting} dead letters instead of {letters}, and {queued} messages wait");
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Removes all dead letters, which an earlier fault may have left.
pub(super) async fn empty(servers: &Servers) {
    let path = format!("/api/queues/{}/{DEAD}/contents", servers.name);
    servers.management(Method::DELETE, &path, "").await;
}

/// Runs `catchall-dead` to its end. Returns whether it succeeded, and what it printed.
pub(super) async fn dead(servers: &Servers, arguments: &[&str]) -> (bool, String, String) {
    let servers = servers.clone();
    let arguments: Vec<String> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
    let running = tokio::task::spawn_blocking(move || {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        servers.dead(&arguments)
    });
    let (status, stdout, stderr) = running.await.expect("it does not panic");
    (status == 0, stdout, stderr)
}
