//! Messages that cannot be read: kept with their reason, and nobody waits for them.

use std::collections::BTreeMap;

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};

use crate::processes::Service;
use crate::servers::{Servers, eventually};

/// A body, how it is labelled, and what the reason says.
fn poisons() -> Vec<(Vec<u8>, BasicProperties, &'static str)> {
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
    assert!(!worker.has_logged("not available"), "no message may break a session");
}
