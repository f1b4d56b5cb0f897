//! The changes as messages, as a queue gets them that is bound to their exchange.

use std::collections::HashMap;

use anyhow::{Context, Result};
use catchall::counters::Status;
use harness::servers::Servers;
use lapin::types::{AMQPValue, FieldTable};
use serde_json::{Value, json};

/// A queue to which a policy for subscribers applies.
const QUEUE: &str = "catchall.changes.chaos";

/// The number by which the changes of a domain are ordered: one may be published again, and late.
const ORDER: &str = "catchall-changed-in";

/// What has been published, by the messages that were taken from the queue.
#[derive(Debug, Default)]
pub(crate) struct Published {
    /// The change of each domain with the largest number.
    latest: HashMap<String, (i64, Status)>,
}

/// Binds the queue, before anything is published.
pub(crate) async fn bind(servers: &Servers) {
    let definitions = json!({
        "queues": [{"name": QUEUE, "durable": true, "auto_delete": false, "arguments": {}}],
        "bindings": [{"source": "catchall.changes", "destination": QUEUE, "destination_type": "queue",
            "routing_key": "#", "arguments": {}}]
    });
    servers.declare(&definitions).await;
}

impl Published {
    /// Takes what the queue has got, and says what is wrong with that.
    pub(crate) async fn take(&mut self, servers: &Servers) -> Result<Vec<String>> {
        let (client, mut wrong) = (servers.publisher().await, Vec::new());
        while let Some((body, headers, _)) = client.take(QUEUE).await {
            let (domain, number, status) =
                read(&body, &headers).with_context(|| String::from_utf8_lossy(&body).into_owned())?;
            let latest = self.latest.entry(domain.clone()).or_insert((number, status));
            // A later change has a later status, and a change that is published again has the same status.
            if number.cmp(&latest.0) != status.cmp(&latest.1) {
                wrong.push(format!(
                    "{domain} was {} in {number} and {} in {}",
                    status.name(),
                    latest.1.name(),
                    latest.0
                ));
            }
            *latest = (number, status).max(*latest);
        }
        Ok(wrong)
    }

    /// The statuses that domains have by the latest of their changes.
    pub(crate) fn statuses(&self) -> HashMap<String, Status> {
        self.latest.iter().map(|(domain, (_, status))| (domain.clone(), *status)).collect()
    }
}

/// What a message says: a domain, the number of the change, and the status.
fn read(body: &[u8], headers: &FieldTable) -> Result<(String, i64, Status)> {
    let change: Value = serde_json::from_slice(body)?;
    let text = |name: &str| change[name].as_str().with_context(|| format!("it has no {name}"));
    let Some(AMQPValue::LongLongInt(number)) = headers.inner().get(ORDER) else {
        anyhow::bail!("its header {ORDER} is no number");
    };
    Ok((text("domain")?.to_owned(), *number, text("status")?.parse()?))
}
