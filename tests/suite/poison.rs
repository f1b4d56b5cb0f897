//! Messages that cannot be read: kept with their reason, and nobody waits for them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use catchall::broker::{DEAD, EVENTS};
use harness::frames::{publish_in_latin_1, publish_nested};
use harness::processes::Service;
use harness::servers::{Servers, eventually, topology};
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Confirmation, Connection, ConnectionProperties};
use serde_json::json;
use sqlx::{Connection as _, PgConnection};

use crate::retention::watermark;

/// A body, how it is labelled, and what the reason says.
pub(crate) fn poisons() -> Vec<(Vec<u8>, BasicProperties, &'static str)> {
    let json =
        || BasicProperties::default().with_delivery_mode(2).with_content_type("application/json".into());
    let mut poisons: Vec<(Vec<u8>, BasicProperties, &str)> = [
        ("", "EOF while parsing a value"),
        ("not JSON", "expected ident"),
        ("{\"domain\":\"a.com\",\"event\":\"delivered\"", "EOF while parsing an object"),
        ("42", "expected an event or an array of events"),
        ("{}", "missing field `domain`"),
        (r#"{"domain":"a.com"}"#, "missing field `event`"),
        (r#"{"domain":"localhost","event":"delivered"}"#, "at least two labels"),
        (r#"{"domain":"127.0.0.1","event":"delivered"}"#, "an IP address is not a domain name"),
        (r#"{"domain":"a.com","event":"clicked"}"#, "unknown event \"clicked\""),
        (r#"{"domain":"a.com","event":"delivered","count":0}"#, "a count from 1 to 1000000000"),
        (r#"{"domain":"a.com","event":"delivered","count":-5}"#, "a count from 1 to 1000000000"),
        (r#"{"domain":"a.com","event":"delivered","count":1.5}"#, "a count from 1 to 1000000000"),
        (r#"{"domain":"a.com","event":"delivered","id":7}"#, "expected a string"),
        (
            r#"[{"domain":"poisoned.com","event":"delivered"},{"domain":"poisoned.com"}]"#,
            "missing field `event`",
        ),
        (r#"[[{"domain":"a.com","event":"delivered"}]]"#, "expected an event"),
    ]
    .map(|(body, reason)| (body.into(), json(), reason))
    .into();
    poisons.push((b"\xff\xfe\x00".to_vec(), json(), "expected value"));
    let good = br#"{"domain":"poisoned.com","event":"delivered"}"#;
    poisons.push((good.to_vec(), json().with_content_type("text/csv".into()), "content type \"text/csv\""));
    poisons.push((good.to_vec(), json().with_content_encoding("gzip".into()), "content encoding \"gzip\""));
    poisons
}

#[tokio::test]
async fn poison_is_kept_with_its_reason_and_holds_nothing_up() {
    let servers = Servers::fresh().await;
    let worker = Service::ready("worker", &servers, &[]).await;
    let publisher = servers.publisher().await;
    let poisons = poisons();
    let mut expected = BTreeMap::new();
    for (number, (body, properties, reason)) in poisons.iter().enumerate() {
        let mut headers = FieldTable::default();
        headers.insert("x-trace".into(), AMQPValue::LongInt(7));
        let id = format!("poison-{number}");
        publisher.publish(br#"{"domain":"good.com","event":"delivered"}"#, None).await;
        let properties = properties.clone().with_message_id(id.clone().into()).with_headers(headers);
        publisher.publish_with(body, properties).await;
        expected.insert(id, (body.clone(), *reason));
    }
    servers.settle_at("good.com", i64::try_from(poisons.len()).unwrap(), 0).await;
    assert_eq!(servers.counters("poisoned.com").await, (0, 0));
    for _ in 0..poisons.len() {
        let (body, headers, properties) =
            eventually("a dead letter is there", async || publisher.dead_letter().await).await;
        let id = properties.message_id().clone().unwrap().to_string();
        let (sent, reason) = expected.remove(&id).unwrap_or_else(|| panic!("{id} came twice"));
        let said = match headers.inner().get("catchall-reason") {
            Some(AMQPValue::LongString(said)) => said.to_string(),
            other => panic!("{id}: {other:?}"),
        };
        assert!(said.contains(reason), "{id}: {said:?} does not say {reason:?}");
        assert_eq!(body, sent);
        assert_eq!(headers.inner().get("x-trace"), Some(&AMQPValue::LongInt(7)), "what was there stays");
    }
    assert!(publisher.dead_letter().await.is_none());
    // Once this is in the log, so is all that was logged before.
    worker.signal("TERM");
    worker.logs("stopping on SIGTERM").await;
    assert!(!worker.has_logged("broker is not available"), "no message may break a session");
}

/// What ends the connection of most clients, or the process, or fills its memory.
#[tokio::test]
async fn what_no_client_library_reads_becomes_a_dead_letter_and_stops_nobody() {
    let servers = Servers::fresh().await;
    let limit = [("CATCHALL_MAX_MESSAGE_BYTES", "524288")];
    let worker = Service::ready("worker", &servers, &limit).await;
    let publisher = servers.publisher().await;
    let good = br#"{"domain":"good.com","event":"delivered"}"#;
    let bad = br#"{"domain":"bad.com","event":"delivered"}"#;
    // It would be counted, if only it were shorter.
    let large = [bad.to_vec(), vec![b' '; 600_000]].concat();
    for round in 0..10 {
        for number in 0..10 {
            publisher.publish(good, Some(&format!("good-{round}-{number}"))).await;
        }
        publish_in_latin_1(&servers, EVENTS, bad).await;
        match round {
            2 => publish_nested(&servers, EVENTS, 18_000, bad).await,
            4 => publisher.publish(&large, Some("large")).await,
            6 => {
                // A publisher that sets this header itself is believed, but writes no lines.
                let mut headers = FieldTable::default();
                let forged = AMQPValue::LongString("forged\n\u{2028}line".into());
                headers.insert("catchall-unreadable".into(), forged);
                let properties = BasicProperties::default().with_message_id("forged".into());
                publisher.publish_with(bad, properties.with_headers(headers)).await;
            }
            _ => {}
        }
        // The good ones are not held up by what is between them.
        servers.settle_at("good.com", 10 * (round + 1), 0).await;
    }
    eventually("all are dead letters", async || (publisher.waiting(DEAD).await == 13).then_some(())).await;
    assert_eq!(servers.counters("bad.com").await, (0, 0));
    worker.logs("its routing key is not UTF-8 (m\\\\xfcller.de)").await;
    worker.logs_times("its header deep is nested too deeply", 1).await;
    worker.logs_times("its body of 600040 bytes is larger than 524288 and was not read", 1).await;
    let (_, metrics) = worker.ops("/metrics").await;
    assert!(metrics.contains("catchall_worker_duplicates_total 0"), "nothing came back: {metrics}");
    worker.signal("TERM");
    worker.logs("stopping on SIGTERM").await;
    assert!(!worker.has_logged("broker is not available"), "no message may break a session");
    assert!(!worker.has_logged("dead letters with their reasons"), "and each that can be copied is");

    // The broker has kept them as they were.
    let mut reasons: Vec<String> = servers
        .dead_letters(&["list", "--json"])
        .iter()
        .map(|letter| letter["reason"].as_str().unwrap().to_owned())
        .collect();
    reasons.sort();
    let garbled = "it cannot be read whole: its routing key is not UTF-8 (m\\xfcller.de)";
    assert_eq!(reasons.iter().filter(|reason| *reason == garbled).count(), 10, "{reasons:?}");
    assert!(reasons.contains(&"it cannot be read whole: its header deep is nested too deeply".to_owned()));
    assert!(reasons.contains(&"it cannot be read whole: forged\\n\\u{2028}line".to_owned()), "{reasons:?}");
    assert!(reasons.contains(&"moved by the broker: rejected by a worker".to_owned()), "the tool reads more");
}

#[tokio::test]
async fn a_message_that_would_not_be_read_is_refused_to_its_publisher() {
    let servers = Servers::fresh().await;
    let properties = ConnectionProperties::default();
    let connection = Connection::connect(&servers.amqp_url, properties).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    for (size, is_taken) in [(1 << 20, true), ((1 << 20) + 1, false)] {
        let (body, options) = (vec![b' '; size], BasicPublishOptions::default());
        let publishing =
            channel.basic_publish(EVENTS.into(), "".into(), options, &body, BasicProperties::default());
        let confirm = publishing.await.unwrap().await;
        assert_eq!(matches!(confirm, Ok(Confirmation::Ack(None))), is_taken, "{confirm:?}");
        if let Err(error) = confirm {
            assert!(error.to_string().contains("PRECONDITION"), "{error}");
        }
    }
}

/// Lets nobody write the counters until it is dropped.
pub(crate) async fn lock_counters(servers: &Servers) -> PgConnection {
    let mut locks = PgConnection::connect(&servers.database_url).await.unwrap();
    sqlx::raw_sql("begin; lock table domain_counters in exclusive mode").execute(&mut locks).await.unwrap();
    locks
}

/// A message that ends the process, in whatever way, must not meet a thousand good ones there.
#[tokio::test]
async fn a_fresh_worker_takes_little_until_it_has_achieved_something() {
    let servers = Servers::fresh().await;
    // With this one no watermark is due, whose messages would wait beside the others.
    watermark(&servers, "0 seconds", "0 seconds").await;
    let publisher = servers.publisher().await;
    let good = br#"{"domain":"good.com","event":"delivered"}"#;
    let fill = async |batch: &str| {
        for number in 0..50 {
            publisher.publish(good, Some(&format!("{batch}-{number}"))).await;
        }
    };
    fill("first").await;
    let locks = lock_counters(&servers).await;
    for _ in 0..3 {
        let mut worker = Service::start("worker", &servers, &[]).await;
        let taken = async || (publisher.waiting(EVENTS).await < 50).then_some(());
        eventually("the worker has taken a message", taken).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(publisher.waiting(EVENTS).await, 49);
        worker.signal("KILL");
        worker.ended().await;
        let back = async || (publisher.waiting(EVENTS).await == 50).then_some(());
        eventually("the message is back", back).await;
    }
    let _worker = Service::start("worker", &servers, &[]).await;
    drop(locks);
    servers.settle_at("good.com", 50, 0).await;
    // One that has achieved something takes what there is.
    let locks = lock_counters(&servers).await;
    fill("second").await;
    eventually("all is taken", async || (publisher.waiting(EVENTS).await == 0).then_some(())).await;
    drop(locks);
    servers.settle_at("good.com", 100, 0).await;
}

/// Once all is settled. The last lines may be on their way here.
async fn logged_ten_a_minute(worker: &Service, text: &str, begun: Instant) {
    let ten = async || (worker.count_logged(text) >= 10).then_some(());
    eventually("there are ten lines", ten).await;
    worker.signal("TERM");
    // Once this is in the log, so is all that was logged before.
    worker.logs("stopping on SIGTERM").await;
    let most = 10 * (1 + usize::try_from(begun.elapsed().as_secs() / 60).unwrap());
    let lines = worker.count_logged(text);
    assert!(lines <= most, "{lines} lines were logged");
}

#[tokio::test]
async fn what_the_database_refuses_does_not_fill_the_log() {
    let servers = Servers::fresh().await;
    servers.execute("alter table domain_counters add check (domain <> 'bad.com')").await;
    let publisher = servers.publisher().await;
    for _ in 0..40 {
        publisher.publish(br#"{"domain":"bad.com","event":"delivered"}"#, None).await;
    }
    let begun = Instant::now();
    let worker = Service::start("worker", &servers, &[]).await;
    eventually("all are dead letters", async || (publisher.waiting(DEAD).await == 40).then_some(())).await;
    logged_ten_a_minute(&worker, "the database refuses a message", begun).await;
}

/// Whatever is returned comes nearer to the delivery limit. And nobody can fill the log.
#[tokio::test]
async fn a_worker_that_takes_more_and_more_returns_nothing() {
    const POISONS: u32 = 300;
    let servers = Servers::fresh().await;
    let publisher = servers.publisher().await;
    for number in 0..POISONS {
        publisher.publish(b"poison", Some(&format!("poison-{number}"))).await;
    }
    let begun = Instant::now();
    let worker = Service::start("worker", &servers, &[]).await;
    let all = async || (publisher.waiting(DEAD).await == POISONS).then_some(());
    eventually("all are dead letters", all).await;
    let mut returned = 0;
    // A copy has the headers with which its message was delivered.
    while let Some((_, headers, _)) = publisher.dead_letter().await {
        if let Some(AMQPValue::LongLongInt(1..)) = headers.inner().get("x-delivery-count") {
            returned += 1;
        }
    }
    assert!(returned <= POISONS / 10, "{returned} messages were returned");
    // After a minute the others are told as a number, although nothing comes any more.
    tokio::time::sleep(Duration::from_secs(30)).await;
    worker.logs("more messages could not be read").await;
    logged_ten_a_minute(&worker, "a message cannot be read", begun).await;
}

#[tokio::test]
async fn only_what_could_not_be_kept_with_its_reason_is_rejected() {
    const POISONS: usize = 12;
    let mut definitions = topology();
    for queue in definitions["queues"].as_array_mut().unwrap() {
        if queue["name"] == DEAD {
            // Such a queue refuses exactly what is past its limit.
            queue["arguments"] =
                json!({"x-queue-type": "classic", "x-max-length": 5, "x-overflow": "reject-publish"});
        } else {
            queue["arguments"]["x-dead-letter-exchange"] = json!("rejected");
        }
    }
    let named = |kind: &str| {
        let mut object = topology()[kind].as_array().unwrap()[0].clone();
        object["name"] = json!("rejected");
        object
    };
    let mut queue = named("queues");
    queue["arguments"] = json!({"x-queue-type": "quorum"});
    let mut binding = topology()["bindings"].as_array().unwrap()[0].clone();
    (binding["source"], binding["destination"]) = (json!("rejected"), json!("rejected"));
    for (kind, object) in [("exchanges", named("exchanges")), ("queues", queue), ("bindings", binding)] {
        definitions[kind].as_array_mut().unwrap().push(object);
    }
    let servers = Servers::with(&definitions).await;
    let publisher = servers.publisher().await;
    for number in 0..POISONS {
        publisher.publish(b"poison", Some(&format!("poison-{number}"))).await;
    }
    let _worker = Service::ready("worker", &servers, &[]).await;
    servers.settle().await;
    let mut ids = BTreeSet::new();
    for (queue, count) in [(DEAD, 5), ("rejected", POISONS - 5)] {
        for _ in 0..count {
            let what = format!("{queue} has {count}");
            let (_, headers, properties) = eventually(&what, async || publisher.take(queue).await).await;
            assert_eq!(headers.contains_key("catchall-reason"), queue == DEAD);
            assert_eq!(headers.contains_key("catchall-dead-lettered-at"), queue == DEAD);
            assert!(ids.insert(properties.message_id().clone().unwrap().to_string()), "one is there twice");
        }
    }
    assert_eq!(ids.len(), POISONS);
}

#[tokio::test]
async fn a_dead_letter_has_an_identity_and_does_not_expire() {
    let servers = Servers::fresh().await;
    let publisher = servers.publisher().await;
    // Before the worker sees them, they cannot expire: a minute is long.
    let properties = BasicProperties::default().with_expiration("60000".into());
    // The broker lets a user name nobody but themselves, and the worker's may be another.
    let user = servers.amqp_url.split("://").nth(1).unwrap().split(':').next().unwrap();
    let properties = properties.with_user_id(user.into()).with_priority(2);
    for id in [None, None, Some(""), Some("own")] {
        let properties = match id {
            Some(id) => properties.clone().with_message_id(id.into()),
            None => properties.clone(),
        };
        publisher.publish_with(b"poison", properties).await;
    }
    let _worker = Service::ready("worker", &servers, &[]).await;
    let mut identities = BTreeSet::new();
    for _ in 0..4 {
        let (_, headers, properties) =
            eventually("a dead letter is there", async || publisher.dead_letter().await).await;
        let own = properties.message_id().as_ref().is_some_and(|id| id.as_str() == "own");
        match headers.inner().get("catchall-dead-letter-id") {
            Some(AMQPValue::LongString(id)) => assert!(identities.insert(id.to_string()) && !own),
            header => assert!(header.is_none() && own),
        }
        assert!(matches!(headers.inner().get("catchall-dead-lettered-at"),
                Some(AMQPValue::Timestamp(secs)) if *secs > 1_700_000_000));
        assert_eq!(headers.inner().get("catchall-user-id"), Some(&AMQPValue::LongString(user.into())));
        assert_eq!(
            (properties.expiration(), properties.user_id(), properties.priority()),
            (&None, &None, &Some(2))
        );
    }
    assert_eq!(identities.len(), 3);
}
