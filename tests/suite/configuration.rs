//! Values that are wrong, ports that are taken, signals: what a process says and how it ends.

use std::net::TcpListener;
use std::time::Duration;

use catchall::broker::EVENTS;
use harness::amqp::AmqpClient;
use harness::processes::{LONG_DEADLINE, Service, run};
use harness::proxy::{Proxy, host};
use harness::servers::{Servers, eventually};
use harness::system::data_file;
use hyper::StatusCode;

use crate::retention::watermark;

const URLS: [(&str, &str); 3] = [
    ("CATCHALL_AMQP_URL", "amqp://alice:s3cret@127.0.0.1:1/%2f"),
    ("CATCHALL_DATABASE_URL", "postgres://alice:s3cret@127.0.0.1:1/catchall"),
    ("CATCHALL_REPLICA_URL", "postgres://alice:s3cret@127.0.0.1:1/catchall"),
];

#[test]
fn a_bad_value_ends_the_process_with_a_sentence_that_names_its_variable() {
    for (program, variable, value, reason) in [
        ("ingest", "CATCHALL_AMQP_URL", "http://alice:s3cret@broker", "not an AMQP URL"),
        ("ingest", "CATCHALL_LISTEN", "8080", "invalid socket address"),
        ("ingest", "CATCHALL_OPS_LISTEN", "localhost", "invalid socket address"),
        ("ingest", "CATCHALL_THREADS", "0", "0 is not in 1..=1024"),
        ("ingest", "CATCHALL_PUBLISH_DEADLINE_MS", "soon", "invalid digit"),
        ("ingest", "CATCHALL_LOG", "catchall=loud", "error parsing level filter"),
        ("ingest", "CATCHALL_LOG_FORMAT", "xml", "one of text, json"),
        ("worker", "CATCHALL_DATABASE_URL", "mysql://alice:s3cret@db", "not a Postgres URL"),
        ("worker", "CATCHALL_PREFETCH", "65536", "65536 is not in 1..=65535"),
        ("worker", "CATCHALL_PREFETCH_MIB", "0", "0 is not in 1..=1048576"),
        ("worker", "CATCHALL_MAX_ROWS", "-1", "-1 is not in 1..=5000000"),
        ("worker", "CATCHALL_MESSAGE_RETENTION_SECS", "0", "0 is not in 1..=4294967295"),
        ("worker", "CATCHALL_EVENT_RETENTION_SECS", "0", "0 is not in 1..=4294967295"),
        ("worker", "CATCHALL_ACK_DEADLINE_SECS", "0", "0 is not in 1..=4294967295"),
        ("query", "CATCHALL_REPLICA_URL", "s3cret", "not a Postgres URL"),
        ("query", "CATCHALL_THRESHOLD", "-1", "invalid digit"),
        ("migrate", "CATCHALL_DATABASE_URL", "", "not a Postgres URL"),
    ] {
        let variables: Vec<_> =
            URLS.into_iter().filter(|(name, _)| *name != variable).chain([(variable, value)]).collect();
        let (status, stdout, stderr) = run(program, &[], &variables);
        assert_eq!(status.code(), Some(2), "{variable}={value}: {stdout}{stderr}");
        assert!(stderr.starts_with(&format!("catchall-{program}: the value")), "{stderr}");
        assert!(stderr.contains(variable) && stderr.contains(reason), "{variable}={value}: {stderr}");
        assert!(!stderr.contains("s3cret") && stderr.lines().count() == 1, "{stderr}");
    }
    let (status, _, stderr) = run("query", &[], &[]);
    assert_eq!(
        (status.code(), &*stderr),
        (Some(2), "catchall-query: CATCHALL_REPLICA_URL (--replica-url <URL>) is required; see --help\n")
    );
}

#[test]
fn the_standalone_names_its_variables_too() {
    for (arguments, variables, says) in [
        (
            &[][..],
            &[("CATCHALL_LISTEN", "8080")][..],
            "CATCHALL_LISTEN (--listen <ADDRESS:PORT>) is not valid",
        ),
        (&["--threshold", "x"], &[], "CATCHALL_THRESHOLD (--threshold <N>) is not valid: invalid digit"),
        (&["move"], &[], "CATCHALL_DATABASE_URL (--to <URL>) is required"),
        (
            &["move", "--to", "mysql://alice:s3cret@db"],
            &[],
            "CATCHALL_DATABASE_URL (--to <URL>) is not valid",
        ),
        (&["backup"], &[], "<FILE> is required"),
    ] {
        let (status, _, stderr) = run("standalone", arguments, variables);
        assert_eq!(status.code(), Some(2), "{stderr}");
        assert!(stderr.starts_with("catchall: ") && stderr.contains(says), "{stderr}");
        assert!(!stderr.contains("s3cret") && stderr.lines().count() == 1, "{stderr}");
    }
    for (arguments, says) in [(&["srve"][..], "unrecognized subcommand"), (&["--lissen", "x"], "--listen")] {
        let (status, _, stderr) = run("standalone", arguments, &[]);
        assert_eq!((status.code(), stderr.contains(says)), (Some(2), true), "{stderr}");
    }
}

#[test]
fn values_that_cannot_work_together_are_refused_with_a_sentence_that_names_them() {
    for (values, least) in [
        (&[("CATCHALL_ACK_DEADLINE_SECS", "120")][..], Some(121)),
        (&[("CATCHALL_ACK_DEADLINE_SECS", "121")], None),
        (&[("CATCHALL_ACK_DEADLINE_SECS", "180"), ("CATCHALL_MAX_LINGER_MS", "60000")], None),
        (&[("CATCHALL_ACK_DEADLINE_SECS", "179"), ("CATCHALL_MAX_LINGER_MS", "60000")], Some(180)),
        (&[("CATCHALL_ACK_DEADLINE_SECS", "121"), ("CATCHALL_LINGER_MS", "1500")], Some(122)),
        (&[("CATCHALL_ACK_DEADLINE_SECS", "3"), ("CATCHALL_STATEMENT_TIMEOUT_SECS", "1")], None),
        (&[("CATCHALL_ACK_DEADLINE_SECS", "2"), ("CATCHALL_STATEMENT_TIMEOUT_SECS", "1")], Some(3)),
        (&[("CATCHALL_STATEMENT_TIMEOUT_SECS", "3600")], None),
    ] {
        // A port that is taken ends a process whose values are right.
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap().to_string();
        let variables: Vec<_> = URLS
            .into_iter()
            .chain([("CATCHALL_OPS_LISTEN", &*address)])
            .chain(values.iter().copied())
            .collect();
        let (status, _, stderr) = run("worker", &[], &variables);
        let Some(least) = least else {
            assert_eq!(status.code(), Some(1), "{values:?}: {stderr}");
            continue;
        };
        assert_eq!(status.code(), Some(2), "{values:?}: {stderr}");
        assert!(stderr.starts_with("catchall-worker: the value"), "{stderr}");
        assert!(stderr.contains("of CATCHALL_ACK_DEADLINE_SECS (--ack-deadline-secs"), "{stderr}");
        assert!(stderr.contains(&format!("must be at least {least}, twice")), "{values:?}: {stderr}");
        for variable in ["CATCHALL_STATEMENT_TIMEOUT_SECS", "CATCHALL_LINGER_MS", "CATCHALL_MAX_LINGER_MS"] {
            assert!(stderr.contains(variable), "{stderr}");
        }
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
    }
}

/// What a worker says where commits do not last.
const OFF: &str = "synchronous_commit is off";

/// A worker that finds commits not to last leaves the event of `a.com` with the broker.
async fn takes_nothing(worker: &Service, servers: &Servers, publisher: &AmqpClient) {
    worker.becomes_unready(OFF).await;
    worker.logs(OFF).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(publisher.waiting(EVENTS).await, 1, "nothing is taken that could not be counted");
    assert_eq!(servers.counters("a.com").await, (0, 0));
}

/// What is acknowledged to the broker must have been on the primary's disk.
#[tokio::test]
async fn a_worker_counts_nothing_where_commits_do_not_last() {
    let servers = Servers::fresh().await;
    // With this one no watermark is due, whose messages would wait beside the event.
    watermark(&servers, "0 seconds", "0 seconds").await;
    let publisher = servers.publisher().await;
    publisher.publish(br#"{"domain":"a.com","event":"delivered"}"#, Some("m-1")).await;
    servers.alter_database("set synchronous_commit = off").await;
    let worker = Service::start("worker", &servers, &[]).await;
    takes_nothing(&worker, &servers, &publisher).await;
    worker.becomes_unready("database: postgres://").await;

    // Nobody waits for a replica, but for the primary's disk.
    servers.alter_database("set synchronous_commit = local").await;
    worker.becomes_ready().await;
    servers.settle_at("a.com", 1, 0).await;

    // Sessions that are open stay as they are; those that come later are not.
    servers.alter_database("set synchronous_commit = off").await;
    servers
        .execute(
            "select pg_terminate_backend(pid) from pg_stat_activity \
        where datname = current_database() and application_name = 'catchall-worker'",
        )
        .await;
    worker.becomes_unready(OFF).await;
    publisher.publish(br#"{"domain":"a.com","event":"delivered"}"#, Some("m-2")).await;
    eventually("the delivery batch is held", async || {
        let holding = worker.log().iter().any(|line| line.contains(OFF) && line.contains(", holding "));
        holding.then_some(())
    })
    .await;
    assert_eq!(servers.counters("a.com").await, (1, 0));
    servers.alter_database("reset synchronous_commit").await;
    worker.becomes_ready().await;
    servers.settle_at("a.com", 2, 0).await;
}

/// What is set for the role counts more than what is set for its database.
#[tokio::test]
async fn a_worker_counts_nothing_where_the_commits_of_its_role_do_not_last() {
    let servers = Servers::fresh().await;
    // With this one no watermark is due, whose messages would wait beside the event.
    watermark(&servers, "0 seconds", "0 seconds").await;
    // All tests share the roles of the server, so this one has its own.
    let role = &servers.name;
    servers
        .execute(&format!(
            "create role {role} superuser login password 's3cret'; \
             alter role {role} set synchronous_commit = off"
        ))
        .await;
    servers.alter_database("set synchronous_commit = on").await;
    let (_, place) = servers.database_url.split_once('@').unwrap();
    let as_role = Servers { database_url: format!("postgres://{role}:s3cret@{place}"), ..servers.clone() };
    let publisher = servers.publisher().await;
    publisher.publish(br#"{"domain":"a.com","event":"delivered"}"#, Some("m-1")).await;
    let worker = Service::start("worker", &as_role, &[]).await;
    takes_nothing(&worker, &servers, &publisher).await;
    servers.execute(&format!("alter role {role} reset synchronous_commit")).await;
    worker.becomes_ready().await;
    servers.settle_at("a.com", 1, 0).await;
}

#[test]
fn help_names_every_variable_and_shows_no_secret() {
    for program in ["ingest", "worker", "query", "migrate", "dead"] {
        let (status, stdout, _) = run(program, &["--help"], &URLS);
        assert!(status.success() && stdout.contains("CATCHALL_LOG"), "{stdout}");
        assert!(!stdout.contains("s3cret"), "{stdout}");
    }
}

#[test]
fn a_port_that_is_taken_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for (program, variable) in [
        ("ingest", "CATCHALL_LISTEN"),
        ("ingest", "CATCHALL_OPS_LISTEN"),
        ("query", "CATCHALL_LISTEN"),
        ("worker", "CATCHALL_OPS_LISTEN"),
    ] {
        let free = [("CATCHALL_LISTEN", "127.0.0.1:0"), ("CATCHALL_OPS_LISTEN", "127.0.0.1:0")];
        let variables: Vec<_> = URLS
            .into_iter()
            .chain(free.into_iter().filter(|(name, _)| *name != variable))
            .chain([(variable, &*address)])
            .collect();
        let (status, _, stderr) = run(program, &[], &variables);
        assert_eq!(status.code(), Some(1), "{stderr}");
        let sentence =
            format!("catchall-{program}: cannot listen on {address} ({variable}): Address already in use");
        assert!(stderr.contains(&sentence), "{stderr}");
    }
}

#[test]
fn a_migration_without_a_database_fails_without_its_password() {
    let (status, _, stderr) = run("migrate", &[], &URLS);
    assert_eq!(status.code(), Some(1));
    assert_eq!(stderr, "catchall-migrate: postgres://127.0.0.1:1/catchall: connection refused\n");
}

#[tokio::test]
async fn both_signals_stop_every_service_in_order() {
    let servers = Servers::fresh().await;
    for signal in ["TERM", "INT"] {
        for name in ["ingest", "worker", "query", "standalone"] {
            let data = data_file();
            let variables = [("CATCHALL_DATA", data.to_str().unwrap())];
            let mut service = Service::ready(name, &servers, &variables).await;
            service.signal(signal);
            let status = service.ended().await;
            assert!(status.success(), "{name} ended with {status} on SIG{signal}");
        }
    }
}

#[tokio::test]
async fn a_stopping_ingest_answers_what_it_has_taken() {
    let servers = Servers::fresh().await;
    let wire = Proxy::to(host(&servers.amqp_url), false).await;
    let behind = Servers { amqp_url: wire.through(&servers.amqp_url), ..servers.clone() };
    let mut ingest = Service::start("ingest", &behind, &[LONG_DEADLINE]).await;
    let puts = futures::future::join_all((0..20).map(|_| ingest.put("/events/a.com/delivered")));
    let stop = async {
        // Until the requests are in: they wait for the broker.
        tokio::time::sleep(Duration::from_millis(500)).await;
        ingest.signal("TERM");
        tokio::time::sleep(Duration::from_millis(200)).await;
        wire.mend();
    };
    let (statuses, ()) = tokio::join!(puts, stop);
    assert!(statuses.iter().all(|status| *status == StatusCode::ACCEPTED), "{statuses:?}");
    assert!(ingest.ended().await.success());
    let _worker = Service::ready("worker", &servers, &[]).await;
    servers.settle_at("a.com", 20, 0).await;
}
