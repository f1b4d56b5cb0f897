//! The way up: the content of the file goes to a Postgres, and nobody is turned away meanwhile.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use harness::processes::{LONG_DEADLINE, Service, command, run};
use harness::servers::{Servers, eventually};
use harness::system::data_file;
use hyper::{Method, StatusCode};
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use super::clients::{Clients, DOMAINS};
use super::trouble::used;
use super::{back_up, post, refusal, start};

fn move_to(data: &Path, servers: &Servers) -> (i32, String) {
    let arguments = ["move", "--data", data.to_str().unwrap(), "--to", &servers.database_url];
    let (status, out, said) = run("standalone", &arguments, &[]);
    (status.code().unwrap(), out + &said)
}

/// Sends the same event under the same key, to whoever takes events at the time.
async fn tell(service: &Service) {
    let key = [("idempotency-key", "told twice")];
    let (status, _, body) = service.request(Method::PUT, "/events/told.example/delivered", &key, "").await;
    assert_eq!(status, StatusCode::ACCEPTED, "{body}");
}

/// The steps of docs/operating.md, under load. In this order no process ends while a client uses it, so there
/// is no moment at which a request may fail: each has to be accepted when it is sent for the first time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_go_over_to_the_services_nobody_is_refused_and_every_event_counts_once() {
    let data = data_file();
    let mut standalone = start(&data, &[]).await;
    let clients = Clients::start(&standalone.address());
    clients.go_on().await;
    tell(&standalone).await;
    // 1. The servers and ingest, without workers.
    let servers = Servers::fresh().await;
    let ingest = Service::ready("ingest", &servers, &[LONG_DEADLINE]).await;
    // 2. The clients go over. One repeats there what the standalone has counted.
    clients.go_over(&ingest.address()).await;
    tell(&ingest).await;
    clients.go_on().await;
    // 3. The standalone stops, and its content is moved.
    standalone.signal("TERM");
    assert!(standalone.ended().await.success());
    let (status, said) = move_to(&data, &servers);
    assert_eq!((status, said.contains("and verified: 4 domains")), (0, true), "{said}");
    // 4. The workers.
    let _worker = Service::ready("worker", &servers, &[]).await;
    clients.go_on().await;
    let (accepted, refusals) = clients.end().await;
    assert!(refusals.is_empty(), "{refusals:?}");
    let counted = async || {
        let mut sum = 0;
        for domain in DOMAINS {
            sum += servers.counters(domain).await.0;
        }
        u64::try_from(sum).unwrap()
    };
    eventually("all is counted", async || (counted().await >= accepted).then_some(())).await;
    servers.settle().await;
    assert_eq!(counted().await, accepted);
    assert_eq!(servers.counters("told.example").await, (1, 0), "it was told twice");
}

#[tokio::test]
async fn a_move_that_is_killed_again_and_again_adds_everything_once() {
    const ROWS: usize = 60_000;
    let data = data_file();
    let mut standalone = start(&data, &[]).await;
    post(&standalone, 0..ROWS).await;
    let servers = Servers::bare().await;
    let (status, said) = move_to(&data, &servers);
    assert_eq!((status, said.contains("in use by another process")), (15, true), "{said}");
    standalone.signal("TERM");
    standalone.ended().await;
    // One that a kill comes before the first step of, and some that it comes in the middle of.
    for milliseconds in [30, 150, 250, 400, 600] {
        let mut killed = command("standalone");
        killed.args(["move", "--data", data.to_str().unwrap(), "--to", &servers.database_url]);
        let mut killed = killed.stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
        tokio::time::sleep(Duration::from_millis(milliseconds)).await;
        let _ = killed.kill();
        killed.wait().unwrap();
    }
    for _ in 0..2 {
        let (status, said) = move_to(&data, &servers);
        assert_eq!(status, 0, "{said}");
        assert!(said.contains(&format!("verified: {ROWS} domains")), "{said}");
        assert!(said.contains(&format!("{ROWS} claims; the file is no longer served")), "{said}");
    }
    let sum = i64::try_from(ROWS * (ROWS + 1) / 2).unwrap();
    assert_eq!(servers.number("select sum(delivered)::int8 from domain_counters").await, sum);
    assert_eq!(servers.number("select count(*) from event_claims").await, i64::try_from(ROWS).unwrap());
    let (status, _, said) = run("standalone", &["--data", data.to_str().unwrap()], &[]);
    assert_eq!(status.code(), Some(18));
    assert!(said.contains("has been moved to postgres://"), "{said}");
}

#[tokio::test]
async fn a_used_ledger_gets_the_sum_and_a_copy_of_the_file_is_not_counted_again() {
    let data = data_file();
    let copy = data.with_file_name("copy.db");
    let mut standalone = start(&data, &[]).await;
    post(&standalone, 0..3).await;
    let copied = back_up(&data, &copy);
    assert!(copied.status.success(), "{copied:?}");
    standalone.signal("TERM");
    standalone.ended().await;

    let servers = Servers::fresh().await;
    servers.execute("insert into domain_counters values ('d1.com', 40, 2)").await;
    let (status, said) = move_to(&data, &servers);
    assert_eq!(status, 0, "{said}");
    assert_eq!(servers.counters("d1.com").await, (42, 2));
    assert_eq!(servers.counters("d2.com").await, (3, 0));
    let (status, said) = move_to(&copy, &servers);
    assert_eq!((status, said.contains("would count it twice")), (1, true), "{said}");

    // What has begun can only be finished where it began.
    let elsewhere = Servers::fresh().await;
    let (status, said) = move_to(&data, &elsewhere);
    assert_eq!((status, said.contains("finish that move first")), (1, true), "{said}");
    let behind = Servers { database_url: "postgres://nobody:secret@127.0.0.1:1/none".into(), ..servers };
    let (status, said) = move_to(&copy, &behind);
    assert_eq!(status, 1);
    assert!(said.contains("connection refused") && !said.contains("secret"), "{said}");
    // Nothing had begun there, so the copy serves as before.
    start(&copy, &[]).await;
}

/// Keeps moves from writing to a table of the ledger, for as long as the connection is open.
async fn lock(servers: &Servers, table: &str) -> PgConnection {
    let mut connection = PgConnection::connect(&servers.database_url).await.unwrap();
    let lock = AssertSqlSafe(format!("begin; lock table {table} in share mode"));
    sqlx::raw_sql(lock).execute(&mut connection).await.unwrap();
    connection
}

/// Kills a move when it waits for such a table.
async fn kill_one_that_waits(data: &Path, servers: &Servers) {
    let mut moving = command("standalone");
    moving.args(["move", "--data", data.to_str().unwrap(), "--to", &servers.database_url]);
    let mut moving = moving.stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
    let waiting = "select count(*) from pg_stat_activity where datname = current_database()
        and application_name = 'catchall-move' and wait_event_type = 'Lock'";
    eventually("the move waits", async || {
        // It gives up in the end, which leaves the same.
        let is_there = servers.number(waiting).await == 1 || moving.try_wait().unwrap().is_some();
        is_there.then_some(())
    })
    .await;
    let _ = moving.kill();
    moving.wait().unwrap();
}

/// What the process says when it is to serve a file that it must not serve.
fn not_served(data: &Path) -> (i32, String) {
    refusal(command("standalone").arg("--data").arg(data).output().unwrap())
}

#[tokio::test]
async fn a_file_whose_move_was_killed_in_its_middle_is_not_served() {
    let data = data_file();
    let mut standalone = start(&data, &[]).await;
    post(&standalone, 0..10).await;
    standalone.signal("TERM");
    standalone.ended().await;
    let servers = Servers::fresh().await;
    let counters = lock(&servers, "domain_counters").await;
    kill_one_that_waits(&data, &servers).await;
    assert_eq!(servers.number("select count(*) from event_claims").await, 10, "these have been moved");
    assert_eq!(servers.number("select count(*) from domain_counters").await, 0);
    let (status, said) = not_served(&data);
    assert_eq!((status, said.contains(" is being moved to postgres://")), (18, true), "{said}");
    counters.close().await.unwrap();
    // The last run finds that all is done, and looks at it once more.
    for _ in 0..2 {
        let (status, said) = move_to(&data, &servers);
        let found =
            "and verified: 10 domains with 55 delivered and 0 bounced events, 10 claims; the file is no";
        assert_eq!((status, said.contains(found)), (0, true), "{said}");
    }
    assert_eq!(servers.number("select sum(delivered)::int8 from domain_counters").await, 55);
    let (status, said) = not_served(&data);
    assert_eq!((status, said.contains(" has been moved to postgres://")), (18, true), "{said}");
}

#[tokio::test]
async fn a_file_whose_move_was_killed_before_its_first_step_is_served_as_before() {
    let data = used().await;
    let servers = Servers::fresh().await;
    let moves = lock(&servers, "moves").await;
    kill_one_that_waits(&data, &servers).await;
    let mut standalone = start(&data, &[]).await;
    assert_eq!(standalone.put("/events/a.com/delivered").await, StatusCode::ACCEPTED);
    standalone.signal("TERM");
    standalone.ended().await;
    moves.close().await.unwrap();
    let (status, said) = move_to(&data, &servers);
    assert_eq!((status, said.contains("and verified: 1 domains with 2 delivered")), (0, true), "{said}");
    assert_eq!(servers.counters("a.com").await, (2, 0));
}
