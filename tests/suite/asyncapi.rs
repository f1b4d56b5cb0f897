//! docs/asyncapi.yaml, compared with what the broker has, what the worker counts and what it publishes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use catchall::batch::Batch;
use catchall::broker::{DEAD, EVENTS};
use catchall::domain_name::DomainName;
use harness::processes::{Service, run};
use harness::servers::{Servers, eventually, topology};
use harness::system::System;
use hyper::Method;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};
use serde_json::{Map, Value, json};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

fn document() -> Value {
    serde_saphyr::from_str(include_str!("../../docs/asyncapi.yaml")).unwrap()
}

/// The examples of a message.
fn examples(document: &Value, message: &str) -> Vec<Value> {
    let examples = document["components"]["messages"][message]["examples"].as_array();
    examples.unwrap_or_else(|| panic!("{message} has no examples")).clone()
}

/// The names of the members of an object.
fn names(object: &Value) -> BTreeSet<&str> {
    object.as_object().unwrap().keys().map(String::as_str).collect()
}

#[test]
fn the_document_is_valid_and_each_example_fits_its_schema() {
    let packages = std::env::var("CATCHALL_TEST_CLIENTS_NODE").expect("./dev test installs the parser");
    let output = Command::new("node")
        .args(["tests/clients/asyncapi.cjs", "docs/asyncapi.yaml"])
        .env("NODE_PATH", Path::new(&packages).join("node_modules"))
        .current_dir(ROOT)
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "[]\n", "{output:?}");
}

#[test]
fn its_exchanges_are_those_of_the_broker() {
    let (document, topology) = (document(), topology());
    assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));
    let mut described = BTreeSet::from([DEAD.to_owned()]);
    for (name, channel) in document["channels"].as_object().unwrap() {
        let binding = &channel["bindings"]["amqp"];
        assert_eq!(binding["is"], "routingKey");
        let exchange = &binding["exchange"];
        let known = topology["exchanges"].as_array().unwrap();
        let known = known.iter().find(|known| known["name"] == exchange["name"]).unwrap();
        for (ours, theirs) in
            [("type", "type"), ("durable", "durable"), ("autoDelete", "auto_delete"), ("vhost", "vhost")]
        {
            assert_eq!(exchange[ours], known[theirs], "{name}: {ours}");
        }
        described.insert(exchange["name"].as_str().unwrap().to_owned());
    }
    let known = topology["exchanges"].as_array().unwrap().iter();
    assert_eq!(described, known.map(|known| known["name"].as_str().unwrap().to_owned()).collect());
    assert_eq!(document["channels"]["events"]["bindings"]["amqp"]["exchange"]["name"], EVENTS);
}

#[tokio::test]
async fn its_schemas_are_those_of_the_requests() {
    let system = System::standalone(&[]).await;
    let (_, _, openapi) = system.events().request(Method::GET, "/openapi.json", &[], "").await;
    let openapi: Value = serde_json::from_str(&openapi).unwrap();
    let (document, mut own) = (document(), BTreeSet::new());
    for (name, schema) in document["components"]["schemas"].as_object().unwrap() {
        match openapi["components"]["schemas"].get(name) {
            Some(known) => assert_eq!(schema, known, "{name}"),
            None => drop(own.insert(&**name)),
        }
    }
    assert_eq!(own, ["ChangeHeaders", "ChangeProperties", "EventHeaders", "EventProperties"].into());
}

/// The properties of a message, with the constants of a schema.
fn properties(document: &Value, schema: &str) -> BasicProperties {
    let schema = &document["components"]["schemas"][schema]["properties"];
    let delivery_mode = schema["delivery_mode"]["const"].as_u64().unwrap();
    BasicProperties::default()
        .with_content_type(schema["content_type"]["const"].as_str().unwrap().into())
        .with_delivery_mode(u8::try_from(delivery_mode).unwrap())
}

#[tokio::test]
async fn each_example_of_events_is_read_and_counted() {
    let (document, servers) = (document(), Servers::fresh().await);
    let (client, _worker) = (servers.publisher().await, Service::ready("worker", &servers, &[]).await);
    let message_id = &document["components"]["schemas"]["EventProperties"]["properties"]["message_id"];
    let message_id = message_id["examples"][0].as_str().unwrap();
    let mut expected: BTreeMap<String, (i64, i64)> = BTreeMap::new();
    for example in [examples(&document, "event"), examples(&document, "eventArray")].concat() {
        let payload = &example["payload"];
        let body = payload.to_string();
        let batch = Batch::from_json(body.as_bytes()).unwrap_or_else(|error| panic!("{body}: {error}"));
        assert!(!batch.is_empty() && names(&example["headers"]).is_empty(), "{example}");
        let (mut properties, mut events) = (properties(&document, "EventProperties"), vec![payload.clone()]);
        if let Some(array) = payload.as_array() {
            properties = properties.with_message_id(message_id.into());
            events.clone_from(array);
        }
        for _ in 0..2 {
            client.publish_with(body.as_bytes(), properties.clone()).await;
        }
        for event in events {
            let is_once = payload.is_array() || event["id"].is_string();
            let count = event["count"].as_i64().unwrap_or(1) * if is_once { 1 } else { 2 };
            let domain = DomainName::parse(event["domain"].as_str().unwrap()).unwrap();
            let counters = expected.entry(domain.to_string()).or_default();
            *(if event["event"] == "bounced" { &mut counters.1 } else { &mut counters.0 }) += count;
        }
    }
    assert!(expected.len() > 2, "{expected:?}");
    for (domain, (delivered, bounced)) in expected {
        servers.settle_at(&domain, delivered, bounced).await;
    }
}

/// Which members a value has, and of which types they are.
fn shape(value: &Value) -> Value {
    match value {
        Value::Object(members) => {
            members.iter().map(|(name, member)| (name.clone(), shape(member))).collect::<Map<_, _>>().into()
        }
        Value::Array(items) => items.iter().map(shape).collect(),
        Value::String(_) => json!("a string"),
        Value::Number(number) => json!(if number.is_i64() { "a whole number" } else { "a number" }),
        Value::Bool(_) => json!("a boolean"),
        Value::Null => Value::Null,
    }
}

/// Binds a queue of its own to each routing key of the document, and returns its name by the key.
async fn subscribe(document: &Value, servers: &Servers) -> BTreeMap<String, String> {
    let channel = &document["channels"]["changes"];
    let exchange = &channel["bindings"]["amqp"]["exchange"]["name"];
    let mut queues = BTreeMap::new();
    for key in channel["parameters"]["status"]["enum"].as_array().unwrap() {
        let queue = format!("catchall.changes.{}", key.as_str().unwrap());
        let definitions = json!({
            "queues": [{"name": queue, "durable": true, "auto_delete": false, "arguments": {}}],
            "bindings": [{"source": exchange, "destination": queue, "destination_type": "queue",
                "routing_key": key, "arguments": {}}]
        });
        servers.declare(&definitions).await;
        queues.insert(key.as_str().unwrap().to_owned(), queue);
    }
    queues
}

#[tokio::test]
async fn each_example_of_a_change_is_what_the_worker_publishes() {
    let (document, servers) = (document(), Servers::fresh().await);
    let mut queues = subscribe(&document, &servers).await;
    let (client, _worker) = (servers.publisher().await, Service::ready("worker", &servers, &[]).await);
    let events = json!([
        {"domain": "example.com", "event": "delivered", "count": 1001},
        {"domain": "example.net", "event": "delivered", "count": 1001},
        {"domain": "example.net", "event": "bounced"},
    ]);
    client.publish(events.to_string().as_bytes(), None).await;
    servers.settle_at("example.com", 1001, 0).await;
    let reset = || {
        let arguments = ["reset", "example.com", "--by", "ann", "--reason", "a new owner"];
        run("admin", &arguments, &[("CATCHALL_DATABASE_URL", &servers.database_url)])
    };
    let heard =
        async |queue: &str| eventually("a change was published", async || client.take(queue).await).await;
    for example in examples(&document, "change") {
        let status = example["payload"]["status"].as_str().unwrap();
        if status == "unknown" {
            assert!(reset().0.success());
        }
        let queue = queues.remove(&status.replace(' ', "-")).unwrap();
        let (body, headers, published) = heard(&queue).await;
        let body: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(shape(&body), shape(&example["payload"]), "{body}");
        assert_eq!(body["status"], status);
        let message_id = format!("{} {status}", body["domain"].as_str().unwrap());
        let described = properties(&document, "ChangeProperties").with_message_id(message_id.into());
        assert_eq!(
            published.clone().with_headers(FieldTable::default()),
            described.with_headers(FieldTable::default())
        );
        let whole = |(name, value): (_, &AMQPValue)| match value {
            AMQPValue::LongLongInt(number) => (ToString::to_string(name), json!(number)),
            other => panic!("{other:?}"),
        };
        let headers: Map<String, Value> = headers.inner().iter().map(whole).collect();
        assert_eq!(shape(&headers.into()), shape(&example["headers"]));
    }
    assert!(queues.is_empty(), "there is no example for {queues:?}");
}
