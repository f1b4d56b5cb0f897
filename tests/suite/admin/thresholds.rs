//! The threshold changes beside those who count, and what was counted before follows it.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStderr, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use harness::processes::Service;
use harness::servers::{Servers, eventually};
use harness::sql;
use harness::system::{System, data_file, directory};
use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{RngCore, SeedableRng};
use serde_json::json;
use sqlx::{Connection, PgConnection};

use super::{done, follow, is_consistent, kill, send, start};

const DOMAINS: u64 = 40_000;

/// Imports domains of which some are on either side of every threshold below. Returns the number of events.
fn fill(system: &System, domains: u64) -> u64 {
    let (mut rows, mut events) = (String::new(), 0);
    for n in 0..domains {
        let (delivered, bounced) = (n % 50, u64::from(n % 13 == 0));
        writeln!(rows, "d{n}.example.com,{delivered},{bounced}").unwrap();
        events += delivered + bounced;
    }
    let file = directory().join("history.csv");
    std::fs::write(&file, rows).unwrap();
    done(system, &["import", file.to_str().unwrap(), "--by", "tests"]);
    events
}

/// Sends events of these domains until it is told to stop.
async fn load(system: &System, stop: &AtomicBool, accepted: &AtomicU64) {
    let mut random = Xoshiro256PlusPlus::seed_from_u64(9);
    while !stop.load(Ordering::Relaxed) {
        let events = (0..200).map(|_| {
            let n = random.next_u64() % DOMAINS;
            let event = if random.next_u64().is_multiple_of(40) { "bounced" } else { "delivered" };
            json!({"domain": format!("d{n}.example.com"), "event": event})
        });
        send(system, &events.collect()).await;
        accepted.fetch_add(200, Ordering::Relaxed);
    }
}

/// How many events have been counted; none where the totals cannot be read at the moment.
async fn counted(system: &System) -> u64 {
    let (_, totals) = system.domains().get("/totals").await;
    let count = |outcome: &str| totals["events"][outcome].as_u64().unwrap_or_default();
    count("delivered") + count("bounced")
}

async fn follows_under_load(system: Arc<System>) {
    let before = fill(&system, DOMAINS);
    eventually("the import is visible", async || (counted(&system).await == before).then_some(())).await;
    let (mut position, mut known) = (String::new(), BTreeMap::new());
    let (stop, accepted) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let loading = {
        let (system, stop, accepted) = (Arc::clone(&system), Arc::clone(&stop), Arc::clone(&accepted));
        tokio::spawn(async move { load(&system, &stop, &accepted).await })
    };
    eventually("events come", async || (accepted.load(Ordering::Relaxed) > 1000).then_some(())).await;
    let mut resumed = 0;
    for (threshold, kills) in [(10, vec![20, 60]), (30, vec![100, 0, 200]), (20, vec![])] {
        let arguments = ["reclassify", "--by", "tests", "--threshold", &threshold.to_string()];
        for milliseconds in kills {
            let said = kill(start(&system, &arguments), milliseconds).await;
            resumed += usize::from(said.starts_with("continuing"));
            follow(system.domains(), &mut position, &mut known).await;
        }
        let (system, arguments) = (Arc::clone(&system), arguments.map(str::to_owned));
        let said = tokio::task::spawn_blocking(move || {
            done(&system, &arguments.iter().map(String::as_str).collect::<Vec<_>>())
        });
        let said = said.await.unwrap();
        assert!(said.starts_with(&format!("reclassified by the threshold {threshold}: ")), "{said}");
    }
    assert!(resumed > 0, "no kill came in the middle");
    stop.store(true, Ordering::Relaxed);
    loading.await.unwrap();
    let all = before + accepted.load(Ordering::Relaxed);
    eventually("all is counted", async || (counted(&system).await == all).then_some(())).await;
    is_consistent(&system, 20, position, known).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn statuses_follow_the_threshold_beside_two_workers_whatever_is_killed() {
    let system = Arc::new(System::cluster(&[]).await);
    let _second = Service::ready("worker", &system.servers, &[]).await;
    follows_under_load(Arc::clone(&system)).await;
    let runs = system.servers.number("select walk from classification").await;
    assert_eq!(runs, 8, "each run has its number");
    assert_eq!(sql::deadlocks(&system.servers.database_url).await.unwrap(), 0);
    let noted = "select count(*) from audit_log
        where action = 'reclassify' and details->>'before' <> subject";
    assert_eq!(system.servers.number(noted).await, 3, "one entry for each change");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn statuses_follow_the_threshold_beside_the_process_that_serves_the_file() {
    follows_under_load(Arc::new(System::standalone(&[]).await)).await;
}

/// Of runs at the same time the last one wins, and the others say so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_can_be_stopped_and_a_later_one_takes_over() {
    for system in System::both(&[]).await {
        // Of these, 1,107 have no events.
        fill(&system, 60_000);
        let begin = |threshold: &str, before: &str| {
            let mut run = start(&system, &["reclassify", "--by", "tests", "--threshold", threshold]);
            let mut stderr = BufReader::new(run.stderr.take().unwrap());
            let mut said = String::new();
            stderr.read_line(&mut said).unwrap();
            assert_eq!(said, format!("the threshold is now {threshold}; it was {before}\n"));
            (run, stderr)
        };
        let end = |(mut run, mut stderr): (Child, BufReader<ChildStderr>), words: &str| {
            let mut said = String::new();
            stderr.read_to_string(&mut said).unwrap();
            assert_eq!((run.wait().unwrap().code(), said.contains(words)), (Some(1), true), "{said}");
        };
        let stopped = begin("3", "1000");
        let pid = stopped.0.id().to_string();
        assert!(std::process::Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
        end(stopped, "stopped: run the same command again to continue where it stopped");
        let first = begin("5", "3");
        done(&system, &["reclassify", "--by", "tests", "--threshold", "7"]);
        end(first, "another run has taken the reclassification over");
        is_consistent(&system, 7, String::new(), BTreeMap::new()).await;
        // By the present threshold, with nothing to do.
        let said = done(&system, &["reclassify", "--by", "tests"]);
        assert!(
            said.starts_with("reclassified by the threshold 7: 0 of 58893 domains changed status"),
            "{said}"
        );
    }
}

/// Who began before the change may still count by the old threshold.
#[tokio::test]
async fn a_walk_waits_for_those_who_count_by_the_old_threshold() {
    let system = System::cluster(&[]).await;
    let url = system.servers.database_url.clone();
    let old = tokio::spawn(async move {
        let slow = "begin; select pg_current_xact_id(), 'an old transaction'; select pg_sleep(3); commit";
        sql::execute(&url, slow).await.unwrap();
    });
    let running = "select count(*) from pg_stat_activity where datname = current_database() \
        and backend_xid is not null and query like '%an old transaction%' and pid <> pg_backend_pid()";
    eventually("it runs", async || (system.servers.number(running).await == 1).then_some(())).await;
    let arguments = ["reclassify", "--by", "tests", "--threshold", "3"];
    let run = tokio::task::spawn_blocking(move || {
        done(&system, &arguments);
        system
    });
    let system = run.await.unwrap();
    assert_eq!(system.servers.number(running).await, 0, "it has ended");
    old.await.unwrap();
}

/// They may have higher numbers than the change, and have read what it replaces.
#[tokio::test]
async fn a_walk_waits_for_those_who_began_while_the_threshold_was_being_changed() {
    let system = System::cluster(&[]).await;
    let servers = &system.servers;
    let connect = async || PgConnection::connect(&servers.database_url).await.unwrap();
    let (mut gate, mut old) = (connect().await, connect().await);
    // The change has its number, and cannot be committed.
    sqlx::raw_sql("begin; lock table audit_log in share mode").execute(&mut gate).await.unwrap();
    let mut run = start(&system, &["reclassify", "--by", "tests", "--threshold", "3"]);
    let waits = "select count(*) from pg_stat_activity where datname = current_database()
        and application_name = 'catchall-admin' and wait_event_type = 'Lock'";
    eventually("the change waits", async || (servers.number(waits).await == 1).then_some(())).await;
    // As a worker does: the number, then the rule.
    sqlx::raw_sql("begin; select pg_current_xact_id()").execute(&mut old).await.unwrap();
    let threshold: i64 =
        sqlx::query_scalar("select threshold from classification").fetch_one(&mut old).await.unwrap();
    assert_eq!(threshold, 1000);
    sqlx::raw_sql("commit").execute(&mut gate).await.unwrap();
    let (mut said, mut stderr) = (String::new(), BufReader::new(run.stderr.take().unwrap()));
    stderr.read_line(&mut said).unwrap();
    assert_eq!(said, "the threshold is now 3; it was 1000\n");
    // So few domains would be walked through at once.
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(run.try_wait().unwrap().is_none(), "it waits");
    // By the old rule there is nothing to note.
    let count = "insert into domain_counters (domain, delivered, bounced) values ('late.com', 5, 0); commit";
    sqlx::raw_sql(count).execute(&mut old).await.unwrap();
    assert!(run.wait().unwrap().success());
    let noted = "select count(*) from domain_statuses where domain = 'late.com' and status = 1";
    assert_eq!(servers.number(noted).await, 1);
}

/// A step may wait for a worker, and what that has counted may make the domain cross back.
#[tokio::test]
async fn a_step_looks_again_at_counters_that_changed_while_it_waited() {
    let system = Arc::new(System::cluster(&[]).await);
    fill(&system, 100_000);
    send(&system, &json!([{"domain": "z.com", "event": "delivered", "count": 25}])).await;
    let reclassify = |threshold| ["reclassify", "--by", "tests", "--threshold", threshold];
    done(&system, &reclassify("20"));
    system.domains().answers("z.com", "catch-all", 25, 0).await;
    let mut run = start(&system, &reclassify("30"));
    let servers = &system.servers;
    let walks = "select count(*) from classification where walked_through between 'a' and 'y'";
    eventually("it walks", async || (servers.number(walks).await == 1).then_some(())).await;
    let changed_in = "select changed_in from domain_statuses where domain = 'z.com' and status = 1";
    let before = servers.number(changed_in).await;
    // As a worker does: the counters, then the status, which stays.
    let mut worker = PgConnection::connect(&servers.database_url).await.unwrap();
    let count = "begin; update domain_counters set delivered = 40 where domain = 'z.com';
        update domain_statuses set was = was where domain = 'z.com'";
    sqlx::raw_sql(count).execute(&mut worker).await.unwrap();
    let waits = "select count(*) from pg_stat_activity where datname = current_database()
        and application_name = 'catchall-admin' and wait_event_type = 'Lock'";
    eventually("a step waits for it", async || (servers.number(waits).await == 1).then_some(())).await;
    sqlx::raw_sql("commit").execute(&mut worker).await.unwrap();
    assert!(run.wait().unwrap().success());
    assert!(servers.number(changed_in).await > before, "the step has written it, and written it again");
    eventually("the list has it", async || {
        let (_, list) = system.domains().get("/domains?status=catch-all&prefix=z").await;
        (list["domains"][0]["delivered"] == 40).then_some(())
    })
    .await;
}

/// A dump of another server has numbers of transactions that are still to come here, and an older worker notes
/// no statuses.
#[tokio::test]
async fn a_walk_mends_what_was_not_noted_and_brings_a_restored_feed_into_the_present() {
    let system = System::cluster(&[]).await;
    // Some that were reset are among the others, some after all of them.
    let reset = ["aa.com", "z1.com", "z2.com"];
    let bounced = ["a.com"].iter().chain(&reset).map(|domain| json!({"domain": domain, "event": "bounced"}));
    send(&system, &bounced.collect()).await;
    system.domains().answers("a.com", "not catch-all", 0, 1).await;
    for domain in reset {
        system.domains().answers(domain, "not catch-all", 0, 1).await;
        done(&system, &["reset", domain, "--by", "tests", "--reason", "tests"]);
    }
    let servers = &system.servers;
    servers
        .execute(
            "update domain_statuses set changed_in = changed_in + 1000000000;
            update change_relay set changed_in = changed_in + 1000000000, holder = null;
            insert into domain_counters (domain, delivered, bounced) values ('old.com', 5000, 0)",
        )
        .await;
    sql::replayed(&servers.database_url, &servers.replica_url).await.unwrap();
    let mut known = BTreeMap::new();
    follow(system.domains(), &mut String::new(), &mut known).await;
    assert_eq!(known, BTreeMap::new(), "the feed does not come there before long");
    done(&system, &["reclassify", "--by", "tests"]);
    let ahead = "select count(*) from domain_statuses where changed_in > 1000000000";
    assert_eq!(servers.number(ahead).await, 0, "nothing is left in the future");
    let expected = [("a.com", "not catch-all"), ("old.com", "catch-all")];
    let expected = expected.into_iter().chain(reset.map(|domain| (domain, "unknown")));
    let expected = expected.map(|(name, status)| (name.to_owned(), status.to_owned())).collect();
    eventually("the feed has all", async || {
        follow(system.domains(), &mut String::new(), &mut known).await;
        (known == expected).then_some(())
    })
    .await;
    assert_eq!(servers.number("select count(*) from change_relay where changed_in < 1000000000").await, 1);
    system.domains().answers("old.com", "catch-all", 5000, 0).await;
}

#[tokio::test]
async fn the_standalone_takes_its_threshold_and_goes_on_with_it_after_a_kill() {
    let data = data_file();
    let start = async |more: &[(&str, &str)]| {
        let variables = [more, &[("CATCHALL_DATA", data.to_str().unwrap())]].concat();
        Service::ready("standalone", &Servers::none(), &variables).await
    };
    let listed = async |service: &Service| {
        let (_, totals) = service.get("/totals").await;
        totals["domains"]["catch-all"].as_u64().unwrap()
    };
    let mut service = start(&[]).await;
    let events: String = (0..30_000).fold(String::new(), |mut lines, n| {
        writeln!(lines, "s{n}.com,{},0", n % 30).unwrap();
        lines
    });
    let file = directory().join("history.csv");
    std::fs::write(&file, events).unwrap();
    let place = [("CATCHALL_DATA", data.to_str().unwrap())];
    let arguments = ["import", file.to_str().unwrap(), "--by", "tests"];
    let (status, _, said) = harness::processes::run("admin", &arguments, &place);
    assert!(status.success(), "{said}");
    assert_eq!(listed(&service).await, 0);
    service.signal("TERM");
    service.ended().await;
    let mut service = start(&[("CATCHALL_THRESHOLD", "9")]).await;
    // Look-ups go by it at once.
    assert_eq!(service.get("/domains/s10.com").await.1["status"], "catch-all");
    service.logs("reclassifying by the threshold 9").await;
    service.signal("KILL");
    service.ended().await;
    let service = start(&[]).await;
    eventually("all are classified", async || (listed(&service).await == 20_000).then_some(())).await;
    assert_eq!(service.get("/domains/s9.com").await.1["status"], "unknown");
    // It is the file's own now, and an operator can change it while it is served.
    let arguments = ["reclassify", "--by", "tests", "--threshold", "19"];
    let (status, out, said) = harness::processes::run("admin", &arguments, &place);
    assert!(status.success(), "{out}{said}");
    assert_eq!(listed(&service).await, 10_000);
    // A walk that nobody goes on with is ended by who serves the file.
    let mut killed = harness::processes::command("admin");
    killed.args(["reclassify", "--by", "tests", "--threshold", "4"]).envs(place);
    let killed = killed.stderr(Stdio::piped()).spawn().unwrap();
    let said = kill(killed, 0).await;
    assert!(said.starts_with("the threshold is now 4; it was 19"), "{said}");
    eventually("the walk is ended", async || (listed(&service).await == 25_000).then_some(())).await;
}

#[tokio::test]
async fn look_ups_by_another_threshold_than_that_of_the_database_are_told() {
    let system = System::cluster(&[]).await;
    let query = Service::ready("query", &system.servers, &[("CATCHALL_THRESHOLD", "5")]).await;
    query.logs("look-ups use CATCHALL_THRESHOLD, 5, and everything else uses the threshold of the").await;
    query.logs("database, 1000").await;
    done(&system, &["reclassify", "--by", "tests", "--threshold", "5"]);
    done(&system, &["reclassify", "--by", "tests", "--threshold", "6"]);
    query.logs("database, 6").await;
    query.logs_times("look-ups use", 2).await;
}
