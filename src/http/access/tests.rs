//! Who is let in, as the check of a request decides it.

use axum::http::StatusCode;

use super::*;
use crate::grant::{Scope, grants};
use crate::http::problem::ProblemType;
use crate::reload::{Contents, FileError, Reloaded};
use crate::token::{Token, TokenDigest};

const WRITER: [u8; 32] = [1; 32];
const READER: [u8; 32] = [2; 32];
const OPERATOR: [u8; 32] = [3; 32];
const FORMER: [u8; 32] = [4; 32];
const STRANGER: [u8; 32] = [5; 32];

fn digest(digits: [u8; 32]) -> TokenDigest {
    Token::from_digits(digits).digest()
}

fn bearer_of(digits: [u8; 32]) -> String {
    format!("Bearer {}", Token::from_digits(digits).expose())
}

/// An access with a token for each scope, and one that has expired.
fn access(per_token: Rates, per_address: Rates) -> Arc<Access> {
    let file = format!(
        "writer write {}\nreader read {}\noperator operate {}\nformer write,read,operate {}\n",
        format_args!("{} never", digest(WRITER)),
        format_args!("{} never", digest(READER)),
        format_args!("{} never", digest(OPERATOR)),
        format_args!("{} 2020-01-01", digest(FORMER)),
    );
    let make = move |_: &Contents, _: Option<&TokenSet>| {
        let set = grants(&file).and_then(|read| TokenSet::new(read, per_token, &TokenSet::default()));
        set.map_err(FileError::new)
    };
    let tokens = Reloaded::load(Vec::new(), make).unwrap();
    let proxies = ["198.51.100.1".parse().unwrap()];
    Arc::new(Access::new(Admission::Holders(Arc::new(tokens)), &proxies, per_address, 10))
}

fn unlimited() -> Arc<Access> {
    access(Rates::default(), Rates::default())
}

fn connect(access: &Arc<Access>, address: [u8; 4]) -> Visitor {
    Visitor::connect(access, address.into()).unwrap()
}

/// What a request of a path hears, and who has sent it where it is let in.
fn ask(access: &Arc<Access>, path: &str, headers: &[(&str, &str)]) -> Result<Caller, Problem> {
    ask_as(&connect(access, [192, 0, 2, 1]), path, headers)
}

fn ask_as(visitor: &Visitor, path: &str, headers: &[(&str, &str)]) -> Result<Caller, Problem> {
    let mut request = Request::builder().uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let mut request = request.body(()).unwrap();
    visitor.check(&mut request)?;
    Ok(request.extensions().get::<Caller>().unwrap().clone())
}

fn header_of(problem: &Problem, name: &str) -> String {
    problem.to_json().headers()[name].to_str().unwrap().to_owned()
}

#[test]
fn each_path_needs_its_scope_and_what_is_not_known_needs_a_token() {
    let access = unlimited();
    let tokens = [None, Some(WRITER), Some(READER), Some(OPERATOR), Some(FORMER), Some(STRANGER)];
    let paths = [
        ("/livez", [200; 6]),
        ("/readyz", [200; 6]),
        ("/events", [401, 200, 403, 403, 401, 401]),
        ("/events/example.com/delivered", [401, 200, 403, 403, 401, 401]),
        ("/domains/example.com", [401, 403, 200, 403, 401, 401]),
        ("/domains", [401, 403, 200, 403, 401, 401]),
        ("/metrics", [401, 403, 403, 200, 401, 401]),
        ("/events.", [401, 200, 200, 200, 401, 401]),
        ("//events", [401, 200, 200, 200, 401, 401]),
        ("/", [401, 403, 200, 403, 401, 401]),
        ("/?domain=example.com", [401, 403, 200, 403, 401, 401]),
        ("/page/live", [401, 403, 200, 403, 401, 401]),
        ("/page", [401, 403, 200, 403, 401, 401]),
        ("/docs", [200; 6]),
        ("/docs/style.css", [200; 6]),
        ("/openapi.json", [200; 6]),
        ("/livez/", [401, 200, 200, 200, 401, 401]),
        ("/readyz/x", [401, 200, 200, 200, 401, 401]),
        ("/docs/", [401, 200, 200, 200, 401, 401]),
        ("/docs/x", [401, 200, 200, 200, 401, 401]),
        ("/openapi.json/x", [401, 200, 200, 200, 401, 401]),
        ("/eventsx/livez", [401, 200, 200, 200, 401, 401]),
    ];
    for (number, (path, expected)) in paths.into_iter().enumerate() {
        let statuses = tokens.map(|token| {
            let bearer = token.map(bearer_of);
            let headers: Vec<_> = bearer.iter().map(|bearer| ("authorization", bearer.as_str())).collect();
            // From addresses of their own, which are not refused too often.
            let visitor = connect(&access, [198, 51, 100, 1]);
            let from = format!("203.0.113.{number}");
            let headers = [headers, vec![("x-forwarded-for", from.as_str())]].concat();
            ask_as(&visitor, path, &headers).map_or_else(|problem| problem.kind.status().as_u16(), |_| 200)
        });
        assert_eq!(statuses, expected, "{path}");
    }
}

#[test]
fn a_challenge_says_what_is_missing() {
    let access = unlimited();
    let challenge = |path: &str, headers: &[(&str, &str)]| {
        let problem = ask(&access, path, headers).unwrap_err();
        (problem.kind, header_of(&problem, "www-authenticate"), problem.detail)
    };
    let (kind, challenged, _) = challenge("/events", &[]);
    assert_eq!((kind, &*challenged), (ProblemType::Unauthorized, r#"Bearer realm="catchall""#));
    for (bearer, expected) in [
        (bearer_of(FORMER), "it expired at 2020-01-01T00:00:00Z"),
        (bearer_of(STRANGER), "it is unknown"),
        (bearer_of(STRANGER).replacen('5', "6", 1), "its checksum does not match, so a character is wrong"),
        ("bearer  secret\"".into(), "a token is catchall_ and 38 letters and digits"),
    ] {
        let (kind, challenged, detail) = challenge("/events", &[("authorization", &bearer)]);
        assert_eq!(kind, ProblemType::Unauthorized);
        let error =
            format!(r#"Bearer realm="catchall", error="invalid_token", error_description="{expected}""#);
        assert_eq!((challenged, detail), (error, format!("the token is not valid: {expected}")));
    }
    let (kind, challenged, detail) = challenge("/events", &[("authorization", &bearer_of(READER))]);
    assert_eq!(kind, ProblemType::Forbidden);
    assert_eq!(challenged, r#"Bearer realm="catchall", error="insufficient_scope", scope="write""#);
    assert!(detail.contains("the scope write"), "{detail}");
}

#[test]
fn a_token_stands_in_the_one_header_that_the_standard_names() {
    let (writer, access) = (bearer_of(WRITER), unlimited());
    let token = writer.strip_prefix("Bearer ").unwrap();
    for (headers, let_in) in [
        (&[("authorization", &*writer)][..], true),
        (&[("Authorization", &format!("bEARER {token}"))], true),
        (&[("authorization", &format!("Bearer   {token} "))], true),
        (&[("authorization", token)], false),
        (&[("authorization", &format!("Basic {token}"))], false),
        (&[("authorization", &writer), ("authorization", &writer)], false),
        (&[("authorization", &format!("Bearer {token},{token}"))], false),
        (&[("x-authorization", &writer)], false),
    ] {
        assert_eq!(ask(&access, "/events", headers).is_ok(), let_in, "{headers:?}");
    }
    assert!(ask(&access, &format!("/events?access_token={token}"), &[]).is_err());
}

fn basic_of(pair: &str) -> String {
    format!("Basic {}", BASE64_STANDARD.encode(pair))
}

#[test]
fn a_browser_sends_the_token_as_a_password_and_only_to_read() {
    let (reader, access) = (Token::from_digits(READER), unlimited());
    let token = reader.expose();
    for (header, let_in) in [
        (basic_of(&format!("anybody:{token}")), true),
        (basic_of(&format!(":{token}")), true),
        (basic_of(&format!("anybody:{token}")).replacen("Basic", "bASIC", 1), true),
        (basic_of(&format!("{token}:")), false),
        (basic_of(token), false),
        (basic_of(&format!("anybody:x:{token}")), false),
        (format!("Basic anybody:{token}"), false),
        ("Basic /w==".to_owned(), false),
    ] {
        for path in ["/", "/page/script.js", "/changes", "/domains/example.com"] {
            assert_eq!(ask(&access, path, &[("authorization", &header)]).is_ok(), let_in, "{path} {header}");
        }
    }
    // A page of somebody else can make a browser send it.
    let writer = basic_of(&format!("anybody:{}", Token::from_digits(WRITER).expose()));
    for (method, let_in) in
        [("GET", true), ("HEAD", true), ("POST", false), ("PUT", false), ("DELETE", false)]
    {
        let request = Request::builder().method(method).uri("/events").header("authorization", &writer);
        let checked = connect(&access, [192, 0, 2, 1]).check(&mut request.body(()).unwrap());
        assert_eq!(checked.is_ok(), let_in, "{method}");
    }
}

#[test]
fn only_the_page_makes_a_browser_ask_for_a_password() {
    let access = unlimited();
    for (path, asks) in
        [("/", true), ("/page/style.css", false), ("/page", false), ("/domains", false), ("/x", false)]
    {
        let stranger = bearer_of(STRANGER);
        for headers in [&[][..], &[("authorization", &*stranger)]] {
            let problem = ask(&access, path, headers).unwrap_err().to_json();
            let challenges: Vec<_> = problem.headers().get_all("www-authenticate").iter().collect();
            assert!(challenges[0].to_str().unwrap().starts_with("Bearer "), "{challenges:?}");
            let basic = r#"Basic realm="catchall", charset="UTF-8""#;
            let more: &[&str] = if asks { &[basic] } else { &[] };
            assert_eq!(challenges[1..], *more, "{path}");
        }
        // A token that lacks the scope is no reason to ask for another.
        let writer = bearer_of(WRITER);
        if let Err(problem) = ask(&access, path, &[("authorization", &writer)]) {
            assert_eq!(problem.to_json().headers().get_all("www-authenticate").iter().count(), 1);
        }
    }
}

#[test]
fn a_caller_may_do_what_its_token_allows_and_a_stranger_nothing() {
    let access = unlimited();
    let may = |access: &Arc<Access>, token: Option<[u8; 32]>| {
        let bearer = token.map(bearer_of);
        let headers: Vec<_> = bearer.iter().map(|bearer| ("authorization", bearer.as_str())).collect();
        let caller = ask(access, "/readyz", &headers).unwrap();
        Scope::ALL.map(|scope| caller.may(scope))
    };
    assert_eq!(may(&access, None), [false; 3]);
    assert_eq!(may(&access, Some(STRANGER)), [false; 3]);
    assert_eq!(may(&access, Some(OPERATOR)), [false, false, true]);
    assert_eq!(may(&without_tokens(Admission::Everybody), None), [true; 3]);
    // Only who asks for this machine hears the reasons.
    let access = without_tokens(Admission::ThisMachine);
    for (host, expected) in [("localhost:9080", [true; 3]), ("evil.example", [false; 3])] {
        let caller = ask(&access, "/readyz", &[("host", host)]).unwrap();
        assert_eq!(Scope::ALL.map(|scope| caller.may(scope)), expected, "{host}");
    }
}

fn without_tokens(admission: Admission) -> Arc<Access> {
    Arc::new(Access::new(admission, &[], Rates::default(), 1))
}

#[test]
fn without_tokens_only_this_machine_is_answered_unless_all_are_let_in() {
    let access = without_tokens(Admission::ThisMachine);
    for (path, host, let_in) in [
        ("/", "localhost:8080", true),
        ("/events", "127.0.0.1:8080", true),
        ("/", "evil.example", false),
        ("/domains", "evil.example:8080", false),
        ("/metrics", "evil.example", false),
        ("/docs", "evil.example", false),
        ("/livez", "evil.example", true),
        ("/readyz", "10.0.0.7:9080", true),
        ("/livez/x", "10.0.0.7:9080", false),
    ] {
        let asked = ask(&access, path, &[("host", host)]);
        assert_eq!(asked.is_ok(), let_in, "{path} {host}");
        let Err(problem) = asked else { continue };
        assert_eq!(problem.kind, ProblemType::Forbidden);
        assert!(problem.headers.is_empty(), "{problem:?}");
        for says in ["127.0.0.1", "CATCHALL_TOKENS", "CATCHALL_OPEN=yes"] {
            assert!(problem.detail.contains(says), "{problem:?}");
        }
    }
    for access in [without_tokens(Admission::Everybody), unlimited()] {
        let writer = bearer_of(WRITER);
        assert!(ask(&access, "/events", &[("host", "evil.example"), ("authorization", &writer)]).is_ok());
    }
}

#[test]
fn failures_are_throttled_and_hold_up_nobody_with_a_token() {
    let access = unlimited();
    let failed: Vec<_> = (0..30).map(|_| ask(&access, "/events", &[]).unwrap_err()).collect();
    assert!(failed[..10].iter().all(|problem| problem.kind == ProblemType::Unauthorized));
    let last = failed.last().unwrap();
    assert_eq!(last.kind.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(header_of(last, "retry-after"), "1");
    assert!(ask(&access, "/events", &[("authorization", &bearer_of(WRITER))]).is_ok());
    // Only who has shown something has failed.
    let stranger = bearer_of(STRANGER);
    for _ in 0..30 {
        let asked = ask(&access, "/", &[]).unwrap_err();
        assert_eq!(asked.kind, ProblemType::Unauthorized);
        assert!(asked.headers.iter().any(|(_, value)| value.as_bytes().starts_with(b"Basic ")), "{asked:?}");
    }
    let guessed = ask(&access, "/", &[("authorization", &stranger)]).unwrap_err();
    assert_eq!(guessed.kind, ProblemType::TooManyRequests);
}

fn rates(requests: u32, events: u32) -> Rates {
    Rates { requests: std::num::NonZeroU32::new(requests), events: std::num::NonZeroU32::new(events) }
}

#[test]
fn neither_strangers_nor_another_holder_use_up_what_a_holder_has() {
    let (writer, reader) = (bearer_of(WRITER), bearer_of(READER));
    let [writer, reader] = [&writer, &reader].map(|bearer| [("authorization", bearer.as_str())]);
    let limited = access(Rates::default(), rates(1, 0));
    assert!(ask(&limited, "/livez", &[]).is_ok());
    for path in ["/livez", "/events"] {
        assert_eq!(ask(&limited, path, &[]).unwrap_err().kind, ProblemType::TooManyRequests);
    }
    assert!(ask(&limited, "/events", &writer).is_ok());
    // What the token is refused is not taken from the address.
    let limited = access(rates(1, 0), rates(2, 0));
    assert!(ask(&limited, "/events", &writer).is_ok());
    for _ in 0..5 {
        assert!(ask(&limited, "/events", &writer).is_err());
    }
    assert!(ask(&limited, "/domains", &reader).is_ok());
    let limited = access(rates(0, 1), rates(0, 20_000));
    let [one, other] = [("/events", &writer), ("/domains", &reader)]
        .map(|(path, headers)| ask(&limited, path, headers).unwrap());
    assert_eq!(one.take_events(10_000), Ok(()));
    assert!(one.take_events(10_000).is_err());
    assert_eq!(other.take_events(10_000), Ok(()));
}

#[test]
fn a_token_and_an_address_have_so_many_requests_and_events() {
    let one = rates(1, 1);
    let bearer = bearer_of(WRITER);
    let headers = [("authorization", bearer.as_str())];
    for access in [access(one, Rates::default()), access(Rates::default(), one)] {
        let caller = ask(&access, "/events", &headers).unwrap();
        let problem = ask(&access, "/events", &headers).unwrap_err();
        assert_eq!(problem.kind, ProblemType::TooManyRequests);
        assert_eq!(header_of(&problem, "retry-after"), "1");
        assert_eq!(caller.take_events(10_000), Ok(()));
        let problem = caller.take_events(100).unwrap_err();
        assert_eq!(problem.kind, ProblemType::TooManyRequests);
        let wait: u64 = header_of(&problem, "retry-after").parse().unwrap();
        assert!((90..=101).contains(&wait), "{wait}");
    }
}

#[test]
fn behind_a_proxy_each_client_has_limits_of_its_own() {
    let access = access(Rates::default(), rates(1, 0));
    let ask_from = |visitor: &Visitor, from: &str| ask_as(visitor, "/livez", &[("x-forwarded-for", from)]);
    let proxy = connect(&access, [198, 51, 100, 1]);
    for number in 0..200 {
        assert!(ask_from(&proxy, &format!("203.0.113.{number}")).is_ok());
    }
    assert!(ask_from(&proxy, "203.0.113.7").is_err());
    // Nobody else is believed.
    let client = connect(&access, [192, 0, 2, 1]);
    assert!(ask_from(&client, "203.0.113.201").is_ok());
    assert!(ask_from(&client, "203.0.113.202").is_err());
    // A proxy has as many connections as there are.
    let connections: Vec<_> = (0..20).map(|_| Visitor::connect(&access, [198, 51, 100, 1].into())).collect();
    assert!(connections.iter().all(Option::is_some));
}
