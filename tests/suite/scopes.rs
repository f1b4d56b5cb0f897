//! The table of SECURITY.md, tried row by row: each request, by each who may show up.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use harness::processes::Service;
use harness::system::System;
use hyper::Method;
use serde_json::Value;

use crate::access::Tokens;
use crate::documents::section;

const SECURITY: &str = include_str!("../../SECURITY.md");

/// Rows that name no request. `access.rs` tries them, and the last test of this file.
const ELSEWHERE: [&str; 2] = ["the reasons in `/readyz`", "any other path"];

/// What is served on the operations port.
const OPERATIONS: [&str; 3] = ["/livez", "/readyz", "/metrics"];

/// Who shows up, by what their token is for.
const CALLERS: [Option<&str>; 4] = [None, Some("write"), Some("read"), Some("operate")];

/// A row of the table: its requests, and who may send them.
struct Row {
    requests: Vec<(Method, String)>,
    who: String,
}

fn rows() -> Vec<Row> {
    let table = section(SECURITY, "\n## Who may do what\n", "\n## ");
    let lines = table.lines().filter_map(|line| line.strip_prefix("| "));
    let mut rows = Vec::new();
    for line in lines.filter(|line| !line.starts_with("request ") && !line.starts_with("---")) {
        let mut cells = line.split('|').map(str::trim);
        let (what, who) = (cells.next().unwrap(), cells.next().unwrap().trim_matches('`').to_owned());
        let named = what.split('`').skip(1).step_by(2).filter_map(|code| code.split_once(' '));
        let requests: Vec<_> =
            named.map(|(method, path)| (method.parse().unwrap(), path.to_owned())).collect();
        assert_eq!(requests.is_empty(), ELSEWHERE.contains(&what), "{line}");
        rows.push(Row { requests, who });
    }
    rows
}

/// A path of the table or of a document as a client asks for it.
fn sample(path: &str) -> String {
    let known = [
        ("/events/...", "/events/example.com/delivered"),
        ("/events/{domain}/{outcome}", "/events/example.com/delivered"),
        ("/domains/...", "/domains/example.com"),
        ("/domains/{domain}", "/domains/example.com"),
        ("/maps/...", "/maps/rspamd/catch-all"),
        ("/maps/rspamd/{status}", "/maps/rspamd/catch-all"),
    ];
    let found = known.iter().find(|(written, _)| *written == path);
    let sample = found.map_or(path, |(_, sample)| sample).to_owned();
    assert!(!sample.contains("...") && !sample.contains('{'), "{path}");
    sample
}

/// A standalone with tokens, which has all there is, and those who show up.
struct Door {
    system: System,
    bearers: Vec<Option<String>>,
    addresses: u32,
}

impl Door {
    async fn new() -> Self {
        let tokens = Tokens::new();
        let bearers =
            CALLERS.iter().map(|scope| scope.map(|scope| tokens.add(scope, scope))).collect::<Vec<_>>();
        let system = System::standalone(&[tokens.variable(), ("CATCHALL_PROXIES", "127.0.0.0/8")]).await;
        Self { system, bearers, addresses: 0 }
    }

    fn service(&self) -> &Service {
        self.system.events()
    }

    /// What each hears, in their order. Each request comes from an address of its own, so that none is
    /// refused too often.
    async fn ask(&mut self, method: &Method, path: &str) -> Vec<u16> {
        let mut heard = Vec::new();
        for bearer in &self.bearers {
            self.addresses += 1;
            let from = Ipv4Addr::from_bits(self.addresses).to_string();
            let bearer = bearer.iter().map(|bearer| ("authorization", &**bearer));
            let headers: Vec<_> = bearer.chain([("x-forwarded-for", &*from)]).collect();
            let service = self.service();
            let status = if OPERATIONS.contains(&path) {
                service.ops_with(path, &headers).await.0
            } else {
                service.request(method.clone(), path, &headers, "").await.0
            };
            heard.push(status.as_u16());
        }
        heard
    }
}

#[tokio::test]
async fn each_row_of_the_table_is_true() {
    let mut door = Door::new().await;
    let mut tried = 0;
    for Row { requests, who } in rows() {
        for (method, path) in requests {
            let path = sample(&path);
            for (scope, status) in CALLERS.iter().zip(door.ask(&method, &path).await) {
                let refused = match (&*who, scope) {
                    ("everybody", _) => None,
                    (_, None) => Some(401),
                    (may, Some(scope)) => (may != *scope).then_some(403),
                };
                let heard = [401, 403, 429].contains(&status).then_some(status);
                assert_eq!(heard, refused, "{method} {path} by {scope:?}: {status}");
                tried += 1;
            }
        }
    }
    assert!(tried >= 15 * CALLERS.len(), "{tried}");
}

#[tokio::test]
async fn whatever_is_served_is_in_the_table() {
    let mut door = Door::new().await;
    let mut written: BTreeSet<String> =
        rows().into_iter().flat_map(|row| row.requests).map(|(_, path)| sample(&path)).collect();
    let document = async |door: &Door, on_operations: bool| {
        let body = if on_operations {
            door.service().ops_with("/openapi.json", &[]).await.1
        } else {
            door.service().request(Method::GET, "/openapi.json", &[], "").await.2
        };
        let document: Value = serde_json::from_str(&body).unwrap();
        document["paths"].as_object().unwrap().keys().map(|path| sample(path)).collect::<Vec<_>>()
    };
    let served = [document(&door, false).await, document(&door, true).await].concat();
    // What the page loads has the rights of the page.
    let (page, served): (Vec<String>, Vec<String>) =
        served.into_iter().partition(|path| path.starts_with("/page/"));
    assert!(page.len() >= 4, "{page:?}");
    for path in &page {
        assert_eq!(door.ask(&Method::GET, path).await, [401, 403, 200, 403], "{path}");
    }
    for path in &served {
        assert!(written.contains(path), "{path} is not in the table of SECURITY.md");
    }
    written.retain(|path| !served.contains(path));
    assert_eq!(written, BTreeSet::new(), "the table has what is not served");
}

#[tokio::test]
async fn nothing_below_an_open_path_is_open() {
    let mut door = Door::new().await;
    for path in ["/livez/x", "/readyz/", "/docs/", "/docs/x", "/docs/style.css/x", "/openapi.json/x", "/x"] {
        assert_eq!(door.ask(&Method::GET, path).await, [401, 404, 404, 404], "{path}");
    }
    for path in ["/docs", "/docs/style.css", "/openapi.json"] {
        assert_eq!(door.ask(&Method::GET, path).await, [200; 4], "{path}");
    }
}
