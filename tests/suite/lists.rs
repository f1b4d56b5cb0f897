//! Lists, look-ups of many names, and totals.

use std::collections::BTreeMap;

use harness::processes::{LONG_DEADLINE, Service};
use harness::servers::{Servers, eventually};
use harness::sql;
use harness::system::System;
use hyper::{HeaderMap, Method, StatusCode, header};
use serde_json::{Value, json};

/// Sends events in one request.
async fn send(system: &System, events: impl IntoIterator<Item = (String, &str, u64)>) {
    let events: Vec<Value> = events
        .into_iter()
        .map(|(domain, event, count)| json!({"domain": domain, "event": event, "count": count}))
        .collect();
    for events in events.chunks(10_000) {
        system.events().post_events(&Value::from(events)).await;
    }
}

/// A system that knows 30 domains: `c0.com` to `c9.com` are catch-alls, `n…` are not, `u…` are unknown.
async fn with_domains(system: &System) {
    send(system, (0..10).map(|number| (format!("c{number}.com"), "delivered", 1001))).await;
    send(system, (0..10).map(|number| (format!("n{number}.com"), "bounced", 1))).await;
    send(system, (0..10).map(|number| (format!("u{number}.com"), "delivered", 1000))).await;
    system.domains().answers("u9.com", "unknown", 1000, 0).await;
    system.domains().answers("n9.com", "not catch-all", 0, 1).await;
    system.domains().answers("c9.com", "catch-all", 1001, 0).await;
}

async fn get(service: &Service, path: &str, headers: &[(&str, &str)]) -> (StatusCode, HeaderMap, String) {
    service.request(Method::GET, path, headers, "").await
}

fn names(list: &Value) -> Vec<&str> {
    list["domains"].as_array().unwrap().iter().map(|domain| domain["domain"].as_str().unwrap()).collect()
}

/// All names of a list, read page by page.
async fn walk(service: &Service, query: &str) -> (Vec<String>, usize) {
    let (mut found, mut pages) = (Vec::new(), 0);
    let mut after = String::new();
    loop {
        let (status, list) = service.get(&format!("/domains?{query}{after}")).await;
        assert_eq!(status, StatusCode::OK, "{list}");
        found.extend(names(&list).into_iter().map(str::to_owned));
        pages += 1;
        match list["next"].as_str() {
            Some(next) => after = format!("&after={next}"),
            None => return (found, pages),
        }
    }
}

#[tokio::test]
async fn a_list_is_read_page_by_page_in_the_order_of_names() {
    for system in System::both(&[]).await {
        with_domains(&system).await;
        let query = system.domains();
        let all = |letters: &str| -> Vec<String> {
            letters
                .chars()
                .flat_map(|letter| (0..10).map(move |number| format!("{letter}{number}.com")))
                .collect()
        };
        for (selection, expected) in [
            ("", all("cnu")),
            ("status=catch-all", all("c")),
            ("status=not%20catch-all", all("n")),
            ("status=not-catch-all", all("n")),
            ("status=unknown", all("u")),
            ("prefix=n", all("n")),
            ("prefix=U", all("u")),
            ("prefix=c7", vec!["c7.com".to_owned()]),
            ("prefix=n&status=catch-all", vec![]),
            ("prefix=c&status=catch-all&after=c7.com", vec!["c8.com".to_owned(), "c9.com".to_owned()]),
            ("prefix=none", vec![]),
        ] {
            assert_eq!(walk(query, selection).await.0, expected, "{selection}");
            for limit in [1, 3, 10, 1000] {
                if selection.contains("after") {
                    continue;
                }
                let (found, pages) = walk(query, &format!("{selection}&limit={limit}")).await;
                assert_eq!(found, expected, "{selection} by {limit}");
                assert!(pages <= expected.len() / limit + 1, "{pages} pages of {limit} for {selection}");
            }
        }
        // A report of a list is the same as that of the domain.
        let (_, list) = query.get("/domains?prefix=c7").await;
        assert_eq!(list["domains"][0], query.get("/domains/c7.com").await.1);
        let (_, headers, body) = get(query, "/domains?status=not-catch-all&prefix=n&limit=2", &[]).await;
        let link = headers[header::LINK].to_str().unwrap();
        assert_eq!(link, "</domains?after=n1.com&status=not-catch-all&prefix=n&limit=2>; rel=\"next\"");
        let next = link.trim_start_matches('<').split('>').next().unwrap();
        assert_eq!(names(&query.get(next).await.1), ["n2.com", "n3.com"], "{body}");
        // A limit is brought within its bounds.
        assert_eq!(names(&query.get("/domains?limit=0").await.1).len(), 1);
        assert_eq!(names(&query.get("/domains?limit=99999999999999999999").await.1).len(), 30);
    }
}

#[tokio::test]
async fn names_are_in_the_order_of_their_bytes() {
    for system in System::both(&[]).await {
        let names = ["a-b.com", "a.com", "a0.com", "ab.com"];
        send(&system, names.map(|name| (name.to_owned(), "bounced", 1))).await;
        let query = system.domains();
        query.answers("ab.com", "not catch-all", 0, 1).await;
        for (selection, expected) in
            [("", &names[..]), ("&status=not-catch-all", &names[..]), ("&prefix=a-", &names[..1])]
        {
            assert_eq!(walk(query, &format!("limit=1{selection}")).await.0, expected, "{selection}");
        }
    }
}

#[tokio::test]
async fn a_wrong_parameter_is_a_problem_that_names_it() {
    for system in System::both(&[]).await {
        for (path, detail) in [
            ("/domains?status=good", "the parameter status is not valid: a status is"),
            ("/domains?limit=ten", "the parameter limit is not valid: it is not a whole number"),
            ("/domains?limit=-1", "the parameter limit is not valid"),
            ("/domains?after=localhost", "the parameter after is not valid: a domain name has at least two"),
            ("/domains?prefix=m%C3%BCller", "the parameter prefix is not valid: a prefix is the beginning"),
            ("/domains?prefix=%27%20or%201=1", "the parameter prefix is not valid"),
            ("/domains?prefix=_", "the parameter prefix is not valid"),
            ("/domains?prefix=%25", "the parameter prefix is not valid"),
            ("/domains?stat=unknown", "there is no parameter \"stat\" here"),
            ("/domains?limit=1&limit=2", "the parameter limit is not valid: it is given more than once"),
            ("/changes?since=yesterday", "the parameter since is not valid: it is not a position"),
            ("/changes?wait=long", "the parameter wait is not valid"),
            ("/changes?after=a.com", "there is no parameter \"after\" here"),
        ] {
            let (status, answer) = system.domains().get(path).await;
            assert_eq!(status, StatusCode::BAD_REQUEST, "{path}: {answer}");
            assert_eq!(answer["type"], "urn:catchall:problem:invalid-parameter", "{path}");
            assert!(answer["detail"].as_str().unwrap().contains(detail), "{path}: {answer}");
        }
        let long = format!("/domains?{}=1", "x".repeat(10_000));
        let (status, answer) = system.domains().get(&long).await;
        assert_eq!(status, StatusCode::BAD_REQUEST);
        assert!(answer["detail"].as_str().unwrap().len() < 400, "{answer}");
    }
}

#[tokio::test]
async fn a_stream_has_all_of_a_selection() {
    const DOMAINS: usize = 12_345;
    for system in System::both(&[]).await {
        send(&system, (0..DOMAINS).map(|number| (format!("d{number}.com"), "bounced", 1))).await;
        send(&system, [("last.com".to_owned(), "delivered", 1)]).await;
        let query = system.domains();
        query.answers("last.com", "unknown", 1, 0).await;
        for (path, count) in
            [("/domains", DOMAINS + 1), ("/domains?status=not-catch-all", DOMAINS), ("/domains?prefix=x", 0)]
        {
            let (status, headers, body) = get(query, path, &[("accept", "application/x-ndjson")]).await;
            assert_eq!(status, StatusCode::OK);
            assert_eq!(headers[header::CONTENT_TYPE], "application/x-ndjson");
            assert_eq!(headers["catchall-snapshot"], "none");
            let rows: Vec<Value> = body.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
            let mut streamed: Vec<&str> = rows.iter().map(|row| row["domain"].as_str().unwrap()).collect();
            assert_eq!(streamed.len(), count, "{path}");
            assert!(streamed.is_sorted());
            streamed.dedup();
            assert_eq!(streamed.len(), count, "{path}");

            let (_, headers, body) = get(query, path, &[("accept", "text/csv")]).await;
            assert_eq!(headers[header::CONTENT_TYPE], "text/csv; charset=utf-8; header=present");
            let lines: Vec<&str> = body.split_terminator("\r\n").collect();
            assert_eq!(lines[0], "domain,status,delivered,bounced,since");
            assert_eq!(lines.len(), count + 1, "{path}");
            for (line, row) in lines[1..].iter().zip(&rows) {
                let since = row["since"].as_str().unwrap_or_default();
                let (domain, status) = (row["domain"].as_str().unwrap(), row["status"].as_str().unwrap());
                let line_of_row =
                    format!("{domain},{status},{},{},{since}", row["delivered"], row["bounced"]);
                assert_eq!(*line, line_of_row);
            }
        }
        let (_, _, body) = get(query, "/domains?limit=7", &[("accept", "application/x-ndjson")]).await;
        assert_eq!(body.lines().count(), 7);
    }
}

#[tokio::test]
async fn many_names_are_looked_up_in_their_order_and_what_is_no_name_is_named() {
    for system in System::both(&[]).await {
        with_domains(&system).await;
        let query = system.domains();
        let asked =
            json!(["c1.com", "localhost", "N2.com.", "never.seen.com", 7, "c1.com", "m\u{fc}ller.de"]);
        let expected = |found: &[Value]| {
            let short: Vec<String> = found
                .iter()
                .map(|found| match &found["domain"] {
                    Value::String(domain) => format!("{domain} {}", found["status"].as_str().unwrap()),
                    _ => format!(
                        "{} {} {}",
                        found["name"].as_str().unwrap(),
                        found["problem"]["type"].as_str().unwrap(),
                        found["problem"]["status"]
                    ),
                })
                .collect();
            assert_eq!(
                short,
                [
                    "c1.com catch-all",
                    "localhost urn:catchall:problem:invalid-domain 400",
                    "n2.com not catch-all",
                    "never.seen.com unknown",
                    "7 urn:catchall:problem:invalid-domain 400",
                    "c1.com catch-all",
                    "xn--mller-kva.de unknown",
                ]
            );
        };
        let post = async |body: String, content_type: &str| look_up(query, body, content_type).await;
        for body in [asked.to_string(), json!({ "domains": asked }).to_string()] {
            let (status, _, answer) = post(body, "application/json").await;
            assert_eq!(status, StatusCode::OK, "{answer}");
            expected(serde_json::from_str::<Value>(&answer).unwrap()["domains"].as_array().unwrap());
        }
        let lines: Vec<String> = asked.as_array().unwrap().iter().map(Value::to_string).collect();
        let objects: Vec<String> =
            asked.as_array().unwrap().iter().map(|name| json!({ "domain": name }).to_string()).collect();
        for (lines, names) in [(lines, true), (objects, false)] {
            let (status, headers, answer) = post(lines.join("\n\n"), "application/x-ndjson").await;
            assert_eq!(status, StatusCode::OK, "{answer}");
            assert_eq!(headers[header::CONTENT_TYPE], "application/x-ndjson");
            let found: Vec<Value> = answer.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
            if names {
                expected(&found);
            }
            assert_eq!(found.len(), 7);
        }
    }
}

/// Sends names to look up.
async fn look_up(service: &Service, body: String, content_type: &str) -> (StatusCode, HeaderMap, String) {
    service.request(Method::POST, "/domains/lookup", &[("content-type", content_type)], body).await
}

#[tokio::test]
async fn a_stream_has_any_number_of_names_and_what_is_no_look_up_is_refused() {
    for system in System::both(&[]).await {
        let query = system.domains();
        let post = async |body: String, content_type: &str| look_up(query, body, content_type).await;
        // A line that is far too long costs only itself.
        let mut many: Vec<String> = (0..25_000).map(|number| format!("\"c{}.com\"", number % 10)).collect();
        many[12_000] = format!("\"{}\"", "x".repeat(100_000));
        let (_, _, answer) = post(many.join("\n"), "application/x-ndjson").await;
        let found: Vec<Value> = answer.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(found.len(), 25_000);
        for (number, found) in found.iter().enumerate() {
            if number == 12_000 {
                assert!(found["name"].as_str().unwrap().len() < 400, "{found}");
            } else {
                assert_eq!(found["domain"], format!("c{}.com", number % 10));
            }
        }
        for (body, content_type, status, kind) in [
            ("{}".to_owned(), "application/json", 400, "invalid-body"),
            ("[".to_owned(), "application/json", 400, "invalid-body"),
            ("\"a.com\"".to_owned(), "application/json", 400, "invalid-body"),
            (json!(vec!["a.com"; 10_001]).to_string(), "application/json", 413, "too-large"),
            (json!(["x".repeat(5_000_000)]).to_string(), "application/json", 413, "too-large"),
            ("a.com".to_owned(), "text/plain", 415, "unsupported-media-type"),
        ] {
            let (answered, _, answer) = post(body, content_type).await;
            assert_eq!(answered.as_u16(), status, "{answer}");
            assert!(answer.contains(&format!("urn:catchall:problem:{kind}")), "{answer}");
            assert!(answer.len() < 1000, "{} bytes", answer.len());
        }
    }
}

#[tokio::test]
async fn an_answer_at_hand_is_asked_for_again_by_its_tag() {
    for system in System::both(&[]).await {
        send(&system, [("a.com".to_owned(), "delivered", 1001)]).await;
        let query = system.domains();
        query.answers("a.com", "catch-all", 1001, 0).await;
        let (status, headers, body) = get(query, "/domains/a.com", &[]).await;
        assert_eq!((status, &headers[header::CACHE_CONTROL]), (StatusCode::OK, &"no-cache".parse().unwrap()));
        let since = serde_json::from_str::<Value>(&body).unwrap()["since"].as_str().unwrap().to_owned();
        let etag = headers[header::ETAG].to_str().unwrap().to_owned();
        let head = query.request(Method::HEAD, "/domains/a.com", &[], "").await;
        assert_eq!((head.0, head.1[header::ETAG].to_str().unwrap(), &*head.2), (StatusCode::OK, &*etag, ""));
        let again = get(query, "/domains/a.com", &[("if-none-match", &etag)]).await;
        assert_eq!((again.0, &*again.2), (StatusCode::NOT_MODIFIED, ""));
        assert_eq!(again.1[header::ETAG], etag);
        // The same status since the same time, and another answer all the same.
        send(&system, [("a.com".to_owned(), "delivered", 1)]).await;
        query.answers("a.com", "catch-all", 1002, 0).await;
        let (status, _, body) = get(query, "/domains/a.com", &[("if-none-match", &etag)]).await;
        assert_eq!(status, StatusCode::OK);
        assert_eq!(serde_json::from_str::<Value>(&body).unwrap()["since"], since);
        // A bounce is another status, and another time.
        send(&system, [("a.com".to_owned(), "bounced", 1)]).await;
        query.answers("a.com", "not catch-all", 1002, 1).await;
        let (_, after) = query.get("/domains/a.com").await;
        assert!(after["since"].as_str().unwrap() > &*since, "{after} {since}");
    }
}

#[tokio::test]
async fn totals_are_the_sums_of_what_was_counted() {
    for system in System::both(&[]).await {
        let query = system.domains();
        let (_, empty) = query.get("/totals").await;
        let nothing = json!({"catch-all": 0, "not catch-all": 0, "unknown": 0});
        assert_eq!((&empty["domains"], &empty["recent"]["hour"]), (&nothing, &json!(0)));
        with_domains(&system).await;
        // Over the border within one request, and from one side to the other.
        send(&system, [("c1.com".to_owned(), "bounced", 2), ("new.com".to_owned(), "delivered", 5)]).await;
        send(&system, [("new.com".to_owned(), "delivered", 996), ("u1.com".to_owned(), "delivered", 1)])
            .await;
        query.answers("u1.com", "catch-all", 1001, 0).await;
        query.answers("c1.com", "not catch-all", 1001, 2).await;
        let (status, totals) = query.get("/totals").await;
        assert_eq!(status, StatusCode::OK);
        assert_eq!(totals["domains"], json!({"catch-all": 11, "not catch-all": 11, "unknown": 9}));
        let events = 10 * 1001 + 10 * 1000 + 5 + 996 + 1;
        assert_eq!(totals["events"], json!({"delivered": events, "bounced": 12}));
        assert_eq!(totals["recent"]["hour"], events + 12);
        // On a slow machine a minute may have passed since the first.
        let minute = totals["recent"]["minute"].as_u64().unwrap();
        assert!(minute > 0 && minute <= events + 12, "{minute}");
        let minutes = totals["minutes"].as_array().unwrap();
        let sum = |field: &str| minutes.iter().map(|minute| minute[field].as_u64().unwrap()).sum::<u64>();
        assert_eq!((sum("delivered"), sum("bounced")), (events, 12));
    }
}

/// What the totals have to be, by counting all rows.
const RECOUNT: &str = "\
select concat_ws(' ',
    count(*) filter (where bounced = 0 and delivered > 1000), count(*) filter (where bounced > 0),
    count(*) filter (where bounced = 0 and delivered <= 1000), sum(delivered), sum(bounced))
from domain_counters";
const NOTED: &str = "\
select concat_ws(' ', sum(catch_all), sum(not_catch_all), sum(domains) - sum(catch_all) - sum(not_catch_all),
    sum(delivered), sum(bounced))
from totals";
const STATUSES_DIFFER: &str = "\
select count(*) from domain_counters as c full join domain_statuses as s using (domain)
where coalesce(s.status, 0) <> case when c.bounced > 0 then 2 when c.delivered > 1000 then 1 else 0 end";

#[tokio::test]
async fn two_workers_on_the_same_domains_keep_the_totals_right() {
    let servers = Servers::fresh().await;
    let ingest = Service::ready("ingest", &servers, &[LONG_DEADLINE]).await;
    let _first = Service::ready("worker", &servers, &[("CATCHALL_PREFETCH", "20")]).await;
    let _second = Service::ready("worker", &servers, &[("CATCHALL_PREFETCH", "20")]).await;
    let mut expected: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    let requests =
        (0..60_u64).map(|number| {
            let events = (0..40_u64).map(|row| {
            let domain = format!("d{}.com", (number * 7 + row * 3) % 97);
            let bounced = (number * 40 + row) % 211 == 0;
            let sums = expected.entry(domain.clone()).or_default();
            if bounced { sums.1 += 1 } else { sums.0 += 101 }
            let count = if bounced { 1 } else { 101 };
            json!({"domain": domain, "event": if bounced { "bounced" } else { "delivered" }, "count": count})
        });
            Value::from(events.collect::<Vec<_>>()).to_string()
        });
    let requests: Vec<String> = requests.collect();
    let sent = requests.into_iter().map(async |body| {
        ingest.request(Method::POST, "/events", &[("content-type", "application/json")], body).await.0
    });
    let statuses = futures::future::join_all(sent).await;
    assert!(statuses.iter().all(|status| *status == StatusCode::ACCEPTED));
    let events: u64 = expected.values().map(|(delivered, bounced)| delivered + bounced).sum();
    eventually("all is counted", async || {
        let counted =
            servers.number("select coalesce(sum(delivered + bounced), 0)::int8 from domain_counters");
        (counted.await.unsigned_abs() == events).then_some(())
    })
    .await;
    let text = async |query| sql::text(&servers.database_url, query).await.unwrap();
    assert_eq!(text(NOTED).await, text(RECOUNT).await);
    assert_eq!(servers.number(STATUSES_DIFFER).await, 0);
}
