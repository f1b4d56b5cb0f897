//! The page, in a browser: looked at, written into, left open, without scripts, and by those who may not.

mod accessibility;

use std::fs;
use std::path::{Path, PathBuf};

use harness::access::Access;
use harness::browser::{Browser, Tab};
use harness::processes::Service;
use harness::proxy::{Proxy, host};
use harness::servers::{Servers, eventually};
use harness::system::{System, data_file};
use hyper::{Method, StatusCode, header};
use serde_json::{Value, json};

/// Domains that the tests look up: a catch-all, none, and one that is unknown.
const CATCH_ALL: &str = "example.com";
const NOT_CATCH_ALL: &str = "bounces.example.org";
const UNKNOWN: &str = "xn--mller-kva.example";

async fn send(system: &System, events: Value) {
    system.events().post_events(&events).await;
}

async fn with_domains(system: &System) {
    let events = json!([
        {"domain": CATCH_ALL, "event": "delivered", "count": 1234},
        {"domain": NOT_CATCH_ALL, "event": "delivered", "count": 70},
        {"domain": NOT_CATCH_ALL, "event": "bounced", "count": 2},
        {"domain": UNKNOWN, "event": "delivered", "count": 7},
    ]);
    send(system, events).await;
    system.domains().answers(CATCH_ALL, "catch-all", 1234, 0).await;
    system.domains().answers(NOT_CATCH_ALL, "not catch-all", 70, 2).await;
    system.domains().answers(UNKNOWN, "unknown", 7, 0).await;
}

/// Checks that the tab asked for nothing elsewhere, and that its console has nothing but failed pages with
/// these statuses.
fn is_clean(tab: &Tab<'_>, service: &Service, statuses: &[&str]) {
    let elsewhere: Vec<_> =
        tab.requests().into_iter().filter(|url| !url.starts_with(&format!("{}/", service.url()))).collect();
    assert_eq!(elsewhere, ["about:blank"; 0]);
    let is_told =
        |line: &String| statuses.iter().any(|status| line.contains(&format!("status of {status} ")));
    let console: Vec<_> = tab.console().into_iter().filter(|line| !is_told(line)).collect();
    assert_eq!(console, [""; 0]);
}

/// What has the focus, as its tag and its text.
async fn focused(tab: &Tab<'_>) -> String {
    let focused = "(e => e.tagName + ' ' + (e.id || e.innerText))(document.activeElement)";
    tab.evaluate(focused).await.as_str().unwrap().to_owned()
}

/// Writes a domain into the field, as with a keyboard, and looks it up.
async fn look_up(tab: &Tab<'_>, domain: &str) {
    tab.evaluate("document.getElementById('domain').select()").await;
    if domain.is_empty() {
        tab.evaluate("document.getElementById('domain').value = ''").await;
    }
    tab.write(domain).await;
    tab.submit().await;
}

#[tokio::test]
async fn a_look_up_tells_the_status_and_why_with_scripts_and_without() {
    let browser = Browser::start();
    for system in System::both(&[]).await {
        with_domains(&system).await;
        let service = system.domains();
        // The look-ups take longer than the minute on a slow machine.
        let told = "1,313 events in the last minute, 1,313 in the last hour.";
        let page = async || Some(service.request(Method::GET, "/", &[], "").await.2);
        eventually("they are told", async || page().await.filter(|page| page.contains(told))).await;
        for scripts in [true, false] {
            let tab = browser.tab().await;
            if !scripts {
                tab.without_scripts().await;
            }
            tab.open(&format!("{}/", service.url())).await;
            // Whoever has no mouse reaches the field and the button first.
            for expected in ["A catchall", "INPUT domain", "BUTTON Look up", "SUMMARY The same as a table"] {
                tab.press("Tab").await;
                assert_eq!(focused(&tab).await, expected);
            }
            looks_up_all(&tab, system.is_standalone()).await;
            tab.shows("#state", if scripts { "Live: " } else { "As of " }).await;
            is_clean(&tab, service, &["400"]);
        }
    }
}

async fn looks_up_all(tab: &Tab<'_>, standalone: bool) {
    let fresh = if standalone { "As of now." } else { "Read from the replica" };
    for (written, verdict, reason) in [
        (
            "Example.COM.",
            "example.com is a catch-all",
            "1,234 messages were delivered, more than 1,000, and none bounced.",
        ),
        (
            NOT_CATCH_ALL,
            "bounces.example.org is not a catch-all",
            "70 messages were delivered, and 2 bounced. One bounce is enough.",
        ),
        (
            "MÜLLER.example",
            "xn--mller-kva.example is unknown so far",
            "7 messages were delivered and none bounced. A catch-all needs more than 1,000 delivered messages.",
        ),
        (
            "never.seen.example",
            "never.seen.example is unknown so far",
            "No message to this domain was reported.",
        ),
    ] {
        look_up(tab, written).await;
        assert_eq!(tab.text("#answer").await, verdict);
        let answer = tab.text(".answer").await;
        assert!(answer.contains(reason) && answer.contains(fresh), "{answer}");
        assert_eq!(answer.contains("\n\nSince "), !verdict.contains("unknown"), "{answer}");
        assert_eq!(answer.contains("it is written müller.example"), written.starts_with('M'), "{answer}");
        assert!(tab.evaluate("document.title").await.as_str().unwrap().starts_with(verdict));
    }
    for (written, reason) in [
        ("", "Write a domain name, as in example.com."),
        ("localhost", "This is not a domain name: a domain name has at least two labels, as in example.com."),
        ("192.0.2.1", "This is not a domain name: an IP address is not a domain name."),
        (
            "<b>\"'</b>.com",
            "This is not a domain name: a domain name has only letters, digits and inner hyphens.",
        ),
    ] {
        look_up(tab, written).await;
        assert_eq!(tab.text("#domain-error").await, reason);
        assert_eq!(tab.text(".answer").await, "");
        // The reader is where it can be corrected, and hears why.
        assert_eq!(focused(tab).await, "INPUT domain");
        let field =
            "(e => [e.value, e.ariaInvalid, e.getAttribute('aria-describedby')])(document.activeElement)";
        assert_eq!(tab.evaluate(field).await, json!([written, "true", "domain-error domain-hint"]));
    }
    look_up(tab, CATCH_ALL).await;
    assert!(tab.text("#totals").await.contains("catch-all\n1\n"), "{}", tab.text("#totals").await);
    let chart = tab.text("#chart").await;
    assert!(chart.contains(" in the last minute, 1,313 in the last hour."), "{chart}");
    assert_eq!(tab.evaluate("document.querySelectorAll('svg g').length").await, 30);
    assert_eq!(tab.evaluate("document.querySelectorAll('#minutes tr').length").await, 30);
    assert_eq!(tab.evaluate("document.querySelectorAll('#changes li').length").await, 2);
}

#[tokio::test]
async fn what_changes_appears_while_somebody_looks() {
    let browser = Browser::start();
    for system in System::both(&[]).await {
        let (service, tab) = (system.domains(), browser.tab().await);
        tab.open(&format!("{}/", service.url())).await;
        tab.shows("#state", "Live").await;
        tab.shows("#none", "No domain has changed its status yet.").await;
        assert!(tab.text("#chart").await.contains("No event was counted"));
        with_domains(&system).await;
        tab.shows("#changes", "1,234 delivered, 0 bounced").await;
        tab.shows("#announcement", " is now ").await;
        assert_eq!(tab.evaluate("document.getElementById('none').hidden").await, true);
        // What the script writes is what the service would have written.
        let list = "[...document.querySelectorAll('#changes li')].map(e => e.innerText + e.innerHTML).sort()";
        let written = tab.evaluate(&format!("{list}.join('\\n')")).await;
        tab.shows("#totals", "By 1,311 delivered messages and 2 bounces").await;
        tab.shows("#chart", "1,313 events in the last minute").await;
        let other = browser.tab().await;
        other.without_scripts().await;
        other.open(&format!("{}/", service.url())).await;
        assert_eq!(other.evaluate(&format!("{list}.join('\\n')")).await, written);
        // A domain is in the list once, at its latest change.
        assert_eq!(system.events().put(&format!("/events/{CATCH_ALL}/bounced")).await, StatusCode::ACCEPTED);
        tab.shows("#changes li", "1,234 delivered, 1 bounced").await;
        tab.shows("#announcement", "example.com is now not catch-all.").await;
        let listed = async || tab.evaluate("document.querySelectorAll('#changes li').length").await;
        assert_eq!(listed().await, 2);
        is_clean(&tab, service, &[]);
        // A flood leaves the last twenty.
        let flood = (0..500).map(|number| json!({"domain": format!("f{number}.com"), "event": "bounced"}));
        send(&system, flood.collect()).await;
        tab.shows("#totals", "and 503 bounces").await;
        eventually("the last twenty are shown", async || (listed().await == 20).then_some(())).await;
        is_clean(&tab, service, &[]);
        finds_what_the_policy_forbids(&tab).await;
    }
}

/// Checks that the console would tell what the policy forbids.
async fn finds_what_the_policy_forbids(tab: &Tab<'_>) {
    for (element, found) in [("style", 1), ("script", 2)] {
        tab.evaluate(&format!(
            "document.head.append(Object.assign(document.createElement('{element}'), {{textContent: 'x'}}))"
        ))
        .await;
        eventually(&format!("an inline {element} is refused"), async || {
            let lines = tab.console();
            let told = lines.iter().filter(|line| line.contains("Content Security Policy")).count();
            (told >= found).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn a_page_that_lost_its_service_finds_it_again() {
    let (browser, system) = (Browser::start(), System::standalone(&[]).await);
    let wire = Proxy::to(&system.domains().address(), true).await;
    let tab = browser.tab().await;
    tab.open(&format!("http://{}/", wire.address)).await;
    tab.shows("#state", "Live").await;
    tab.evaluate("document.querySelector('details').open = true").await;
    wire.cut();
    tab.shows("#state", "Not live").await;
    with_domains(&system).await;
    wire.mend();
    tab.shows("#state", "Live").await;
    tab.shows("#changes", NOT_CATCH_ALL).await;
    assert_eq!(tab.evaluate("document.querySelector('details').open").await, true);
}

#[tokio::test]
async fn the_page_is_its_own_and_is_not_kept() {
    for system in System::both(&[]).await {
        let service = system.domains();
        let (status, headers, page) = service.request(Method::GET, "/", &[], "").await;
        assert_eq!(status, StatusCode::OK);
        assert_eq!(headers[header::CACHE_CONTROL], "no-cache");
        assert_eq!(
            headers[header::CONTENT_SECURITY_POLICY],
            "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self'; \
                base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
        );
        for word in ["<style", " style=", " on", "javascript:", "http:", "https:", "//"] {
            assert!(!page.contains(&format!("<a{word}")) && !page.contains(&format!("\"{word}")), "{word}");
        }
        let mut files = 0;
        for target in page.split([' ', '>']).filter_map(|word| {
            word.strip_prefix("href=\"")
                .or(word.strip_prefix("src=\""))
                .and_then(|rest| rest.strip_suffix('"'))
        }) {
            let (status, headers, _) = service.request(Method::GET, target, &[], "").await;
            assert_eq!(status, StatusCode::OK, "{target}");
            let Some(etag) = headers.get(header::ETAG).filter(|_| target.starts_with("/page/")) else {
                continue;
            };
            let again = [("if-none-match", etag.to_str().unwrap())];
            let (status, _, body) = service.request(Method::GET, target, &again, "").await;
            assert_eq!((status, &*body), (StatusCode::NOT_MODIFIED, ""), "{target}");
            files += 1;
        }
        assert_eq!(files, 3);
        for (path, reason) in [
            ("/?domain=a.com&domain=b.com", "the parameter domain is not valid: it is given more than once"),
            ("/?x=%3Cb%3E", "there is no parameter &quot;x&quot; here"),
        ] {
            let (status, _, page) = service.request(Method::GET, path, &[], "").await;
            assert_eq!(status, StatusCode::BAD_REQUEST);
            assert!(page.contains(reason), "{page}");
        }
    }
}

#[tokio::test]
async fn a_browser_asks_for_the_token_and_sends_it_with_all_that_it_reads() {
    let (browser, access) = (Browser::start(), Access::by_token());
    let data = data_file();
    let variables = [("CATCHALL_DATA", data.to_str().unwrap())];
    let bearer = access.bearer.clone().unwrap();
    let service = Service::guarded("standalone", &Servers::none(), &variables, access).await;
    let (status, headers, _) = service.request(Method::GET, "/", &[], "").await;
    let challenges: Vec<_> = headers.get_all(header::WWW_AUTHENTICATE).iter().collect();
    assert_eq!(status, StatusCode::UNAUTHORIZED);
    assert_eq!(challenges, [r#"Bearer realm="catchall""#, r#"Basic realm="catchall", charset="UTF-8""#]);
    let tab = browser.tab().await;
    let token = bearer.strip_prefix("Bearer ").unwrap();
    // The browser keeps what it was told in the place of an answer to its question.
    tab.open(&format!("http://anybody:{token}@{}/", service.address())).await;
    tab.open(&format!("{}/", service.url())).await;
    tab.shows("#state", "Live").await;
    let sent = [("authorization", &*bearer)];
    let put = service.request(Method::PUT, "/events/example.com/bounced", &sent, "").await;
    assert_eq!(put.0, StatusCode::ACCEPTED);
    tab.shows("#changes", CATCH_ALL).await;
    look_up(&tab, CATCH_ALL).await;
    assert_eq!(tab.text("#answer").await, "example.com is not a catch-all");
    // Also for a page of somebody else, which may make it send anything. So it is good for reading only.
    let write = "fetch('/events/example.com/bounced', {method: 'PUT'}).then(answer => answer.status)";
    assert_eq!(tab.evaluate(write).await, 401);
}

#[tokio::test]
async fn what_cannot_be_read_is_a_sentence_on_the_page() {
    let servers = Servers::fresh().await;
    let wire = Proxy::to(host(&servers.replica_url), false).await;
    let behind = Servers { replica_url: wire.through(&servers.replica_url), ..servers.clone() };
    let query = Service::start("query", &behind, &[]).await;
    let get = async |path: &str| {
        let (status, headers, page) = query.request(Method::GET, path, &[], "").await;
        assert_eq!(headers[header::CONTENT_TYPE], "text/html; charset=utf-8");
        (status, headers.contains_key(header::RETRY_AFTER), page)
    };
    for (path, sentence) in [
        ("/", "The totals cannot be read now"),
        ("/?domain=a.com", "a.com cannot be looked up now"),
        ("/page/live", "The totals cannot be read now"),
    ] {
        let (status, says_when, page) = get(path).await;
        assert_eq!((status, says_when), (StatusCode::SERVICE_UNAVAILABLE, true), "{path}");
        assert!(page.contains(sentence) && !page.contains("127.0.0.1"), "{page}");
    }
    let browser = Browser::start();
    let tab = browser.tab().await;
    tab.open(&format!("{}/?domain=a.com", query.url())).await;
    assert_eq!(tab.text("#answer").await, "a.com cannot be looked up now");
    is_clean(&tab, &query, &["503"]);
    wire.mend();
    query.becomes_ready().await;
    // The page that was open goes on by itself.
    tab.shows("#state", "Live").await;
    assert_eq!(get("/").await.0, StatusCode::OK);
}

/// Makes the pictures of the documents, where that is asked for: else the documents would change with each
/// test.
#[tokio::test]
async fn the_pictures_of_the_documents_are_of_this_page() {
    let browser = Browser::start();
    let system = System::cluster(&[]).await;
    let picture =
        |scheme: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("docs/images/page-{scheme}.png"));
    let wanted = std::env::var_os("CATCHALL_SCREENSHOTS").is_some();
    system.servers.execute(MINUTES).await;
    for (number, name) in ["harbour", "lantern", "orchard", "tulip"].into_iter().enumerate() {
        let domain = format!("{name}.example");
        let mut events = vec![json!({"domain": domain, "event": "delivered", "count": 1_011 + 17 * number})];
        if number % 2 == 1 {
            events.push(json!({"domain": domain, "event": "bounced", "count": number}));
        }
        send(&system, events.into()).await;
    }
    with_domains(&system).await;
    let tab = browser.tab().await;
    for scheme in ["light", "dark"] {
        tab.look(880, 1420, scheme).await;
        tab.open(&format!("{}/?domain=example.com", system.domains().url())).await;
        tab.shows("#state", "Live").await;
        tab.shows("#changes", "lantern.example").await;
        let file: PathBuf =
            if wanted { picture(scheme) } else { harness::system::directory().join("page.png") };
        tab.picture(&file).await;
        let bytes = fs::read(&file).unwrap();
        assert!(bytes.starts_with(b"\x89PNG") && bytes.len() > 10_000, "{}", bytes.len());
        assert!(picture(scheme).exists(), "CATCHALL_SCREENSHOTS=yes ./dev test --test suite page:: makes it");
    }
}

/// Some minutes of a busy past.
const MINUTES: &str = "\
insert into totals (counted_at, writer, delivered, bounced)
select date_trunc('minute', now()) - make_interval(mins => ago), gen_random_uuid(),
    3900 + ago * 7919 % 2200, 120 + ago * 104729 % 290
from generate_series(1, 29) as ago;
update totals set delivered = 9048211, bounced = 70219, domains = 48213, catch_all = 512, not_catch_all = 9027
where counted_at = 'epoch'";
