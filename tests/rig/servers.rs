//! A fresh database and a fresh vhost for one test.

use std::time::{Duration, Instant};

use bytes::Bytes;
use catchall::store::ledger::{self, Ledger};
use http_body_util::{BodyExt, Full};
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use lapin::options::{
    BasicGetOptions, BasicNackOptions, BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions,
};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties};
use serde_json::Value;
use sqlx::{Connection as _, PgConnection};

/// What a test waits for takes milliseconds; this is for a machine that does ten other things.
const PATIENCE: Duration = Duration::from_mins(1);

/// Waits until `probe` has something to say.
pub(crate) async fn eventually<T>(what: &str, mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = probe().await {
            return found;
        }
        assert!(begun.elapsed() < PATIENCE, "waited {PATIENCE:?} in vain until {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The servers of one test. What it leaves behind goes with the servers, when `./dev test` ends.
#[derive(Clone, Debug)]
pub(crate) struct Servers {
    /// The vhost and the database have this name.
    pub(crate) name: String,
    pub(crate) amqp_url: String,
    pub(crate) database_url: String,
    pub(crate) replica_url: String,
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
    pub(crate) async fn fresh() -> Self {
        Self::with(&topology()).await
    }

    /// A migrated database and a vhost with another topology.
    pub(crate) async fn with(definitions: &Value) -> Self {
        let servers = Self::bare().await;
        catchall::store::schema::migrate(&servers.database_url.parse().unwrap()).await.unwrap();
        servers.declare(definitions).await;
        eventually("the schema is at the replica", async || {
            let mut replica = PgConnection::connect(&servers.replica_url).await.ok()?;
            let found = sqlx::query("select 1 from event_claims").execute(&mut replica).await;
            replica.close().await.ok()?;
            found.ok()
        })
        .await;
        servers
    }

    /// An empty database and an empty vhost.
    pub(crate) async fn bare() -> Self {
        let name = format!("test_{}", uuid::Uuid::now_v7().simple());
        let primary = variable("CATCHALL_TEST_DATABASE_URL");
        let servers = Self {
            amqp_url: at(&variable("CATCHALL_TEST_AMQP_URL"), &name),
            database_url: at(&primary, &name),
            replica_url: at(&variable("CATCHALL_TEST_REPLICA_URL"), &name),
            name,
        };
        let mut connection = PgConnection::connect(&primary).await.unwrap();
        let create = format!("create database {}", servers.name);
        sqlx::query(sqlx::AssertSqlSafe(create)).execute(&mut connection).await.unwrap();
        connection.close().await.unwrap();
        servers.management(Method::PUT, &format!("/api/vhosts/{}", servers.name), "").await;
        let user = administrator().0;
        let rights = r#"{"configure":".*","write":".*","read":".*"}"#;
        servers.management(Method::PUT, &format!("/api/permissions/{}/{user}", servers.name), rights).await;
        servers
    }

    /// Declares a topology as `rabbitmq/definitions.json` does.
    pub(crate) async fn declare(&self, definitions: &Value) {
        let path = format!("/api/definitions/{}", self.name);
        self.management(Method::POST, &path, &definitions.to_string()).await;
    }

    /// Asks the broker's management interface.
    pub(crate) async fn management(&self, method: Method, path: &str, body: &str) -> String {
        let (user, password) = administrator();
        let (_, host) = management_url();
        let request = Request::builder()
            .method(method)
            .uri(format!("http://{host}{path}"))
            .header(header::AUTHORIZATION, format!("Basic {}", base64(&format!("{user}:{password}"))))
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::from(body.to_owned()))
            .unwrap();
        let (status, _, body) = send(request).await;
        assert!(status.is_success(), "{path}: {status} {body}");
        body
    }

    /// A client of the test's own.
    pub(crate) async fn publisher(&self) -> AmqpClient {
        let connection = Connection::connect(&self.amqp_url, ConnectionProperties::default()).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
        AmqpClient { channel, _connection: connection }
    }

    /// Runs a statement on the primary.
    pub(crate) async fn execute(&self, statement: &'static str) {
        let mut connection = PgConnection::connect(&self.database_url).await.unwrap();
        sqlx::raw_sql(statement).execute(&mut connection).await.unwrap();
        connection.close().await.unwrap();
    }

    /// Changes what sessions of this database begin with, as in `set synchronous_commit = off`.
    pub(crate) async fn alter_database(&self, change: &str) {
        let mut connection = PgConnection::connect(&self.database_url).await.unwrap();
        let statement = format!("alter database {} {change}", self.name);
        sqlx::query(sqlx::AssertSqlSafe(statement)).execute(&mut connection).await.unwrap();
        connection.close().await.unwrap();
    }

    /// The number that a query on the primary returns.
    pub(crate) async fn number(&self, query: &'static str) -> i64 {
        let mut connection = PgConnection::connect(&self.database_url).await.unwrap();
        let number = sqlx::query_scalar(query).fetch_one(&mut connection).await.unwrap();
        connection.close().await.unwrap();
        number
    }

    /// The ledger, as a worker uses it.
    pub(crate) fn ledger(&self) -> Ledger {
        let config = ledger::Config {
            primary: ledger::Primary { database_url: self.database_url.parse().unwrap() },
            statement_timeout_secs: 60,
        };
        Ledger::new(&config, "catchall-tests")
    }

    /// The counters of a domain on the primary.
    pub(crate) async fn counters(&self, domain: &str) -> (i64, i64) {
        let mut connection = PgConnection::connect(&self.database_url).await.unwrap();
        let row = sqlx::query_as("select delivered, bounced from domain_counters where domain = $1")
            .bind(domain)
            .fetch_optional(&mut connection)
            .await
            .unwrap();
        connection.close().await.unwrap();
        row.unwrap_or((0, 0))
    }

    /// Waits until the counters of a domain on the primary are these, and stay so: until a message that was
    /// published after that has been counted too.
    pub(crate) async fn settle_at(&self, domain: &str, delivered: i64, bounced: i64) {
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

    /// Waits until a message that is published now has been counted, and so whatever was before it in the
    /// queue of a single worker. (The management pages lag by seconds.)
    pub(crate) async fn settle(&self) {
        let marker = format!("m{}.marker.test", uuid::Uuid::now_v7().simple());
        let body = format!(r#"{{"domain":"{marker}","event":"delivered"}}"#);
        self.publisher().await.publish(body.as_bytes(), None).await;
        eventually("the marker is counted", async || (self.counters(&marker).await == (1, 0)).then_some(()))
            .await;
    }
}

/// The topology as it is declared for users.
pub(crate) fn topology() -> Value {
    serde_json::from_str(include_str!("../../rabbitmq/definitions.json")).unwrap()
}

fn management_url() -> (String, String) {
    let url = variable("CATCHALL_TEST_MANAGEMENT_URL");
    let rest = url.strip_prefix("http://").expect("an http URL").trim_end_matches('/').to_owned();
    let (user, host) = rest.split_once('@').expect("a user and a password");
    (user.to_owned(), host.to_owned())
}

fn administrator() -> (String, String) {
    let (user, _) = management_url();
    let (user, password) = user.split_once(':').expect("a password");
    (user.to_owned(), password.to_owned())
}

fn base64(text: &str) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let encode = |chunk: &[u8]| {
        let bits =
            chunk.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        (0..4)
            .map(move |i| if i <= chunk.len() { DIGITS[(bits >> (18 - 6 * i) & 63) as usize] } else { b'=' })
            .map(char::from)
            .collect::<String>()
    };
    text.as_bytes().chunks(3).map(encode).collect()
}

/// Sends an HTTP request and reads the whole answer.
pub(crate) async fn send(request: Request<Full<Bytes>>) -> (StatusCode, hyper::HeaderMap, String) {
    let client: Client<HttpConnector, Full<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
    let (head, body) = client.request(request).await.map(Response::into_parts).unwrap();
    let body = body.collect().await.unwrap().to_bytes();
    (head.status, head.headers, String::from_utf8(body.to_vec()).unwrap())
}

/// A direct publisher, as any client library makes one.
pub(crate) struct AmqpClient {
    channel: Channel,
    _connection: Connection,
}

impl AmqpClient {
    /// Publishes as the README says, and waits for the confirm.
    pub(crate) async fn publish(&self, body: &[u8], message_id: Option<&str>) {
        let properties =
            BasicProperties::default().with_delivery_mode(2).with_content_type("application/json".into());
        let properties = match message_id {
            Some(id) => properties.with_message_id(id.into()),
            None => properties,
        };
        self.publish_with(body, properties).await;
    }

    pub(crate) async fn publish_with(&self, body: &[u8], properties: BasicProperties) {
        self.publish_to(catchall::broker::EVENTS, body, properties).await;
    }

    /// Publishes to any exchange.
    pub(crate) async fn publish_to(&self, exchange: &str, body: &[u8], properties: BasicProperties) {
        let options = BasicPublishOptions { mandatory: true, ..Default::default() };
        let confirm =
            self.channel.basic_publish(exchange.into(), "any.key".into(), options, body, properties);
        assert_eq!(confirm.await.unwrap().await.unwrap(), Confirmation::Ack(None));
    }

    /// How many messages wait in a queue.
    pub(crate) async fn waiting(&self, queue: &str) -> u32 {
        let options = QueueDeclareOptions { passive: true, ..Default::default() };
        let queue = self.channel.queue_declare(queue.into(), options, FieldTable::default()).await.unwrap();
        queue.message_count()
    }

    /// Takes a message from the dead-letter queue: its body, its headers and its properties.
    pub(crate) async fn dead_letter(&self) -> Option<(Vec<u8>, FieldTable, BasicProperties)> {
        self.take(catchall::broker::DEAD).await
    }

    /// Takes a message from a queue.
    pub(crate) async fn take(&self, queue: &str) -> Option<(Vec<u8>, FieldTable, BasicProperties)> {
        let options = BasicGetOptions { no_ack: true };
        let message = self.channel.basic_get(queue.into(), options).await.unwrap()?;
        let properties = message.delivery.properties.clone();
        let headers = properties.headers().clone().unwrap_or_default();
        Some((message.delivery.data, headers, properties))
    }

    /// Takes a message from a queue and gives it back, as a worker does that ends before it accepts it.
    pub(crate) async fn give_back(&self, queue: &str) -> bool {
        let taken = self.channel.basic_get(queue.into(), BasicGetOptions::default()).await.unwrap();
        let Some(message) = taken else { return false };
        let options = BasicNackOptions { requeue: true, ..Default::default() };
        self.channel.basic_nack(message.delivery.delivery_tag, options).await.unwrap();
        true
    }
}
