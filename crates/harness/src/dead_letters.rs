//! Dead letters, and the tool that shows them and sends them back.

use std::process::{Child, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use catchall::broker::{DEAD, EVENTS};
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldArray, FieldTable};
use serde_json::Value;

use crate::amqp::AmqpClient;
use crate::program::{command, run};
use crate::servers::Servers;
use crate::sql;

impl Servers {
    /// Runs `catchall-dead` to its end: its exit status and what it printed.
    #[expect(clippy::must_use_candidate, reason = "it may be run for its effect alone")]
    pub fn dead(&self, arguments: &[&str]) -> (i32, String, String) {
        let variables =
            [("CATCHALL_AMQP_URL", &*self.amqp_url), ("CATCHALL_DATABASE_URL", &*self.database_url)];
        let (status, stdout, stderr) = run("dead", arguments, &variables);
        (status.code().expect("it ends by itself"), stdout, stderr)
    }

    /// The same, but panics unless it succeeds; returns standard output.
    #[expect(clippy::must_use_candidate, reason = "it may be run for its effect alone")]
    pub fn dead_well(&self, arguments: &[&str]) -> String {
        let (status, stdout, stderr) = self.dead(arguments);
        assert_eq!(status, 0, "{arguments:?}: {stdout}{stderr}");
        stdout
    }

    /// The dead letters, by what `list` or `show` print as JSON.
    #[must_use]
    pub fn dead_letters(&self, arguments: &[&str]) -> Vec<Value> {
        let printed = self.dead_well(arguments);
        printed.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Starts `catchall-dead`.
    #[must_use]
    pub fn spawn_dead(&self, arguments: &[&str]) -> Child {
        let mut command = command("dead");
        command.env("CATCHALL_AMQP_URL", &self.amqp_url).env("CATCHALL_DATABASE_URL", &self.database_url);
        command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// Records in the ledger that claims last used before this time may have been pruned.
    pub async fn prune_claims_before(&self, kind: &str, time: SystemTime) {
        let seconds = time.duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
        let insert = format!("insert into pruned_claims values ('{kind}', to_timestamp({seconds}))");
        sql::execute(&self.database_url, &insert).await.unwrap();
    }
}

impl AmqpClient {
    /// Publishes a dead letter, as a worker does.
    pub async fn publish_dead(&self, body: &str, message_id: Option<&str>, headers: &[(&str, AMQPValue)]) {
        self.publish_to(DEAD, body.as_bytes(), dead_letter_properties(message_id, headers)).await;
    }
}

/// The properties of a dead letter.
#[must_use]
pub fn dead_letter_properties(message_id: Option<&str>, headers: &[(&str, AMQPValue)]) -> BasicProperties {
    let mut table = FieldTable::default();
    for (name, value) in headers {
        table.insert((*name).into(), value.clone());
    }
    let properties =
        BasicProperties::default().with_content_type("application/json".into()).with_headers(table);
    match message_id {
        Some(id) => properties.with_message_id(id.into()),
        None => properties,
    }
}

/// A header that is text.
#[must_use]
pub fn text(text: &str) -> AMQPValue {
    AMQPValue::LongString(text.into())
}

/// A header that is a time.
#[must_use]
pub fn at(time: SystemTime) -> AMQPValue {
    AMQPValue::Timestamp(time.duration_since(UNIX_EPOCH).unwrap().as_secs())
}

/// The headers of a dead letter from an old worker that could not read what a worker reads today.
#[must_use]
pub fn mended() -> [(&'static str, AMQPValue); 1] {
    [("catchall-reason", text("the count 3 is not read here"))]
}

/// The header that the broker adds when it moves a message to the dead letters.
#[must_use]
pub fn moved(reason: &str, time: SystemTime) -> [(&'static str, AMQPValue); 1] {
    let mut death = FieldTable::default();
    death.insert("queue".into(), text(EVENTS));
    death.insert("reason".into(), text(reason));
    death.insert("time".into(), at(time));
    [("x-death", AMQPValue::FieldArray(FieldArray::from(vec![AMQPValue::FieldTable(death)])))]
}

/// A delivered event of a domain, as JSON.
#[must_use]
pub fn delivered(domain: &str) -> String {
    format!(r#"{{"domain":"{domain}","event":"delivered"}}"#)
}
