//! The documents of the requests, compared with the routes, with docs/api.md and with themselves.

use std::collections::BTreeSet;

use catchall::http::ProblemType;
use harness::processes::Service;
use harness::system::System;
use hyper::{Method, StatusCode, header};
use serde_json::{Value, json};

use crate::documents::{API, section};
use crate::tidy::{Source, sources};

const METHODS: [&str; 8] = ["get", "put", "post", "delete", "patch", "head", "options", "trace"];

/// The document of a service.
async fn document(service: &Service) -> Value {
    let (status, headers, body) = service.request(Method::GET, "/openapi.json", &[], "").await;
    assert_eq!(
        (status, &headers[header::CONTENT_TYPE]),
        (StatusCode::OK, &"application/json".parse().unwrap())
    );
    serde_json::from_str(&body).unwrap()
}

/// Each request of a document: method, path, and what is said of it.
fn operations(document: &Value) -> Vec<(Method, String, Value)> {
    let mut found = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            assert!(METHODS.contains(&&**method), "{path}: {method}");
            let method = Method::from_bytes(method.to_ascii_uppercase().as_bytes()).unwrap();
            found.push((method, path.clone(), operation.clone()));
        }
    }
    found
}

/// Every value in a document, however deep.
fn values<'a>(value: &'a Value, found: &mut Vec<&'a Value>) {
    found.push(value);
    match value {
        Value::Array(items) => items.iter().for_each(|item| values(item, found)),
        Value::Object(members) => members.values().for_each(|member| values(member, found)),
        _ => {}
    }
}

/// The types of all problems in a document.
fn problems(document: &Value) -> BTreeSet<String> {
    let mut all = Vec::new();
    values(document, &mut all);
    let types = all.into_iter().filter_map(|value| value["type"].as_str());
    types.filter(|kind| kind.starts_with("urn:catchall:problem:")).map(str::to_owned).collect()
}

#[tokio::test]
async fn each_service_documents_what_it_serves_and_the_standalone_all() {
    let [cluster, standalone] = System::both(&[]).await;
    let own = ["/docs", "/docs/style.css", "/openapi.json"];
    let events = ["/events", "/events/{domain}/{outcome}"];
    let page = ["/", "/page/icon.svg", "/page/live", "/page/script.js", "/page/style.css"];
    let domains =
        ["/changes", "/domains", "/domains/lookup", "/domains/{domain}", "/maps/rspamd/{status}", "/totals"];
    for (service, paths) in [
        (cluster.events(), [&events[..], &own].concat()),
        (cluster.domains(), [&domains[..], &page, &own].concat()),
        (standalone.events(), [&domains[..], &page, &events, &own].concat()),
    ] {
        let document = document(service).await;
        let described: BTreeSet<&str> =
            document["paths"].as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(described, paths.into_iter().collect());
        for (method, path, operation) in operations(&document) {
            answers(service, method, &path, &operation).await;
        }
    }
}

/// Sends a request with the first examples of the document, and checks that it succeeds as is said; then
/// asks which methods the path takes.
async fn answers(service: &Service, method: Method, path: &str, operation: &Value) {
    let sent = path.replace("{domain}", "example.com").replace("{outcome}", "delivered");
    let sent = sent.replace("{status}", "catch-all");
    let example = &operation["requestBody"]["content"]["application/json"]["example"];
    let headers = [("content-type", "application/json")];
    let (headers, body) =
        if example.is_null() { (&[][..], String::new()) } else { (&headers[..], example.to_string()) };
    let (status, answered, _) = service.request(method.clone(), &sent, headers, body).await;
    let expected = &operation["responses"][status.as_str()];
    assert!(status.is_success() && expected.is_object(), "{method} {path}: {status}");
    if let Some(kinds) = expected["content"].as_object() {
        let kind = answered[header::CONTENT_TYPE].to_str().unwrap();
        assert!(kinds.contains_key(kind), "{method} {path}: {kind}");
    }
    let (status, answered, body) = service.request(Method::OPTIONS, &sent, &[], "").await;
    assert_eq!((status, &*body), (StatusCode::NO_CONTENT, ""), "OPTIONS {path}");
    let allowed = answered[header::ALLOW].to_str().unwrap();
    assert!(allowed.split(',').any(|one| one == method.as_str()), "OPTIONS {path}: {allowed}");
    let (status, answered, body) = service.request(Method::TRACE, &sent, &[], "").await;
    assert_eq!(status, StatusCode::METHOD_NOT_ALLOWED, "TRACE {path}: {body}");
    assert_eq!(answered[header::ALLOW], allowed, "TRACE {path}");
    if method == Method::GET {
        let (status, got, whole) = service.request(Method::GET, &sent, &[], "").await;
        let (of_head, headed, nothing) = service.request(Method::HEAD, &sent, &[], "").await;
        assert_eq!((of_head, &*nothing), (status, ""), "HEAD {path}");
        assert_eq!(headed[header::CONTENT_TYPE], got[header::CONTENT_TYPE], "HEAD {path}");
        // A stream does not know its length, and what was counted meanwhile can be in the answer.
        if got.contains_key(header::CONTENT_LENGTH) {
            let (_, _, later) = service.request(Method::GET, &sent, &[], "").await;
            let lengths = [whole, later].map(|body| body.len().to_string());
            assert!(lengths.iter().any(|one| headed[header::CONTENT_LENGTH] == **one), "HEAD {path}");
        } else {
            assert!(!headed.contains_key(header::CONTENT_LENGTH), "HEAD {path}");
        }
    }
}

#[test]
fn every_route_is_made_of_a_handler_that_is_described() {
    let mut described = 0;
    for Source { path, text, .. } in sources(&["src"]) {
        let code = text.split("#[cfg(test)]").next().unwrap();
        assert!(!code.contains(".route("), "{path} adds a route without a description: use routes!");
        described += code.matches("routes!(").count();
    }
    assert!(described >= 9, "{described}");
}

#[tokio::test]
async fn the_problems_of_the_documents_are_those_of_the_page() {
    let system = System::standalone(&[]).await;
    let document = document(system.events()).await;
    let rows = section(API, "\n## Problems\n", "\n## ").lines();
    let of_page = rows.filter_map(|row| row.strip_prefix("| `")?.split('`').next());
    let of_page: BTreeSet<&str> = of_page.collect();
    let urn = |name: &str| format!("urn:catchall:problem:{name}");
    let all: BTreeSet<String> = of_page.into_iter().map(urn).collect();
    let kinds = document["components"]["schemas"]["ProblemType"]["enum"].as_array().unwrap();
    assert_eq!(kinds.iter().map(|kind| kind.as_str().unwrap().to_owned()).collect::<BTreeSet<_>>(), all);
    // An invalid event is a problem of a part of a request only, never of the whole.
    let (mut described, invalid_event) = (problems(&document), ProblemType::InvalidEvent.urn());
    assert!(described.insert(invalid_event.to_owned()));
    assert_eq!(described, all);
    for (method, path, operation) in operations(&document) {
        for (status, response) in operation["responses"].as_object().unwrap() {
            let examples = response["content"]["application/problem+json"]["examples"].as_object();
            for (name, example) in examples.into_iter().flatten() {
                let value = &example["value"];
                assert_eq!(value["status"].to_string(), *status, "{method} {path} {name}");
                assert_eq!(value["type"], urn(name), "{method} {path}");
                let known = ProblemType::ALL.iter().find(|kind| kind.urn() == value["type"]);
                assert!(known.is_none_or(|kind| kind.status().as_str() == status), "{name} {status}");
            }
            let header = match &**status {
                "503" | "429" => "Retry-After",
                "405" => "Allow",
                "401" => "WWW-Authenticate",
                _ => continue,
            };
            assert!(response["headers"][header].is_object(), "{method} {path} {status} has no {header}");
        }
    }
}

#[tokio::test]
async fn a_document_refers_only_to_what_is_in_it() {
    for system in System::both(&[]).await {
        for service in [system.events(), system.domains()] {
            let document = document(service).await;
            assert!(document["openapi"].as_str().unwrap().starts_with("3.1."));
            let mut all = Vec::new();
            values(&document, &mut all);
            let mut used = BTreeSet::new();
            for reference in all.into_iter().filter_map(|value| value["$ref"].as_str()) {
                let pointer = reference.strip_prefix('#').unwrap();
                assert!(document.pointer(pointer).is_some(), "{reference}");
                used.insert(pointer.rsplit('/').next().unwrap().to_owned());
            }
            let schemas = document["components"]["schemas"].as_object().unwrap();
            assert_eq!(schemas.keys().cloned().collect::<BTreeSet<_>>(), used);
            let mut ids = BTreeSet::new();
            for (method, path, operation) in operations(&document) {
                assert!(ids.insert(operation["operationId"].to_string()), "{operation}");
                assert!(
                    operation["summary"].is_string() && operation["security"].is_array(),
                    "{method} {path}"
                );
                let parameters = operation["parameters"].as_array().cloned().unwrap_or_default();
                let of_path = parameters.iter().filter(|parameter| parameter["in"] == "path");
                let named = of_path.inspect(|parameter| assert_eq!(parameter["required"], true));
                let named: BTreeSet<&str> = named.map(|one| one["name"].as_str().unwrap()).collect();
                let in_path = path.split('{').skip(1).map(|rest| rest.split('}').next().unwrap());
                assert_eq!(named, in_path.collect(), "{method} {path}");
            }
        }
    }
}

#[tokio::test]
async fn the_page_shows_every_request_and_needs_nothing_from_elsewhere() {
    let system = System::standalone(&[]).await;
    let (status, headers, page) = system.events().request(Method::GET, "/docs", &[], "").await;
    assert_eq!(
        (status, headers[header::CONTENT_TYPE].to_str().unwrap()),
        (StatusCode::OK, "text/html; charset=utf-8")
    );
    let policy = headers[header::CONTENT_SECURITY_POLICY].to_str().unwrap();
    assert!(
        policy.starts_with("default-src 'none'; style-src 'self'") && !policy.contains("unsafe"),
        "{policy}"
    );
    for word in ["<script", "<style", " style=", " onclick", "src=", "url(", "https://", "//cdn"] {
        assert!(!page.contains(word), "{word}");
    }
    for (method, path, operation) in operations(&document(system.events()).await) {
        assert!(page.contains(&format!("{method}</span> <code>{path}</code>")), "{method} {path}");
        for status in operation["responses"].as_object().unwrap().keys() {
            assert!(page.contains(&format!("<strong>{status}</strong>")), "{status}");
        }
    }
    for kind in ProblemType::ALL.iter().filter(|kind| **kind != ProblemType::InvalidEvent) {
        assert!(page.contains(kind.urn()), "{}", kind.urn());
    }
    let link = page.split("href=\"").skip(1).map(|rest| rest.split('"').next().unwrap());
    for target in link {
        let known = ["/openapi.json", "/docs/style.css"].contains(&target);
        let anchor = target.strip_prefix('#').is_some_and(|id| page.contains(&format!("id=\"{id}\"")));
        assert!(known || anchor, "{target}");
    }
}

#[tokio::test]
async fn the_operations_routes_have_a_document_of_their_own() {
    let system = System::standalone(&[]).await;
    let (status, body) = system.events().ops("/openapi.json").await;
    let document: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(status, StatusCode::OK);
    for path in ["/livez", "/readyz", "/metrics"] {
        assert!(document["paths"][path]["get"]["responses"]["200"].is_object(), "{path}");
        assert_eq!(system.events().ops(path).await.0, StatusCode::OK, "{path}");
    }
    assert_eq!(document["paths"]["/metrics"]["get"]["security"], json!([{}, {"token": ["operate"]}]));
}
