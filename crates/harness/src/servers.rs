//! A fresh database and a fresh vhost for each test.

use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, LazyLock};
use std::thread;
use std::time::{Duration, Instant};

use base64::prelude::{BASE64_STANDARD, Engine};
use bytes::Bytes;
use catchall::store::ledger::{self, Ledger};
use catchall_load::counts::Counts;
use http_body_util::Full;
use hyper::{Method, Request, header};
use serde_json::Value;

use crate::amqp::AmqpClient;
use crate::http::{HttpClient, send};
use crate::sql;

/// What a test waits for takes milliseconds; a minute is for a busy machine.
const TIMEOUT: Duration = Duration::from_mins(1);

/// Calls `probe` until it returns something.
pub async fn eventually<T>(what: &str, mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = probe().await {
            return found;
        }
        assert!(begun.elapsed() < TIMEOUT, "waited {TIMEOUT:?} in vain until {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The servers of one test. The database stays until `./dev test` deletes the servers: to drop one, Postgres
/// writes all others to the disk first.
#[derive(Clone, Debug)]
pub struct Servers {
    /// The vhost and the database have this name.
    pub name: String,
    /// Where the broker is.
    pub amqp_url: String,
    /// Where the primary is.
    pub database_url: String,
    /// Where the replica is.
    pub replica_url: String,
    /// The vhost, which is deleted with the last copy of this.
    pub vhost: Option<Arc<Vhost>>,
}

/// A vhost that is deleted when this is dropped. Until then its queues cost the broker processor time.
#[derive(Debug)]
pub struct Vhost(String);

impl Drop for Vhost {
    fn drop(&mut self) {
        // On a thread of its own: nobody has to wait, and the test's event loop may be about to end.
        static DELETER: LazyLock<Sender<String>> = LazyLock::new(|| {
            let (deleter, names) = mpsc::channel::<String>();
            thread::spawn(move || {
                let event_loop = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                let client = HttpClient::without_keep_alive();
                for name in names {
                    let request = management(&Method::DELETE, &format!("/api/vhosts/{name}"), "");
                    // Its broker may be gone.
                    let _ = event_loop.block_on(client.send(request, TIMEOUT));
                }
            });
            deleter
        });
        let _ = DELETER.send(std::mem::take(&mut self.0));
    }
}

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: run the tests by ./dev test"))
}

/// `url` with another path.
fn at(url: &str, path: &str) -> String {
    let (server, _) = url.rsplit_once('/').expect("a URL with a path");
    format!("{server}/{path}")
}

impl Servers {
    /// A migrated database and a vhost with the topology.
    pub async fn fresh() -> Self {
        Self::with(&topology()).await
    }

    /// A migrated database and a vhost with another topology.
    pub async fn with(definitions: &Value) -> Self {
        let servers = Self::bare().await;
        catchall::store::postgres::migrate(&servers.database_url.parse().unwrap()).await.unwrap();
        servers.declare(definitions).await;
        eventually("the schema is at the replica", async || {
            sql::replayed(&servers.database_url, &servers.replica_url).await.ok()
        })
        .await;
        servers
    }

    /// An empty database and an empty vhost.
    pub async fn bare() -> Self {
        let name = format!("test_{}", uuid::Uuid::now_v7().simple());
        let primary = variable("CATCHALL_TEST_DATABASE_URL");
        let servers = Self {
            amqp_url: at(&variable("CATCHALL_TEST_AMQP_URL"), &name),
            database_url: at(&primary, &name),
            replica_url: at(&variable("CATCHALL_TEST_REPLICA_URL"), &name),
            vhost: Some(Arc::new(Vhost(name.clone()))),
            name,
        };
        sql::execute(&primary, &format!("create database {}", servers.name)).await.unwrap();
        servers.management(Method::PUT, &format!("/api/vhosts/{}", servers.name), "").await;
        let user = administrator().0;
        let rights = r#"{"configure":".*","write":".*","read":".*"}"#;
        servers.management(Method::PUT, &format!("/api/permissions/{}/{user}", servers.name), rights).await;
        servers
    }

    /// No servers, for a process that needs none.
    #[must_use]
    pub fn none() -> Self {
        let [name, amqp_url, database_url, replica_url] = [const { String::new() }; 4];
        Self { name, amqp_url, database_url, replica_url, vhost: None }
    }

    /// Declares a topology as `rabbitmq/definitions.json` does.
    pub async fn declare(&self, definitions: &Value) {
        let path = format!("/api/definitions/{}", self.name);
        self.management(Method::POST, &path, &definitions.to_string()).await;
    }

    /// Sends a request to the broker's management interface.
    pub async fn management(&self, method: Method, path: &str, body: &str) -> String {
        let (status, _, body) = send(management(&method, path, body)).await;
        assert!(status.is_success(), "{path}: {status} {body}");
        body
    }

    /// Connects a plain AMQP client.
    pub async fn publisher(&self) -> AmqpClient {
        AmqpClient::connect(&self.amqp_url).await
    }

    /// Runs a statement on the primary.
    pub async fn execute(&self, statement: &str) {
        sql::execute(&self.database_url, statement).await.unwrap();
    }

    /// Changes the default settings of sessions of this database, as in `set synchronous_commit = off`.
    pub async fn alter_database(&self, change: &str) {
        self.execute(&format!("alter database {} {change}", self.name)).await;
    }

    /// The number that a query on the primary returns.
    pub async fn number(&self, query: &str) -> i64 {
        sql::number(&self.database_url, query).await.unwrap()
    }

    /// The ledger, as a worker uses it.
    #[must_use]
    pub fn ledger(&self) -> Ledger {
        let config = ledger::LedgerConfig {
            primary: ledger::Primary { database_url: self.database_url.parse().unwrap() },
            statement_timeout_secs: 60,
        };
        Ledger::new(&config, "catchall-tests")
    }

    /// The counters of a domain on the primary: delivered and bounced.
    pub async fn counters(&self, domain: &str) -> (i64, i64) {
        let counts = sql::counts(&self.database_url, &[domain.to_owned()]).await.unwrap();
        let Counts { delivered, bounced } = counts.get(domain).copied().unwrap_or_default();
        [delivered, bounced].map(|count| i64::try_from(count).unwrap()).into()
    }

    /// Waits until the counters of a domain on the primary have these values, then until a later message has
    /// been counted, and checks that they have not changed.
    pub async fn settle_at(&self, domain: &str, delivered: i64, bounced: i64) {
        let mut last = (0, 0);
        eventually(
            &format!("{domain} has had {delivered} delivered and {bounced} bounced events"),
            async || {
                last = self.counters(domain).await;
                (last == (delivered, bounced)).then_some(())
            },
        )
        .await;
        self.settle().await;
        assert_eq!(self.counters(domain).await, (delivered, bounced), "{domain} afterwards");
    }

    /// Publishes a message and waits until it is counted. With one worker, everything that was queued before
    /// it has then been counted too. (The management pages lag by seconds.)
    pub async fn settle(&self) {
        let marker = format!("m{}.marker.test", uuid::Uuid::now_v7().simple());
        let body = format!(r#"{{"domain":"{marker}","event":"delivered"}}"#);
        self.publisher().await.publish(body.as_bytes(), None).await;
        eventually("the marker is counted", async || (self.counters(&marker).await == (1, 0)).then_some(()))
            .await;
    }
}

/// The contents of `rabbitmq/definitions.json`.
#[must_use]
pub fn topology() -> Value {
    serde_json::from_str(include_str!("../../../rabbitmq/definitions.json")).unwrap()
}

fn management_url() -> (String, String) {
    let url = variable("CATCHALL_TEST_MANAGEMENT_URL");
    let rest = url.strip_prefix("http://").expect("an http URL").trim_end_matches('/').to_owned();
    let (user, host) = rest.split_once('@').expect("a user and a password");
    (user.to_owned(), host.to_owned())
}

/// A request to the broker's management interface.
fn management(method: &Method, path: &str, body: &str) -> Request<Full<Bytes>> {
    let (user, password) = administrator();
    let (_, host) = management_url();
    let credentials = BASE64_STANDARD.encode(format!("{user}:{password}"));
    Request::builder()
        .method(method)
        .uri(format!("http://{host}{path}"))
        .header(header::AUTHORIZATION, format!("Basic {credentials}"))
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::from(body.to_owned()))
        .unwrap()
}

fn administrator() -> (String, String) {
    let (user, _) = management_url();
    let (user, password) = user.split_once(':').expect("a password");
    (user.to_owned(), password.to_owned())
}
