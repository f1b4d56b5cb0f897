//! Maps for mail servers, as any client sees them.

use harness::processes::Service;
use harness::servers::eventually;
use harness::sql;
use harness::system::System;
use hyper::{HeaderMap, Method, StatusCode, header};

async fn map(service: &Service, status: &str, tag: Option<&str>) -> (StatusCode, HeaderMap, String) {
    let headers: Vec<_> = tag.iter().map(|tag| ("if-none-match", *tag)).collect();
    service.request(Method::GET, &format!("/maps/rspamd/{status}"), &headers, "").await
}

/// The tag of a map.
async fn tag(service: &Service, status: &str) -> String {
    let (_, headers, _) = map(service, status, None).await;
    headers[header::ETAG].to_str().unwrap().to_owned()
}

async fn count(system: &System, events: String) {
    let headers = [("content-type", "application/x-ndjson")];
    let (status, _, body) = system.events().request(Method::POST, "/events", &headers, events).await;
    assert_eq!(status, StatusCode::ACCEPTED, "{body}");
}

#[tokio::test]
async fn a_map_has_all_domains_of_its_status_and_no_others() {
    for system in System::both(&[]).await {
        let query = system.domains();
        let (status, headers, body) = map(query, "catch-all", None).await;
        assert_eq!((status, &*body), (StatusCode::OK, "# none\n"));
        assert_eq!(headers[header::CONTENT_TYPE], "text/plain; charset=utf-8");
        assert_eq!(headers[header::CACHE_CONTROL], "no-cache");
        assert!(headers[header::ETAG].to_str().unwrap().starts_with("W/\""));
        // More than a page.
        let names: Vec<String> = (10_000..16_000).map(|number| format!("d{number}.com")).collect();
        let event = |name| format!("{{\"domain\": \"{name}\", \"event\": \"delivered\", \"count\": 1001}}\n");
        let mut events: String = names.iter().map(event).collect();
        events += "{\"domain\": \"some.com\", \"event\": \"bounced\"}\n";
        events += "{\"domain\": \"few.com\", \"event\": \"delivered\", \"count\": 1000}\n";
        count(&system, events).await;
        eventually("all are in the map", async || {
            let (_, _, body) = map(query, "catch-all", None).await;
            (body.lines().count() == names.len()).then_some(())
        })
        .await;
        let (_, _, body) = map(query, "catch-all", None).await;
        assert_eq!(body, names.join("\n") + "\n");
        query.answers("some.com", "not catch-all", 0, 1).await;
        assert_eq!(map(query, "not-catch-all", None).await.2, "some.com\n");
    }
}

#[tokio::test]
async fn a_map_at_hand_is_sent_again_when_a_status_has_changed_and_not_before() {
    for system in System::both(&[]).await {
        let query = system.domains();
        let first = tag(query, "catch-all").await;
        count(&system, "{\"domain\": \"a.com\", \"event\": \"delivered\", \"count\": 1001}".into()).await;
        eventually("it is in the map", async || {
            (map(query, "catch-all", None).await.2 == "a.com\n").then_some(())
        })
        .await;
        // In a cluster the tag follows once no older transaction runs, be it another test's.
        let now = eventually("the tag has followed", async || {
            let now = tag(query, "catch-all").await;
            (now != first).then_some(now)
        })
        .await;
        // Events that change no status.
        count(&system, "{\"domain\": \"a.com\", \"event\": \"delivered\"}".into()).await;
        query.answers("a.com", "catch-all", 1002, 0).await;
        let (status, headers, body) = map(query, "catch-all", Some(&now)).await;
        assert_eq!((status, &*body), (StatusCode::NOT_MODIFIED, ""));
        assert_eq!(headers[header::ETAG], *now);
        // And one that does.
        count(&system, "{\"domain\": \"a.com\", \"event\": \"bounced\"}".into()).await;
        eventually("the map has changed", async || {
            let (status, _, body) = map(query, "catch-all", Some(&now)).await;
            (status == StatusCode::OK && body == "# none\n").then_some(())
        })
        .await;
        assert_ne!(tag(query, "catch-all").await, now);
    }
}

#[tokio::test]
async fn there_is_no_other_map() {
    let system = System::standalone(&[]).await;
    for path in [
        "/maps",
        "/maps/rspamd",
        "/maps/rspamd/unknown",
        "/maps/rspamd/not%20catch-all",
        "/maps/other/catch-all",
    ] {
        let (status, _, body) = system.domains().request(Method::GET, path, &[], "").await;
        assert_eq!(status, StatusCode::NOT_FOUND, "{path}: {body}");
    }
}

/// What a transaction changes can be seen while an older one still runs, whose own changes come later. The
/// tag must not stay the same then.
#[tokio::test]
async fn a_change_beside_an_older_transaction_moves_the_tag_too() {
    let system = System::cluster(&[]).await;
    let before = tag(system.domains(), "catch-all").await;
    let url = system.servers.database_url.clone();
    let older = tokio::spawn(async move {
        sql::execute(&url, "select pg_current_xact_id(), pg_sleep(2)").await.unwrap();
    });
    let runs = "select count(*) from pg_stat_activity
        where backend_xid is not null and datname = current_database() and query like '%pg_sleep(2)%'";
    eventually("the older one runs", async || (system.servers.number(runs).await > 0).then_some(())).await;
    count(&system, "{\"domain\": \"a.com\", \"event\": \"delivered\", \"count\": 1001}".into()).await;
    eventually("it is in the map", async || {
        (map(system.domains(), "catch-all", None).await.2 == "a.com\n").then_some(())
    })
    .await;
    older.await.unwrap();
    eventually("the tag is another one", async || {
        (tag(system.domains(), "catch-all").await != before).then_some(())
    })
    .await;
}
