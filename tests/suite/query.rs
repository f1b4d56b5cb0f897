//! What is answered of a domain.

use harness::processes::Service;
use harness::servers::{Servers, eventually};
use harness::system::System;
use hyper::{Method, StatusCode, header};
use serde_json::{Value, json};

#[tokio::test]
async fn the_rule_is_applied_to_what_was_counted() {
    for system in System::both(&[]).await {
        let ingest = system.events();
        let query = system.domains();
        for (delivered, bounced, status) in [
            (999, 0, "unknown"),
            (1000, 0, "unknown"),
            (1001, 0, "catch-all"),
            (999, 1, "not catch-all"),
            (1000, 1, "not catch-all"),
            (1001, 1, "not catch-all"),
        ] {
            let domain = format!("d{delivered}-{bounced}.com");
            let mut events = vec![json!({"domain": domain, "event": "delivered", "count": delivered})];
            if bounced > 0 {
                events.push(json!({"domain": domain, "event": "bounced", "count": bounced}));
            }
            ingest.post_events(&Value::from(events)).await;
            query.answers(&domain, status, delivered, bounced).await;
        }
    }
}

#[tokio::test]
async fn a_domain_never_seen_is_unknown_and_any_spelling_finds_it() {
    for system in System::both(&[]).await {
        let query = system.domains();
        for spelling in ["never.seen.com", "NEVER.seen.com."] {
            let answer = json!({
                "domain": "never.seen.com", "status": "unknown", "delivered": 0, "bounced": 0, "since": null,
            });
            assert_eq!(query.get(&format!("/domains/{spelling}")).await, (StatusCode::OK, answer));
        }
    }
}

#[tokio::test]
async fn as_many_names_as_a_document_may_have_are_answered_in_their_order() {
    const NAMES: u64 = 10_000;
    let headers = [("content-type", "application/json")];
    // Every third is known, by a number of its own. The order is none that anybody would read them in.
    let delivered = |number: u64| if number.is_multiple_of(3) { number + 1 } else { 0 };
    let known: Vec<Value> = (0..NAMES)
        .filter(|number| delivered(*number) > 0)
        .map(|number| {
            json!({"domain": format!("d{number}.com"), "event": "delivered", "count": delivered(number)})
        })
        .collect();
    let asked: Vec<u64> = (0..NAMES).map(|place| place * 7919 % NAMES).collect();
    let names: Vec<String> = asked.iter().map(|number| format!("d{number}.com")).collect();
    for system in System::both(&[]).await {
        let events = Value::from(known.clone()).to_string();
        let (status, _, answer) = system.events().request(Method::POST, "/events", &headers, events).await;
        assert_eq!(status, StatusCode::ACCEPTED, "{answer}");
        let found = eventually("all are counted", async || {
            let body = json!(names).to_string();
            let query = system.domains();
            let (status, _, answer) = query.request(Method::POST, "/domains/lookup", &headers, body).await;
            assert_eq!(status, StatusCode::OK, "{answer:.300}");
            let found = serde_json::from_str::<Value>(&answer).unwrap()["domains"].take();
            let found: Vec<Value> = serde_json::from_value(found).unwrap();
            let counted = found.iter().filter(|found| found["delivered"] != 0).count();
            (counted == known.len()).then_some(found)
        })
        .await;
        assert_eq!(found.len(), names.len());
        for ((name, number), found) in names.iter().zip(&asked).zip(found) {
            assert_eq!((&found["domain"], &found["delivered"]), (&json!(name), &json!(delivered(*number))));
        }
    }
}

#[tokio::test]
async fn what_cannot_be_answered_is_a_problem_that_names_it() {
    for system in System::both(&[]).await {
        let query = system.domains();
        for (method, path, status, kind, detail) in [
            (
                Method::GET,
                "/domains/localhost",
                400,
                "invalid-domain",
                "\"localhost\" is not valid: a domain name has at least",
            ),
            (Method::GET, "/domains/%FF.com", 400, "invalid-domain", "UTF-8"),
            (Method::POST, "/domains", 405, "method-not-allowed", "POST is not allowed at /domains"),
            (Method::GET, "/domains/a.com/b", 404, "not-found", "there is nothing at /domains/a.com/b"),
            (
                Method::POST,
                "/domains/a.com",
                405,
                "method-not-allowed",
                "POST is not allowed at /domains/a.com",
            ),
        ] {
            let (answered, headers, body) = query.request(method, path, &[], "").await;
            assert_eq!(answered.as_u16(), status, "{path}: {body}");
            assert_eq!(headers[header::CONTENT_TYPE], "application/problem+json");
            let problem: Value = serde_json::from_str(&body).unwrap();
            assert_eq!(problem["type"], format!("urn:catchall:problem:{kind}"), "{path}: {body}");
            assert!(problem["detail"].as_str().unwrap().contains(detail), "{path}: {body}");
        }
    }
}

#[tokio::test]
async fn it_reads_over_connections_that_cannot_write_wherever_they_lead() {
    let servers = Servers::fresh().await;
    let on_primary = Servers { replica_url: servers.database_url.clone(), ..servers.clone() };
    // Ready means that the session was asked, and is read-only.
    let query = Service::ready("query", &on_primary, &[]).await;
    query.answers("never.seen.com", "unknown", 0, 0).await;
    let writable = format!("{}?options=-c%20default_transaction_read_only%3Doff", servers.database_url);
    let on_writable = Servers { replica_url: writable, ..servers };
    Service::ready("query", &on_writable, &[]).await;
}

/// Makes every session's first read fail as a replica fails one that is in the way of replay, which itself
/// cannot be made to happen at will. A session keeps its advisory lock, whatever becomes of the transaction.
const CANCEL_ONCE: &str = "\
create function cancelled_before() returns bool language plpgsql as $$
begin
    if exists (select from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()) then
        return true;
    end if;
    perform pg_advisory_lock(pg_backend_pid());
    raise exception 'canceling statement due to conflict with recovery' using errcode = '40001';
end $$;
alter table domain_counters rename to counters;
create view domain_counters as
    select 'a.com'::text collate \"C\" as domain, 7::bigint as delivered, 0::bigint as bounced
    where cancelled_before();
grant select on domain_counters to public";

#[tokio::test]
async fn a_read_that_is_cancelled_for_replay_is_read_again() {
    let servers = Servers::fresh().await;
    let query = Service::ready("query", &servers, &[]).await;
    servers.execute(CANCEL_ONCE).await;
    let read = async || {
        let (status, answer) = query.get("/domains/a.com").await;
        assert_eq!(status, StatusCode::OK, "{answer}");
        (answer["delivered"] == 7).then_some(())
    };
    eventually("the replica has it", read).await;
    for _ in 0..50 {
        assert_eq!(read().await, Some(()));
    }
}

/// Ends every connection of the query service to the database of this test, as a restart of the server does.
const END_CONNECTIONS: &str = "\
select pg_terminate_backend(pid) from pg_stat_activity
where datname = current_database() and application_name like 'catchall-query%'";

#[tokio::test]
async fn a_read_whose_connection_had_ended_is_read_over_a_new_one() {
    let servers = Servers::fresh().await;
    // The primary, where a superuser of the test may end connections, and no replay is in the way.
    let on_primary = Servers { replica_url: servers.database_url.clone(), ..servers.clone() };
    let query = Service::ready("query", &on_primary, &[]).await;
    for _ in 0..3 {
        for path in ["/domains/a.com", "/domains?status=unknown", "/totals", "/changes"] {
            let reads = (0..16).map(|_| query.get(path));
            for (status, answer) in futures::future::join_all(reads).await {
                assert_eq!(status, StatusCode::OK, "{path}: {answer}");
            }
        }
        servers.execute(END_CONNECTIONS).await;
    }
}
