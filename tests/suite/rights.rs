//! What the users of the broker and the roles of the databases may do, and what they may not.

use std::collections::BTreeSet;
use std::fs;

use catchall::broker::{DEAD, EVENTS};
use harness::processes::{LONG_DEADLINE, Service, run};
use harness::servers::{Servers, eventually, topology};
use harness::sql;
use hyper::Method;
use lapin::options::{
    BasicConsumeOptions, BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions,
    QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions, QueuePurgeOptions,
};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties, ExchangeKind};
use serde_json::{Value, json};

const PERMISSIONS: &str = include_str!("../../rabbitmq/permissions.json");
const GRANTS: &str = include_str!("../../postgres/grants.sql");
const OPERATING: &str = include_str!("../../docs/operating.md");

/// The exchange that changes of statuses are published to.
const CHANGES: &str = "catchall.changes";

/// The password of a user that `./dev` has made.
fn secret(server: &str, user: &str) -> String {
    let directory = std::env::var("CATCHALL_TEST_SECRETS").expect("./dev test sets it");
    fs::read_to_string(format!("{directory}/{server}-{user}")).unwrap()
}

/// `url` of another user.
fn of(url: &str, server: &str, user: &str) -> String {
    let (scheme, rest) = url.split_once("://").unwrap();
    let (_, place) = rest.split_once('@').unwrap();
    format!("{scheme}://{user}:{}@{place}", secret(server, user))
}

/// Servers whose vhost gives the users the rights of `rabbitmq/permissions.json`.
async fn servers() -> Servers {
    let servers = Servers::fresh().await;
    let mut definitions: Value = serde_json::from_str(PERMISSIONS).unwrap();
    for permission in definitions["permissions"].as_array_mut().unwrap() {
        assert_eq!(permission["vhost"], "/");
        let user = permission["user"].as_str().unwrap();
        let path = format!("/api/permissions/{}/{user}", servers.name);
        let rights = json!({
            "configure": permission["configure"], "write": permission["write"], "read": permission["read"],
        });
        servers.management(Method::PUT, &path, &rights.to_string()).await;
    }
    servers
}

#[tokio::test]
async fn every_service_does_its_work_with_the_least_rights() {
    let servers = servers().await;
    let as_user = |broker: &str, role: &str| Servers {
        amqp_url: of(&servers.amqp_url, "rabbitmq", broker),
        database_url: of(&servers.database_url, "postgres", role),
        replica_url: of(&servers.replica_url, "postgres", role),
        ..servers.clone()
    };
    let ingest =
        Service::ready("ingest", &as_user("catchall_ingest", "catchall_query"), &[LONG_DEADLINE]).await;
    let retention = [
        ("CATCHALL_EVENT_RETENTION_SECS", "1"),
        ("CATCHALL_MESSAGE_RETENTION_SECS", "1"),
        ("CATCHALL_ACK_DEADLINE_SECS", "8"),
        ("CATCHALL_STATEMENT_TIMEOUT_SECS", "2"),
    ];
    let worker = Service::ready("worker", &as_user("catchall_worker", "catchall_worker"), &retention).await;
    let query = Service::ready("query", &as_user("catchall_publisher", "catchall_query"), &[]).await;
    let (status, _, _) =
        ingest.request(Method::PUT, "/events/a.example/bounced", &[("idempotency-key", "k")], "").await;
    assert_eq!(status, 202);
    query.answers("a.example", "not catch-all", 0, 1).await;
    // A direct publisher's event, and a message that becomes a dead letter, which the tool discards.
    let publisher = as_user("catchall_publisher", "catchall_query").publisher().await;
    publisher.publish(br#"{"domain": "b.example", "event": "bounced"}"#, None).await;
    query.answers("b.example", "not catch-all", 0, 1).await;
    publisher.publish(b"no event", None).await;
    let tool = as_user("catchall_dead", "catchall_worker");
    let urls = [("CATCHALL_AMQP_URL", &*tool.amqp_url), ("CATCHALL_DATABASE_URL", &tool.database_url)];
    let dead = |arguments: &[&str]| {
        let (status, said, stderr) = run("dead", arguments, &urls);
        assert!(status.success(), "{arguments:?}: {said}{stderr}");
        said
    };
    eventually("the dead letter is there", async || (dead(&["count"]) == "1\n").then_some(())).await;
    dead(&["list"]);
    dead(&["replay", "--all"]);
    eventually("the dead letter is back", async || (dead(&["count"]) == "1\n").then_some(())).await;
    dead(&["discard", "--all", "--yes"]);
    assert!(!worker.has_logged("permission denied") && !worker.has_logged("ACCESS_REFUSED"));
    // Pruning is the worker's too.
    eventually("claims are pruned", async || {
        (worker.metric("catchall_worker_pruned_claims_total").await > 0.0).then_some(())
    })
    .await;
    assert!(!worker.has_logged("permission denied") && !worker.has_logged("ACCESS_REFUSED"));
}

/// What may be tried at a broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Act {
    PublishEvents,
    PublishDead,
    PublishChanges,
    PublishElsewhere,
    ReadEvents,
    ReadDead,
    Purge,
    PurgeDead,
    Declare,
    Delete,
    UnbindEvents,
    EventsFromDead,
    DeadFromEvents,
    Subscribe,
}

impl Act {
    const ALL: [Self; 14] = [
        Self::PublishEvents,
        Self::PublishDead,
        Self::PublishChanges,
        Self::PublishElsewhere,
        Self::ReadEvents,
        Self::ReadDead,
        Self::Purge,
        Self::PurgeDead,
        Self::Declare,
        Self::Delete,
        Self::UnbindEvents,
        Self::EventsFromDead,
        Self::DeadFromEvents,
        Self::Subscribe,
    ];

    async fn of(self, channel: &Channel) -> lapin::Result<()> {
        let fields = FieldTable::default;
        match self {
            Self::PublishEvents => publish(channel, EVENTS).await,
            Self::PublishDead => publish(channel, DEAD).await,
            Self::PublishChanges => publish(channel, CHANGES).await,
            // The default exchange, which leads to every queue.
            Self::PublishElsewhere => publish(channel, "").await,
            Self::ReadEvents => {
                let options = BasicConsumeOptions::default();
                channel.basic_consume(EVENTS.into(), "x".into(), options, fields()).await.map(drop)
            }
            Self::ReadDead => channel.basic_get(DEAD.into(), BasicGetOptions::default()).await.map(drop),
            Self::Purge => channel.queue_purge(EVENTS.into(), QueuePurgeOptions::default()).await.map(drop),
            Self::PurgeDead => channel.queue_purge(DEAD.into(), QueuePurgeOptions::default()).await.map(drop),
            Self::Declare => {
                let options = ExchangeDeclareOptions::default();
                channel.exchange_declare("mine".into(), ExchangeKind::Fanout, options, fields()).await?;
                let options = QueueDeclareOptions::default();
                channel.queue_declare("mine".into(), options, fields()).await.map(drop)
            }
            Self::Delete => channel.queue_delete(DEAD.into(), QueueDeleteOptions::default()).await.map(drop),
            // Of a binding that there is not, so that the others find theirs.
            Self::UnbindEvents => {
                channel.queue_unbind(EVENTS.into(), EVENTS.into(), "none".into(), fields()).await
            }
            Self::EventsFromDead => bind(channel, EVENTS, DEAD).await,
            Self::DeadFromEvents => bind(channel, DEAD, EVENTS).await,
            Self::Subscribe => {
                let own = "catchall.changes.mine";
                channel.queue_declare(own.into(), QueueDeclareOptions::default(), fields()).await?;
                bind(channel, own, CHANGES).await?;
                channel.basic_get(own.into(), BasicGetOptions::default()).await?;
                channel.queue_delete(own.into(), QueueDeleteOptions::default()).await.map(drop)
            }
        }
    }
}

async fn bind(channel: &Channel, queue: &str, exchange: &str) -> lapin::Result<()> {
    let options = QueueBindOptions::default();
    channel.queue_bind(queue.into(), exchange.into(), "".into(), options, FieldTable::default()).await
}

async fn publish(channel: &Channel, exchange: &str) -> lapin::Result<()> {
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    let options = BasicPublishOptions::default();
    let body = br#"{"domain": "c.example", "event": "bounced"}"#;
    let sent = channel
        .basic_publish(exchange.into(), DEAD.into(), options, body, BasicProperties::default())
        .await?;
    sent.await.map(drop)
}

#[tokio::test]
async fn a_user_of_the_broker_may_do_nothing_else() {
    let servers = servers().await;
    for (user, may) in [
        ("catchall_ingest", &[Act::PublishEvents][..]),
        // Who may read a queue may also empty it. Who may read an exchange and write a queue may bind them, and
        // the two have one name.
        (
            "catchall_worker",
            &[
                Act::PublishEvents,
                Act::PublishDead,
                Act::PublishChanges,
                Act::ReadEvents,
                Act::Purge,
                Act::UnbindEvents,
                Act::DeadFromEvents,
            ],
        ),
        ("catchall_publisher", &[Act::PublishEvents]),
        ("catchall_subscriber", &[Act::Subscribe]),
        ("catchall_dead", &[Act::PublishEvents, Act::ReadDead, Act::PurgeDead, Act::EventsFromDead]),
        ("catchall_monitoring", &[]),
    ] {
        let url = of(&servers.amqp_url, "rabbitmq", user);
        let mut allowed = BTreeSet::new();
        for act in Act::ALL {
            let connection = Connection::connect(&url, ConnectionProperties::default()).await.unwrap();
            let channel = connection.create_channel().await.unwrap();
            match act.of(&channel).await {
                Ok(()) => {
                    allowed.insert(act);
                }
                Err(error) => {
                    assert!(error.to_string().contains("ACCESS_REFUSED"), "{user} {act:?}: {error}");
                }
            }
        }
        assert_eq!(allowed, may.iter().copied().collect(), "{user}");
    }
}

#[tokio::test]
async fn the_queue_of_a_subscriber_is_bounded() {
    let servers = servers().await;
    let url = of(&servers.amqp_url, "rabbitmq", "catchall_subscriber");
    let connection = Connection::connect(&url, ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    let own = "catchall.changes.mine";
    let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    channel.queue_declare(own.into(), durable, FieldTable::default()).await.unwrap();
    let policy = topology()["policies"][0].clone();
    for bound in ["max-length-bytes", "expires"] {
        assert!(policy["definition"][bound].as_u64() > Some(0), "{policy}");
    }
    // What subscribers leave must not hold up the worker that publishes to all of them.
    assert_eq!(policy["definition"]["overflow"], "drop-head");
    eventually("the policy holds for it", async || {
        let path = format!("/api/queues/{}/{own}", servers.name);
        let queue: Value = serde_json::from_str(&servers.management(Method::GET, &path, "").await).unwrap();
        (queue["policy"] == policy["name"]).then_some(())
    })
    .await;
}

/// Statements, and which roles may run them: the owner, the worker, and query.
const STATEMENTS: [(&str, [bool; 3]); 22] = [
    ("select count(*) from domain_counters", [true, true, true]),
    ("select count(*) from _sqlx_migrations", [true, true, true]),
    ("select count(*) from event_claims", [true, true, false]),
    ("select count(*) from message_claims", [true, true, false]),
    ("select count(*) from watermarks", [true, true, false]),
    ("select count(*) from moves", [true, false, false]),
    ("select count(*) from audit_log", [true, false, false]),
    ("select count(*) from imports", [true, false, false]),
    ("select threshold from classification", [true, true, true]),
    ("select system_identifier from pg_control_system()", [true, true, true]),
    ("update classification set threshold = 1", [true, false, false]),
    ("delete from domain_statuses", [true, false, false]),
    (
        "insert into domain_counters (domain, delivered, bounced) values ('d.example', 1, 0)",
        [true, true, false],
    ),
    ("update domain_counters set delivered = delivered + 1", [true, true, false]),
    ("delete from domain_counters", [true, false, false]),
    ("truncate event_claims", [true, false, false]),
    ("delete from event_claims", [true, true, false]),
    ("update _sqlx_migrations set success = success", [true, false, false]),
    ("create table mine ()", [true, false, false]),
    ("alter table domain_counters set (fillfactor = 50)", [true, false, false]),
    ("create role other", [false, false, false]),
    ("copy domain_counters to program 'true'", [false, false, false]),
];

#[tokio::test]
async fn a_role_of_the_database_may_do_nothing_else() {
    let servers = Servers::bare().await;
    servers.execute(&format!("alter database {} owner to catchall", servers.name)).await;
    let owner = of(&servers.database_url, "postgres", "catchall");
    let (status, _, stderr) = run("migrate", &[], &[("CATCHALL_DATABASE_URL", &owner)]);
    assert!(status.success(), "{stderr}");
    for (index, role) in ["catchall", "catchall_worker", "catchall_query"].into_iter().enumerate() {
        let url = of(&servers.database_url, "postgres", role);
        for (statement, may) in STATEMENTS {
            // Nobody's read-only setting may be what prevents it: query could change that.
            let tried = sql::execute(&url, &format!("set transaction read write; {statement}")).await;
            let said = tried.as_ref().map_or_else(|error| format!("{error:#}"), |()| String::new());
            assert_eq!(tried.is_ok(), may[index], "{role}: {statement}: {said}");
            let refused = ["permission denied", "must be owner", "must be superuser"];
            assert!(
                may[index] || refused.iter().any(|words| said.contains(words)),
                "{role}: {statement}: {said}"
            );
        }
    }
}

/// In containers the roles are made before the migration that makes a table.
#[tokio::test]
async fn the_grants_fit_tables_that_are_older_and_withdraw_what_is_not_needed() {
    let servers = Servers::bare().await;
    servers.execute(include_str!("../../migrations/0001_ledger.sql")).await;
    servers.execute("grant select on all tables in schema public to catchall_query").await;
    servers.execute(include_str!("../../postgres/grants.sql")).await;
    for (role, table, right, may) in [
        ("catchall_worker", "domain_counters", "update", 1),
        ("catchall_worker", "domain_counters", "delete", 0),
        ("catchall_worker", "event_claims", "delete", 1),
        ("catchall_query", "domain_counters", "select", 1),
        ("catchall_query", "event_claims", "select", 0),
    ] {
        let has = format!("select has_table_privilege('{role}', '{table}', '{right}')::int::bigint");
        assert_eq!(servers.number(&has).await, may, "{role}: {right} {table}");
    }
}

#[test]
fn the_pages_name_them_all() {
    let (_, section) = OPERATING.split_once("\n### Users and roles\n").unwrap();
    let (section, _) = section.split_once("\n## ").unwrap();
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
    let documented: BTreeSet<&str> = rows.map(|(name, _)| name).collect();
    let permissions: Value = serde_json::from_str(PERMISSIONS).unwrap();
    let users = permissions["permissions"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|permission| permission["user"].as_str());
    let roles = ["catchall", "catchall_query"];
    assert_eq!(documented, users.chain(roles).collect());
    // The tables that a role may use.
    for (role, server) in [("catchall_worker", "primary"), ("catchall_query", "replica")] {
        let row = section.lines().find(|line| line.starts_with(&format!("| `{role}` | {server} |"))).unwrap();
        let named: BTreeSet<&str> = row.split('`').skip(3).step_by(2).collect();
        let granted = GRANTS.lines().filter_map(|line| {
            let rest = line.trim_start().strip_prefix(&format!("('{role}', '"))?;
            rest.split('\'').next()
        });
        let tools = ["catchall-dead"];
        let named: BTreeSet<&str> = named.into_iter().filter(|name| !tools.contains(name)).collect();
        assert_eq!(named, granted.collect(), "{role}");
    }
}
