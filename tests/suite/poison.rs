//! Messages that cannot be read: kept with their reason, and nobody waits for them.

use std::collections::{BTreeMap, BTreeSet};

use catchall::broker::{DEAD, EVENTS};
use hyper::Method;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};
use serde_json::{Value, json};

use crate::frames::publish_in_latin_1;
use crate::processes::Service;
use crate::servers::{Servers, eventually, topology};

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
        (r#"{"domain":"a.com","event":"delivered","count":1e3}"#, "a count from 1 to 1000000000"),
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
    assert!(!worker.has_logged("broker is not available"), "no message may break a session");
}

/// The client library ends the connection on it, and all that was handed out with it comes back too. Only the bad
/// one may reach the delivery limit.
#[tokio::test]
async fn a_message_that_ends_the_connection_becomes_a_dead_letter_alone() {
    let servers = Servers::fresh().await;
    // The limit of 100 only takes longer.
    let policy = r#"{"pattern":"^catchall.events$","apply-to":"queues","definition":{"delivery-limit":20}}"#;
    servers.management(Method::PUT, &format!("/api/policies/{}/short", servers.name), policy).await;
    let publisher = servers.publisher().await;
    let good = br#"{"domain":"good.com","event":"delivered"}"#;
    for number in 0..5 {
        publisher.publish(good, Some(&format!("before-{number}"))).await;
    }
    publish_in_latin_1(&servers, EVENTS, good).await;
    for number in 0..200 {
        publisher.publish(good, Some(&format!("after-{number}"))).await;
    }
    let worker = Service::ready("worker", &servers, &[]).await;
    servers.settle_at("good.com", 205, 0).await;
    // A library that cannot read it cannot show it either: the broker says what it has.
    let path = format!("/api/queues/{}/catchall.dead/get", servers.name);
    let look = r#"{"count":10,"ackmode":"ack_requeue_true","encoding":"base64"}"#;
    let count = async || {
        let letters = servers.management(Method::POST, &path, look).await;
        serde_json::from_str::<Vec<Value>>(&letters).unwrap().len()
    };
    eventually("it is a dead letter", async || (count().await > 0).then_some(())).await;
    assert_eq!(count().await, 1, "and no good one is");
    assert!(worker.has_logged("not UTF-8"));
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
            assert_eq!(headers.contains_key("catchall-died"), queue == DEAD);
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
        match headers.inner().get("catchall-letter") {
            Some(AMQPValue::LongString(id)) => assert!(identities.insert(id.to_string()) && !own),
            header => assert!(header.is_none() && own),
        }
        assert!(
            matches!(headers.inner().get("catchall-died"), Some(AMQPValue::Timestamp(secs)) if *secs > 1_700_000_000)
        );
        assert_eq!(headers.inner().get("catchall-user-id"), Some(&AMQPValue::LongString(user.into())));
        assert_eq!(
            (properties.expiration(), properties.user_id(), properties.priority()),
            (&None, &None, &Some(2))
        );
    }
    assert_eq!(identities.len(), 3);
}
