//! Dead letters sent back: each counts once.

use std::process::{Child, Stdio};
use std::time::{Duration, SystemTime};

use catchall::broker::{DEAD, EVENTS};
use harness::dead_letters::{at, dead_letter_properties, delivered, mended, moved, text};
use harness::processes::Service;
use harness::servers::{Servers, eventually, topology};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use serde_json::json;

#[tokio::test]
async fn what_can_be_read_now_is_counted_once() {
    let servers = Servers::fresh().await;
    let _worker = Service::ready("worker", &servers, &[]).await;
    let publisher = servers.publisher().await;
    publisher.publish(delivered("before.com").as_bytes(), Some("m-before")).await;
    servers.settle_at("before.com", 1, 0).await;

    let once = [mended()[0].clone(), ("catchall-dead-letter-id", text("l-1"))];
    let twice = [mended()[0].clone(), ("catchall-dead-letter-id", text("l-2"))];
    for round in 0..3 {
        publisher.publish_dead(&delivered("before.com"), Some("m-before"), &mended()).await;
        publisher.publish_dead(&delivered("named.com"), Some("m-1"), &mended()).await;
        // Two dead letters with one body: each counts, and each once.
        publisher.publish_dead(&delivered("nameless.com"), None, &once).await;
        publisher.publish_dead(&delivered("nameless.com"), None, &twice).await;
        publisher.publish_dead("{}", Some("m-2"), &[("catchall-reason", text("another"))]).await;
        let printed = servers.dead_well(&["replay", "--all", "--reason", "count 3"]);
        assert_eq!(printed, "replayed 4, skipped 0, left 1\n", "round {round}");
        servers.settle_at("before.com", 1, 0).await;
        servers.settle_at("named.com", 1, 0).await;
        servers.settle_at("nameless.com", 2, 0).await;
        assert_eq!(servers.dead_well(&["discard", "--all", "--yes"]), "discarded 1, skipped 0, left 0\n");
    }
    // What still cannot be read comes back, with its reason and under the same reference.
    publisher
        .publish_dead(
            "{}",
            None,
            &[("catchall-reason", text("old")), ("catchall-dead-letter-id", text("l-3"))],
        )
        .await;
    let [before] = &servers.dead_letters(&["list", "--json"])[..] else { panic!() };
    servers.dead_well(&["replay", before["ref"].as_str().unwrap()]);
    eventually("it is back", async || (publisher.waiting(DEAD).await == 1).then_some(())).await;
    let [after] = &servers.dead_letters(&["list", "--json"])[..] else { panic!() };
    assert_eq!(after["ref"], before["ref"]);
    assert_eq!(after["message_id"], "l-3");
    assert!(after["reason"].as_str().unwrap().starts_with("missing field `domain`"), "{after}");
}

#[tokio::test]
async fn a_replayed_message_is_the_one_that_was_dead_lettered() {
    let servers = Servers::fresh().await;
    let publisher = servers.publisher().await;
    let [reason] = mended();
    let [moved] = moved("delivery_limit", SystemTime::now());
    let headers = [
        reason,
        moved,
        ("catchall-dead-lettered-at", at(SystemTime::now())),
        ("catchall-dead-letter-id", text("l-1")),
        ("x-first-death-queue", text(EVENTS)),
        ("x-last-death-reason", text("delivery_limit")),
        ("x-trace", AMQPValue::LongInt(7)),
    ];
    let properties = dead_letter_properties(None, &headers)
        .with_priority(3)
        .with_correlation_id("c-1".into())
        .with_timestamp(1_700_000_000)
        .with_type("event".into())
        .with_app_id("mta".into());
    publisher.publish_to(DEAD, b"[]", properties.clone()).await;
    servers.dead_well(&["replay", "--all"]);
    let (body, headers, replayed) = publisher.take(EVENTS).await.unwrap();
    assert_eq!(body, b"[]");
    // This queue adds what it knows of deliveries.
    let names = headers.inner().keys().map(ShortString::as_str);
    let ours: Vec<&str> = names.filter(|name| !name.starts_with("x-delivery")).collect();
    assert_eq!(ours, ["x-trace"], "{headers:?}");
    let mut expected = FieldTable::default();
    expected.insert("x-trace".into(), AMQPValue::LongInt(7));
    let expected = properties.with_message_id("l-1".into()).with_delivery_mode(2).with_headers(expected);
    assert_eq!(replayed.with_headers(expected.headers().clone().unwrap()), expected);
    assert_eq!(servers.dead_well(&["count"]), "0\n");
}

#[tokio::test]
async fn what_was_handed_out_too_often_is_counted_once() {
    let mut definitions = topology();
    for queue in definitions["queues"].as_array_mut().unwrap() {
        if queue["name"] == EVENTS {
            queue["arguments"]["x-delivery-limit"] = json!(2);
        }
    }
    let servers = Servers::with(&definitions).await;
    let publisher = servers.publisher().await;
    {
        let _worker = Service::ready("worker", &servers, &[]).await;
        publisher.publish(delivered("a.com").as_bytes(), Some("m-counted")).await;
        servers.settle_at("a.com", 1, 0).await;
    }
    // The worker that has counted m-counted has ended before it acknowledged it, and so did the others.
    for id in ["m-counted", "m-not-counted"] {
        publisher.publish(delivered("a.com").as_bytes(), Some(id)).await;
    }
    publisher.publish(delivered("nameless.com").as_bytes(), None).await;
    eventually("all three are dead letters", async || {
        publisher.give_back(EVENTS).await;
        (publisher.waiting(DEAD).await == 3).then_some(())
    })
    .await;
    let dead_letters = servers.dead_letters(&["list", "--json", "--reason", "handed out too often"]);
    assert_eq!(dead_letters.len(), 3);
    for dead_letter in &dead_letters {
        let [shown] = &servers.dead_letters(&["show", dead_letter["ref"].as_str().unwrap(), "--json"])[..]
        else {
            panic!()
        };
        assert_eq!(shown["moved_by_broker"], true);
        assert!(shown["dead_lettered_at"].is_string() && shown["dead_letter_id"].is_null(), "{shown}");
    }
    assert_eq!(servers.dead_well(&["replay", "--all"]), "replayed 3, skipped 0, left 0\n");
    let _worker = Service::ready("worker", &servers, &[]).await;
    servers.settle_at("a.com", 2, 0).await;
    servers.settle_at("nameless.com", 1, 0).await;
}

/// Fills the dead-letter queue with dead letters that each count once, half of them under the `dead_letter_id`.
async fn fill(servers: &Servers, domain: &str, dead_letters: u32) {
    let publisher = servers.publisher().await;
    let body = delivered(domain);
    for some in (0..dead_letters).collect::<Vec<_>>().chunks(500) {
        let published = some.iter().map(|number| {
            let id = format!("{domain}-{number}");
            let (publisher, body) = (&publisher, &body);
            async move {
                let [reason] = mended();
                if number % 2 == 0 {
                    publisher.publish_dead(body, Some(&id), &[reason]).await;
                } else {
                    let own = ("catchall-dead-letter-id", text(&id));
                    publisher.publish_dead(body, None, &[reason, own]).await;
                }
            }
        });
        futures::future::join_all(published).await;
    }
    assert_eq!(publisher.waiting(DEAD).await, dead_letters);
}

#[tokio::test]
async fn a_replay_that_is_killed_loses_nothing_and_counts_nothing_twice() {
    const DEAD_LETTERS: u32 = 6000;
    let servers = Servers::fresh().await;
    // A client for each look: while this thread waits for a program, the test's own sends no heartbeats.
    let waiting = async |queue| servers.publisher().await.waiting(queue).await;
    fill(&servers, "killed.com", DEAD_LETTERS).await;
    let mut ended_early = 0;
    for signal in ["KILL", "INT", "KILL", "TERM"] {
        let publisher = servers.publisher().await;
        let before = publisher.waiting(EVENTS).await;
        let mut replay = servers.spawn_dead(&["replay", "--all"]);
        eventually("some are replayed", async || {
            let some = publisher.waiting(EVENTS).await >= before + 100;
            (some || replay.try_wait().unwrap().is_some()).then_some(())
        })
        .await;
        let pid = replay.id().to_string();
        let sent = command_line("kill", &[&format!("-{signal}"), &pid]);
        let output = replay.wait_with_output().unwrap();
        if sent && !output.status.success() {
            ended_early += 1;
            if signal == "KILL" {
                assert_eq!(output.status.code(), None);
            } else {
                let (stdout, stderr) = (String::from_utf8(output.stdout), String::from_utf8(output.stderr));
                assert_eq!(output.status.code(), Some(1));
                assert!(stderr.unwrap().contains("catchall-dead: interrupted"));
                assert!(stdout.unwrap().starts_with("replayed "));
            }
        }
    }
    assert!(ended_early > 0, "each replay was done before it could be ended");
    eventually("all are replayed", async || {
        servers.dead_well(&["replay", "--all"]);
        (waiting(DEAD).await == 0).then_some(())
    })
    .await;
    assert!(waiting(EVENTS).await >= DEAD_LETTERS);
    let _worker = Service::ready("worker", &servers, &[]).await;
    servers.settle_at("killed.com", DEAD_LETTERS.into(), 0).await;
}

fn command_line(program: &str, arguments: &[&str]) -> bool {
    std::process::Command::new(program).args(arguments).stderr(Stdio::null()).status().unwrap().success()
}

#[tokio::test]
async fn two_operators_and_a_worker_do_not_disturb_each_other() {
    const DEAD_LETTERS: u32 = 1500;
    let servers = Servers::fresh().await;
    let _worker = Service::ready("worker", &servers, &[]).await;
    fill(&servers, "shared.com", DEAD_LETTERS).await;
    let at_once: Vec<Child> = (0..2).map(|_| servers.spawn_dead(&["replay", "--all"])).collect();
    for replay in at_once {
        let output = replay.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }
    eventually("none is left", async || {
        servers.dead_well(&["replay", "--all"]);
        (servers.publisher().await.waiting(DEAD).await == 0).then_some(())
    })
    .await;
    servers.settle_at("shared.com", DEAD_LETTERS.into(), 0).await;
}

#[tokio::test]
async fn what_may_have_been_counted_long_ago_is_skipped_and_named() {
    let servers = Servers::fresh().await;
    let publisher = servers.publisher().await;
    let days = |days: u64| Duration::from_secs(days * 86_400);
    let now = SystemTime::now();
    let dead_lettered = |time| ("catchall-dead-lettered-at", at(time));
    let [reason] = mended();
    let keyed = |domain| format!(r#"{{"domain":"{domain}","event":"delivered","id":"{domain}"}}"#);
    servers.prune_claims_before("message", now - days(10)).await;
    servers.prune_claims_before("event", now - days(5)).await;

    // A message that the broker moved, within a day of the horizon or before it.
    publisher
        .publish_dead(&delivered("doubt.com"), Some("d-1"), &moved("delivery_limit", now - days(20)))
        .await;
    publisher
        .publish_dead(&delivered("doubt.com"), Some("d-2"), &moved("rejected", now - days(9) - days(1) / 2))
        .await;
    publisher.publish_dead(&delivered("doubt.com"), Some("d-3"), &[]).await;
    // Events with ids, whatever brought them.
    publisher
        .publish_dead(&keyed("doubt.com"), Some("d-4"), &[reason.clone(), dead_lettered(now - days(6))])
        .await;
    publisher.publish_dead(&keyed("doubt.com"), None, &mended()).await;

    // What was dead-lettered later, or has no id, or could not be counted.
    publisher
        .publish_dead(&delivered("sure.com"), Some("s-1"), &moved("delivery_limit", now - days(8)))
        .await;
    publisher.publish_dead(&delivered("sure.com"), None, &moved("delivery_limit", now - days(20))).await;
    publisher
        .publish_dead(&delivered("sure.com"), Some("s-2"), &[reason.clone(), dead_lettered(now - days(20))])
        .await;
    publisher
        .publish_dead(&keyed("sure.com"), Some("s-3"), &[reason.clone(), dead_lettered(now - days(3))])
        .await;

    let _worker = Service::ready("worker", &servers, &[]).await;
    let (status, stdout, stderr) = servers.dead(&["replay", "--all"]);
    assert_eq!((status, &*stdout), (1, "replayed 4, skipped 5, left 5\n"), "{stderr}");
    assert!(stderr.contains("catchall-dead: skipped 5 of the dead letters"), "{stderr}");
    servers.settle_at("sure.com", 4, 0).await;
    let dead_letters = servers.dead_letters(&["list", "--json"]);
    assert_eq!(dead_letters.len(), 5);
    for dead_letter in &dead_letters {
        let line = format!("{} is skipped: ", &dead_letter["ref"].as_str().unwrap()[..12]);
        let line = stderr.lines().find(|said| said.starts_with(&line)).expect("it is named");
        assert!(line.contains("may have been counted") && line.contains("--even-if-counted"), "{line}");
    }
    let one = dead_letters.iter().find(|dead_letter| dead_letter["message_id"] == "d-1").unwrap();
    assert_eq!(servers.dead(&["replay", one["ref"].as_str().unwrap()]).0, 1);
    assert_eq!(servers.counters("doubt.com").await, (0, 0));
    let printed = servers.dead_well(&["replay", "--all", "--even-if-counted"]);
    assert_eq!(printed, "replayed 5, skipped 0, left 0\n");
    // Two of them are one event.
    servers.settle_at("doubt.com", 4, 0).await;
}

/// A worker may have met the claim of a dead letter for the last time as long before it was dead-lettered as
/// the ack deadline.
#[tokio::test]
async fn what_is_in_doubt_follows_from_the_ack_deadline() {
    let servers = Servers::fresh().await;
    let publisher = servers.publisher().await;
    let hours = |hours: u64| Duration::from_secs(hours * 3600);
    let now = SystemTime::now();
    servers.prune_claims_before("message", now - hours(100)).await;
    for (id, after) in [("d-1", 3), ("d-2", 12), ("d-3", 30)] {
        let dead_lettered = now - hours(100) + hours(after);
        publisher.publish_dead(&delivered("a.com"), Some(id), &moved("delivery_limit", dead_lettered)).await;
    }
    for (ack_deadline, replayed, left) in
        [("360000", 0, 3), ("86400", 1, 2), ("28800", 1, 1), ("7300", 0, 1), ("7100", 1, 0)]
    {
        let (_, stdout, stderr) = servers.dead(&["replay", "--all", "--ack-deadline-secs", ack_deadline]);
        assert_eq!(
            stdout,
            format!("replayed {replayed}, skipped {left}, left {left}\n"),
            "{ack_deadline}: {stderr}"
        );
    }
}

#[tokio::test]
async fn what_the_queue_of_events_refuses_stays_a_dead_letter() {
    let mut definitions = topology();
    for queue in definitions["queues"].as_array_mut().unwrap() {
        if queue["name"] == EVENTS {
            // Such a queue refuses exactly what is past its limit.
            queue["arguments"] =
                json!({"x-queue-type": "classic", "x-max-length": 5, "x-overflow": "reject-publish"});
        }
    }
    let servers = Servers::with(&definitions).await;
    let publisher = servers.publisher().await;
    for number in 0..12 {
        publisher.publish_dead(&delivered("full.com"), Some(&format!("m-{number}")), &mended()).await;
    }
    let (status, stdout, stderr) = servers.dead(&["replay", "--all"]);
    assert_eq!((status, &*stdout), (1, "replayed 5, skipped 0, left 7\n"), "{stderr}");
    assert!(stderr.contains("the broker refuses messages: the queue is at its limit"), "{stderr}");
    assert_eq!((publisher.waiting(EVENTS).await, servers.dead_well(&["count"])), (5, "7\n".to_owned()));
}
