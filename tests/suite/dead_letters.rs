//! Dead letters: looked at, sent back so that each counts once, discarded, by the real program.

use std::collections::{BTreeMap, BTreeSet};

use catchall::broker::{DEAD, EVENTS};
use futures::StreamExt;
use harness::dead_letters::{delivered, mended, text};
use harness::frames::{publish_in_latin_1, publish_nested};
use harness::processes::{Service, run};
use harness::servers::{Servers, eventually};
use lapin::options::BasicConsumeOptions;
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Connection, ConnectionProperties};
use serde_json::{Value, json};

use crate::poison::poisons;

#[tokio::test]
async fn letters_are_listed_and_shown_and_stay() {
    let servers = Servers::fresh().await;
    let publisher = servers.publisher().await;
    let poisons = poisons();
    {
        let _worker = Service::ready("worker", &servers, &[]).await;
        for (number, (body, properties, _)) in poisons.iter().enumerate() {
            let mut headers = FieldTable::default();
            headers.insert("x-trace".into(), AMQPValue::LongInt(7));
            let properties = properties.clone().with_headers(headers);
            // Every third without an id of its own.
            let properties = match number % 3 {
                0 => properties,
                _ => properties.with_message_id(format!("poison-{number}").into()),
            };
            publisher.publish_with(body, properties).await;
        }
        let count = u32::try_from(poisons.len()).unwrap();
        eventually("all are dead", async || (publisher.waiting(DEAD).await == count).then_some(())).await;
    }
    assert_eq!(servers.dead_well(&["count"]), format!("{}\n", poisons.len()));
    assert_eq!(servers.dead_letters(&["count", "--json"]), [json!({ "count": poisons.len() })]);

    let listed = servers.dead_letters(&["list", "--json"]);
    assert_eq!(listed.len(), poisons.len());
    let plain = servers.dead_well(&["list"]);
    let mut references = BTreeSet::new();
    for (number, (body, _, reason)) in poisons.iter().enumerate() {
        let is_it = |letter: &&Value| {
            letter["size"] == body.len()
                && letter["reason"].as_str().unwrap().contains(reason)
                && (number % 3 == 0) == letter["message_id"].is_null()
        };
        let found: Vec<&Value> = listed.iter().filter(is_it).collect();
        assert!(!found.is_empty(), "{reason} is not listed: {listed:#?}");
        let id = format!("poison-{number}");
        let found = found.iter().find(|letter| number % 3 == 0 || letter["message_id"] == *id).unwrap();
        let reference = found["ref"].as_str().unwrap();
        assert!(references.insert(reference), "{reference} means two letters");
        let line = plain.lines().find(|line| line.starts_with(&reference[..12])).unwrap();
        assert!(line.contains(reason), "{line}");

        let [shown] = &servers.dead_letters(&["show", reference, "--json"])[..] else { panic!() };
        assert_eq!(shown["headers"]["x-trace"], 7);
        assert_eq!(shown["moved_by_broker"], false);
        assert_eq!(shown["routing_key"], "any.key");
        assert!(shown["dead_lettered_at"].as_str().unwrap().ends_with('Z'), "{shown}");
        assert_eq!(shown["dead_letter_id"].is_null(), number % 3 != 0, "{shown}");
        match std::str::from_utf8(body) {
            Ok(body) => assert_eq!(shown["body"], body),
            Err(_) => assert_eq!(shown["body_hex"], "fffe00"),
        }
        let plain = servers.dead_well(&["show", &reference[..12]]);
        assert!(plain.contains(reference) && plain.contains("header x-trace"), "{plain}");
    }
    assert!(plain.contains("\\xff\\xfe\\0"), "{plain}");

    assert_eq!(servers.dead_well(&["list", "--limit", "3"]).lines().count(), 3);
    let some = servers.dead_letters(&["list", "--json", "--reason", "missing field"]);
    assert_eq!(some.len(), poisons.iter().filter(|(_, _, reason)| reason.contains("missing field")).count());
    let (status, _, stderr) = servers.dead(&["show", &"0".repeat(32)]);
    assert!(status == 1 && stderr.contains("no dead letter has the reference"), "{stderr}");
    // Nobody has taken any, and they are still what they were.
    let again: BTreeSet<String> =
        servers.dead_letters(&["list", "--json"]).iter().map(|letter| letter["ref"].to_string()).collect();
    assert_eq!(again.len(), poisons.len());
    assert!(references.iter().all(|reference| again.contains(&format!("\"{reference}\""))));
}

#[tokio::test]
async fn only_what_is_meant_is_discarded() {
    let servers = Servers::fresh().await;
    let references = || -> BTreeMap<String, String> {
        let letters = servers.dead_letters(&["list", "--json", "--limit", "1000"]);
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        letters.iter().map(|letter| (text(&letter["message_id"]), text(&letter["ref"]))).collect()
    };
    // Not used any more once the programs run: meanwhile this thread sends no heartbeats.
    let publisher = servers.publisher().await;
    // More than the program has in its hands at a time, and a pair that shares its first digit.
    for number in 0..300 {
        let reason = if number % 100 == 0 { "rare" } else { "frequent" };
        let id = format!("m-{number}");
        publisher.publish_dead("no event", Some(&id), &[("catchall-reason", text(reason))]).await;
    }
    for _ in 0..3 {
        publisher.publish_dead("all alike", None, &[("catchall-reason", text("frequent"))]).await;
    }
    drop(publisher);
    let before = references();
    assert_eq!(before.len(), 301);

    let (one, other) = (&before["m-7"], &before["m-250"]);
    assert_eq!(
        servers.dead_well(&["discard", one, &other[..12].to_uppercase()]),
        "discarded 2, skipped 0, left 301\n"
    );
    let (status, stdout, stderr) = servers.dead(&["discard", one, &before["m-8"]]);
    assert_eq!((status, &*stdout), (1, "discarded 1, skipped 0, left 300\n"));
    assert!(stderr.contains(&format!("{one}: no dead letter has this reference")), "{stderr}");
    let (status, stdout, stderr) = servers.dead(&["discard", &one[..1], &before["m-9"]]);
    assert_eq!((status, &*stdout), (1, ""));
    assert!(stderr.contains("is the beginning of") && stderr.contains("nothing was done"), "{stderr}");
    let (status, stdout, stderr) = servers.dead(&["discard", &before[""]]);
    assert_eq!((status, &*stdout), (0, "discarded 3, skipped 0, left 297\n"));
    assert!(stderr.contains("3 dead letters are alike"), "{stderr}");

    let (status, _, stderr) = servers.dead(&["discard", "--all", "--reason", "rare"]);
    assert!(status == 2 && stderr.contains("--yes is required"), "{stderr}");
    assert_eq!(
        servers.dead_well(&["discard", "--all", "--reason", "rare", "--yes"]),
        "discarded 3, skipped 0, left 294\n"
    );
    let mut expected = before;
    for gone in ["", "m-7", "m-250", "m-8", "m-0", "m-100", "m-200"] {
        expected.remove(gone).unwrap();
    }
    assert_eq!(references(), expected);
    assert_eq!(servers.dead_well(&["discard", "--all", "--yes"]), "discarded 294, skipped 0, left 0\n");
    assert_eq!(servers.publisher().await.waiting(EVENTS).await, 0);

    assert_eq!(servers.dead_well(&["count"]), "0\n");
    assert_eq!(servers.dead_well(&["list"]), "");
    assert_eq!(servers.dead_well(&["replay", "--all"]), "replayed 0, skipped 0, left 0\n");
    assert_eq!(servers.dead(&["replay", "abc"]).0, 1);
}

#[tokio::test]
async fn nothing_is_touched_where_something_is_missing() {
    let away = [
        ("CATCHALL_AMQP_URL", "amqp://alice:s3cret@127.0.0.1:1/%2f"),
        ("CATCHALL_DATABASE_URL", "postgres://alice:s3cret@127.0.0.1:1/catchall"),
    ];
    for (arguments, code, sentence) in [
        (&["count"][..], 1, "amqp://127.0.0.1:1/%2f: connection refused"),
        (&["list"], 1, "amqp://127.0.0.1:1/%2f: connection refused"),
        (&["show", "abc"], 1, "amqp://127.0.0.1:1/%2f: connection refused"),
        (&["discard", "abc"], 1, "amqp://127.0.0.1:1/%2f: connection refused"),
        (&["replay", "--all"], 1, "postgres://127.0.0.1:1/catchall: "),
        (&["count", "--amqp-url", "http://alice:s3cret@broker"], 2, "CATCHALL_AMQP_URL (--amqp-url <URL>)"),
        (&["replay", "--all", "--database-url", "s3cret"], 2, "CATCHALL_DATABASE_URL (--database-url <URL>)"),
        (&["show", "xyz"], 2, "up to 32 hexadecimal digits"),
        (&["show"], 2, "<REF> is required; see --help"),
        (&["replay"], 2, "<REF|--all> is required; see --help"),
        (&["replay", "abc", "--reason", "x"], 2, "cannot be used with"),
        (&["discard", "--all"], 2, "--yes is required; see --help"),
        (&["discard", "--reason", "x", "--yes"], 2, "<REF|--all> is required; see --help"),
        (&["replay", "--all", "abc"], 2, "cannot be used with"),
        (&["list", "--limit", "many"], 2, "the value \"many\" of --limit <N> is not valid"),
        (&["bury"], 2, "unrecognized subcommand"),
        (&[], 2, "Usage: catchall-dead"),
    ] {
        let (status, stdout, stderr) = run("dead", arguments, &away);
        assert_eq!(status.code(), Some(code), "{arguments:?}: {stdout}{stderr}");
        assert!(stderr.contains(sentence), "{arguments:?}: {stderr}");
        assert!(!stderr.contains("s3cret"), "{stderr}");
    }
    for (arguments, variable) in [
        (&["count"][..], "CATCHALL_AMQP_URL (--amqp-url <URL>) is required"),
        (&["replay", "--all"], "CATCHALL_DATABASE_URL (--database-url <URL>)"),
    ] {
        let (status, _, stderr) = run("dead", arguments, &[]);
        assert!(status.code() == Some(2) && stderr.contains(variable), "{stderr}");
    }
    for command in ["count", "list", "show", "replay", "discard"] {
        let (status, help, _) = run("dead", &[command, "--help"], &away);
        assert!(status.success() && help.contains("CATCHALL_AMQP_URL") && !help.contains("s3cret"), "{help}");
        assert_eq!(help.contains("CATCHALL_DATABASE_URL"), command == "replay");
    }

    let servers = Servers::bare().await;
    let (status, _, stderr) = servers.dead(&["count"]);
    assert!(status == 1 && stderr.contains("has no exchange \"catchall.events\": create it"), "{stderr}");
    let servers = Servers::fresh().await;
    let publisher = servers.publisher().await;
    publisher.publish_dead(&delivered("a.com"), Some("m-1"), &mended()).await;
    let (status, _, stderr) =
        servers.dead(&["replay", "--all", "--database-url", "postgres://alice:s3cret@127.0.0.1:1/catchall"]);
    assert!(status == 1 && stderr.contains("cannot determine which claims have been pruned"), "{stderr}");
    assert_eq!(servers.dead_well(&["count"]), "1\n");
}

/// Whoever looks next would miss them.
#[tokio::test]
async fn what_does_not_come_back_to_the_queue_is_told() {
    const LETTERS: usize = 400;
    let servers = Servers::fresh().await;
    let publisher = servers.publisher().await;
    for number in 0..LETTERS {
        let id = format!("{number:0200}");
        publisher.publish_dead("no event", Some(&id), &mended()).await;
    }
    // It prints more than a pipe holds, and waits with the letters in its hands until this is read.
    let looking = servers.spawn_dead(&["list", "--limit", "1000"]);
    eventually("it has some", async || {
        let waiting = publisher.waiting(DEAD).await as usize;
        (0 < waiting && waiting < LETTERS).then_some(())
    })
    .await;
    let connection = Connection::connect(&servers.amqp_url, ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    let options = BasicConsumeOptions::default();
    let other = channel.basic_consume(DEAD.into(), "".into(), options, FieldTable::default());
    let mut other = other.await.unwrap();
    other.next().await.unwrap().unwrap();
    let output = tokio::task::spawn_blocking(|| looking.wait_with_output().unwrap()).await.unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{stderr}");
    assert!(stderr.contains(" of the dead letters back yet: it is slow, or somebody else"), "{stderr}");
    drop((other, channel, connection));
    eventually("they are back", async || (publisher.waiting(DEAD).await as usize == LETTERS).then_some(()))
        .await;
    let (_, stdout, stderr) = servers.dead(&["list", "--limit", "1000"]);
    assert_eq!((stdout.lines().count(), &*stderr), (LETTERS, ""));
}

/// They stop nobody, neither those who look nor those who look at others.
#[tokio::test]
async fn letters_that_no_client_library_reads_are_handled_like_others() {
    let servers = Servers::fresh().await;
    let publisher = servers.publisher().await;
    let event = delivered("a.com");
    let large = format!("{event}{}", " ".repeat(600_000));
    publish_in_latin_1(&servers, DEAD, event.as_bytes()).await;
    publish_nested(&servers, DEAD, 18_000, b"{}").await;
    publisher.publish_dead(&large, Some("large"), &mended()).await;
    publisher.publish_dead(&event, Some("good"), &mended()).await;
    let small = ["--max-message-bytes", "524288"];
    let with = |arguments: &[&'static str]| [arguments, &small].concat();

    let letters = servers.dead_letters(&with(&["list", "--json"]));
    let reference = |reason: &str, letters: &[Value]| {
        let is_it = |letter: &&Value| letter["reason"].as_str().unwrap().contains(reason);
        letters.iter().find(is_it).unwrap_or_else(|| panic!("{reason}: {letters:?}"))["ref"]
            .to_string()
            .replace('"', "")
    };
    let garbled = reference("its routing key is not UTF-8", &letters);
    let deep = reference("its header deep is nested too deeply", &letters);
    let unread = reference("and was not read", &letters);
    let sizes: BTreeSet<u64> = letters.iter().map(|letter| letter["size"].as_u64().unwrap()).collect();
    assert_eq!(sizes, BTreeSet::from([2, event.len() as u64, large.len() as u64]));

    let [shown] = &servers.dead_letters(&["show", &garbled, "--json"])[..] else { panic!() };
    assert_eq!((&shown["routing_key"], &shown["body"]), (&json!("m\\xfcller.de"), &json!(event)));
    let [shown] = &servers.dead_letters(&["show", &deep, "--json"])[..] else { panic!() };
    assert_eq!((&shown["headers"]["number"], &shown["headers"]["deep"]), (&json!(7), &Value::Null));
    let shown = servers.dead_well(&[&["show", &unread][..], &small].concat());
    assert!(shown.contains(&format!("body, {} B, which was not read", large.len())), "{shown}");

    let _worker = Service::ready("worker", &servers, &[]).await;
    // The key with which it came does not matter, the body does.
    let (status, stdout, stderr) = servers.dead(&[&["replay", &garbled, &unread][..], &small].concat());
    assert_eq!((status, &*stdout), (1, "replayed 1, skipped 1, left 3\n"), "{stderr}");
    assert!(stderr.contains("was not read; CATCHALL_MAX_MESSAGE_BYTES says how large it may be"), "{stderr}");
    servers.settle_at("a.com", 1, 0).await;
    assert_eq!(servers.dead_well(&["discard", &deep]), "discarded 1, skipped 0, left 2\n");
    assert_eq!(servers.dead_well(&["replay", "--all"]), "replayed 2, skipped 0, left 0\n");
    servers.settle_at("a.com", 3, 0).await;
}
