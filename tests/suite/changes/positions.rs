//! Positions: which feed has given them, and what is not passed or waited for in vain.

use std::fs;
use std::time::Duration;

use harness::processes::Service;
use harness::servers::{Servers, eventually};
use harness::system::{System, data_file};
use hyper::{Method, StatusCode};
use serde_json::Value;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{ConnectOptions, Connection};

use super::{Events, page, send};

/// What the feed says of a position that it has not given.
async fn refuses(service: &Service, position: &str) {
    for wait in ["", "&wait=1"] {
        let (status, problem) = service.get(&format!("/changes?since={position}{wait}")).await;
        assert_eq!(status, StatusCode::GONE, "{position}: {problem}");
        assert_eq!(problem["type"], "urn:catchall:problem:unknown-position");
    }
    let headers = [("accept", "text/event-stream"), ("last-event-id", position)];
    let (status, headers, _) = service.request(Method::GET, "/changes?since=now", &headers, "").await;
    assert_eq!((status, &headers["cache-control"].to_str().unwrap()), (StatusCode::GONE, &"no-store"));
}

/// The feed of a position.
fn feed(position: &str) -> &str {
    position.split_once('-').unwrap().0.split_once('.').unwrap().1
}

#[tokio::test]
async fn a_position_that_the_feed_has_not_given_is_refused() {
    let systems = System::both(&[]).await;
    let mut ends = Vec::new();
    for system in &systems {
        let query = system.domains();
        send(system, "a.com", "bounced", 1).await;
        let (_, end) = eventually("it is in the feed", async || {
            let (changes, end) = page(query, "").await;
            (!changes.is_empty()).then_some((changes, end))
        })
        .await;
        let (_, now) = page(query, "since=now").await;
        assert_eq!(feed(&end), feed(&now));
        let ahead = format!("{}.{}-", i64::MAX, feed(&end));
        if system.is_standalone() {
            refuses(query, &ahead).await;
        } else {
            // Another copy may have come there already.
            assert_eq!(page(query, &format!("since={ahead}")).await, (vec![], ahead.clone()));
            assert_eq!(page(query, &format!("since={ahead}&wait=1")).await, (vec![], ahead));
        }
        // As they were before feeds had a name.
        refuses(query, "1-a.com").await;
        ends.push(end);
    }
    // As after a move, and back.
    refuses(systems[0].domains(), &ends[1]).await;
    refuses(systems[1].domains(), &ends[0]).await;
    // Also while somebody follows.
    for (system, end) in systems.iter().zip(ends.iter().rev()) {
        let _events = Events::open(system.domains(), "/changes", None).await;
        refuses(system.domains(), end).await;
    }
}

#[tokio::test]
async fn a_backup_that_is_put_in_place_has_another_feed_and_a_restart_has_not() {
    let (data, copy) = (data_file(), data_file());
    let place = ("CATCHALL_DATA", data.to_str().unwrap());
    let start = async || Service::ready("standalone", &Servers::none(), &[place]).await;
    let stop = async |mut service: Service| {
        service.signal("TERM");
        service.ended().await;
    };
    let bounce = async |service: &Service, domain: &str| {
        assert_eq!(service.put(&format!("/events/{domain}/bounced")).await, StatusCode::ACCEPTED);
    };
    let service = start().await;
    bounce(&service, "a.com").await;
    let (_, end) = page(&service, "").await;
    stop(service).await;
    let service = start().await;
    assert_eq!(page(&service, &format!("since={end}")).await, (vec![], end.clone()));
    let arguments = ["backup", "--data", data.to_str().unwrap(), copy.to_str().unwrap()];
    let (status, _, said) = harness::processes::run("standalone", &arguments, &[]);
    assert!(status.success(), "{said}");
    bounce(&service, "b.com").await;
    stop(service).await;
    // It has counted the same number of changes since, and others.
    for restored in ["c.com", "d.com"] {
        fs::copy(&copy, &data).unwrap();
        let service = start().await;
        bounce(&service, restored).await;
        refuses(&service, &end).await;
        let (changes, end) = page(&service, "").await;
        assert_eq!(changes, ["a.com not catch-all".to_owned(), format!("{restored} not catch-all")]);
        stop(service).await;
        let service = start().await;
        assert_eq!(page(&service, &format!("since={end}")).await.0, Vec::<String>::new());
        stop(service).await;
    }
}

/// As a restore from a dump does, the table is made anew.
#[tokio::test]
async fn whoever_follows_a_database_that_is_restored_hears_of_it_and_begins_anew() {
    let system = System::cluster(&[]).await;
    let query = system.domains();
    send(&system, "a.com", "bounced", 1).await;
    let mut events = Events::open(query, "/changes", None).await;
    let (_, last) = events.next().await;
    let waiting = format!("/changes?since={last}&wait=60");
    let (waited, ()) = tokio::join!(query.get(&waiting), async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        system
            .servers
            .execute(
                "create table restored (like domain_statuses including all);
                insert into restored select * from domain_statuses;
                drop table domain_statuses;
                alter table restored rename to domain_statuses",
            )
            .await;
    });
    assert_eq!((waited.0, &waited.1["changes"]), (StatusCode::OK, &Value::Array(vec![])));
    while events.block().await.is_some() {}
    refuses(query, &last).await;
    let mut events = Events::open(query, "/changes", None).await;
    assert_eq!(events.next().await.0, "a.com not catch-all");
    send(&system, "b.com", "bounced", 1).await;
    assert_eq!(events.next().await.0, "b.com not catch-all");
}

#[tokio::test]
async fn a_subscriber_for_whom_nothing_comes_hears_a_comment_however_much_changes() {
    let system = System::cluster(&[]).await;
    let query = system.domains();
    let (_, now) = page(query, "since=now").await;
    let ahead = format!("{}.{}-", i64::MAX, feed(&now));
    let mut events = Events::open(query, "/changes", Some(&ahead)).await;
    let changing = async {
        for number in 0.. {
            send(&system, &format!("d{number}.com"), "bounced", 1).await;
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    };
    tokio::select! {
        block = events.block() => assert_eq!(block.as_deref(), Some(":")),
        () = changing => unreachable!(),
    }
}

/// Statuses of 200 domains, of which some are none by the rules of this build, in one transaction.
const STATUSES: [&str; 2] = [
    "insert into domain_counters (domain, delivered, bounced)
        select case when n % 5 = 0 then 'bad_' || n else 'd' || n || '.com' end, 0, 1
        from generate_series(1000, 1199) as n;
    insert into domain_statuses (domain, status, since, changed_in)
        select domain, 2, now(), pg_current_xact_id()::text::bigint from domain_counters",
    "insert into domain_counters (domain, delivered, bounced)
        with recursive numbers as (select 1000 as n union all select n + 1 from numbers where n < 1199)
        select iif(n % 5 = 0, 'bad_' || n, 'd' || n || '.com'), 0, 1 from numbers;
    update classification set changes = changes + 1;
    insert into domain_statuses (domain, status, since, changed_in)
        select domain, 2, 0, (select changes from classification) from domain_counters",
];

async fn write_statuses(system: &System) {
    let [of_postgres, of_sqlite] = STATUSES;
    if !system.is_standalone() {
        return system.servers.execute(of_postgres).await;
    }
    let (_, data) = system.place();
    let options = SqliteConnectOptions::new().filename(data).disable_statement_logging();
    let mut connection = SqliteConnection::connect_with(&options).await.unwrap();
    let transaction = format!("begin immediate; {of_sqlite}; commit");
    sqlx::raw_sql(sqlx::AssertSqlSafe(transaction)).execute(&mut connection).await.unwrap();
}

#[tokio::test]
async fn invalid_names_are_left_out_of_the_feed_and_do_not_end_it_early() {
    for system in System::both(&[]).await {
        let query = system.domains();
        write_statuses(&system).await;
        let expected: Vec<String> =
            (1000..1200).filter(|n| n % 5 != 0).map(|n| format!("d{n}.com not catch-all")).collect();
        eventually("the feed has all", async || {
            (page(query, "limit=1000").await.0 == expected).then_some(())
        })
        .await;
        for limit in [1, 40] {
            let (mut heard, mut since) = (Vec::new(), String::new());
            loop {
                let (changes, end) = page(query, &format!("limit={limit}{since}")).await;
                heard.extend(changes);
                if since == format!("&since={end}") {
                    break;
                }
                since = format!("&since={end}");
            }
            assert_eq!(heard, expected);
        }
        // It reads a hundred rows at a time.
        let mut events = Events::open(query, "/changes", None).await;
        for change in &expected {
            assert_eq!(events.next().await.0, *change);
        }
        for status in ["", "&status=not-catch-all"] {
            let (mut listed, mut after) = (0, String::new());
            loop {
                let (_, list) = query.get(&format!("/domains?limit=1{status}{after}")).await;
                listed += list["domains"].as_array().unwrap().len();
                let Some(next) = list["next"].as_str() else { break };
                after = format!("&after={next}");
            }
            assert_eq!(listed, expected.len(), "{status}");
        }
    }
}
