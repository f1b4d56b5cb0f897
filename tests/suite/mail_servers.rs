//! Real mail servers that ask.

use harness::access::Access;
use harness::mail::{Postfix, Rspamd};
use harness::processes::Service;
use harness::scratch::Scratch;
use harness::servers::{Servers, eventually};
use harness::system::{System, data_file};
use hyper::{Method, StatusCode};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use crate::documents::{OPERATING, blocks};

const EVENTS: &str = r#"
{"domain": "all.example.com", "event": "delivered", "count": 1001}
{"domain": "some.example.com", "event": "bounced"}"#;

/// A system in which one domain is a catch-all and another is not.
async fn with_domains(system: &System) {
    send_events(system.events()).await;
    system.domains().answers("all.example.com", "catch-all", 1001, 0).await;
    system.domains().answers("some.example.com", "not catch-all", 0, 1).await;
}

#[tokio::test]
async fn postfix_finds_what_is_known_of_a_domain() {
    let scratch = Scratch::new();
    let unix = format!("unix:{}", scratch.at("socketmap"));
    let cluster = System::cluster(&[("CATCHALL_SOCKETMAP", "127.0.0.1:0")]).await;
    let standalone = System::standalone(&[("CATCHALL_SOCKETMAP", &*unix)]).await;
    let postfix = Postfix::new("");
    for system in [cluster, standalone] {
        with_domains(&system).await;
        let address = system.domains().socketmap_address().await;
        let server = if address.starts_with("unix:") { address } else { format!("inet:{address}") };
        let table = |name: &str| format!("socketmap:{server}:{name}");
        for (key, found) in [
            ("all.example.com", Some("catch-all")),
            ("Somebody@ALL.example.com", Some("catch-all")),
            ("some.example.com", Some("not catch-all")),
            ("never.seen.example.com", None),
            ("localhost", None),
            ("192.0.2.1", None),
        ] {
            assert_eq!(postfix.look_up(key, &table("status")), (found.map(str::to_owned), String::new()));
        }
        let action = "{{catch-all = REJECT it takes everything}}";
        let acts = format!("pipemap:{{{},inline:{action}}}", table("status"));
        let rejected = (Some("REJECT it takes everything".into()), String::new());
        assert_eq!(postfix.look_up("me@all.example.com", &acts), rejected);
        assert_eq!(postfix.look_up("me@some.example.com", &acts), (None, String::new()));
        let acts = format!("pipemap:{{{},regexp:{{{{/^not catch-all$/ OK}}}}}}", table("status"));
        assert_eq!(postfix.look_up("me@some.example.com", &acts), (Some("OK".into()), String::new()));
        assert_eq!(postfix.look_up("me@all.example.com", &acts), (None, String::new()));
        let (found, says) = postfix.look_up("all.example.com", &table("transport"));
        assert!(found.is_none() && says.contains("permanent error: there is no such map"), "{says}");
    }
}

async fn send_events(service: &Service) {
    let bearer = service.access().bearer.as_deref();
    let mut headers = vec![("content-type", "application/x-ndjson")];
    headers.extend(bearer.map(|bearer| ("authorization", bearer)));
    let (status, _, body) = service.request(Method::POST, "/events", &headers, EVENTS).await;
    assert_eq!(status, StatusCode::ACCEPTED, "{body}");
}

/// The one block of a language in the page for operators, with another address in it.
fn documented(language: &str, shown: &str, address: &str) -> String {
    let [block] = blocks(OPERATING, language)[..] else { panic!("one block of {language}") };
    assert!(block.contains(shown), "{block}");
    block.replace(shown, address)
}

/// What an SMTP server answers to a recipient.
async fn recipient(smtp: &mut BufReader<TcpStream>, address: &str) -> String {
    let command = format!("RCPT TO:<{address}>\r\n");
    smtp.get_mut().write_all(command.as_bytes()).await.unwrap();
    line(smtp).await
}

async fn line(smtp: &mut BufReader<TcpStream>) -> String {
    let mut line = String::new();
    smtp.read_line(&mut line).await.unwrap();
    line.trim_end().to_owned()
}

#[tokio::test]
async fn postfix_decides_about_recipients_by_it() {
    let system = System::standalone(&[("CATCHALL_SOCKETMAP", "127.0.0.1:0")]).await;
    with_domains(&system).await;
    let address = system.domains().socketmap_address().await;
    let restrictions = documented("postfix", "127.0.0.1:8082", &address);
    let postfix = Postfix::new(&format!("{},\n    reject", restrictions.trim_end()));
    let Some(smtpd) = postfix.serve().await else { return };
    let mut smtp = BufReader::new(TcpStream::connect(&smtpd.address).await.unwrap());
    assert!(line(&mut smtp).await.starts_with("220 "), "{}", postfix.log());
    for command in ["HELO client.test\r\n", "MAIL FROM:<me@client.test>\r\n"] {
        smtp.get_mut().write_all(command.as_bytes()).await.unwrap();
        assert!(line(&mut smtp).await.starts_with("250 "), "{}", postfix.log());
    }
    for (to, answer) in [
        (
            "me@all.example.com",
            "550 5.7.1 <me@all.example.com>: Recipient address rejected: it takes everything",
        ),
        // What comes after it decides.
        ("me@some.example.com", "554 5.7.1 <me@some.example.com>: Recipient address rejected: Access denied"),
        ("me@seen.example.com", "554 5.7.1 <me@seen.example.com>: Recipient address rejected: Access denied"),
    ] {
        assert_eq!(recipient(&mut smtp, to).await, answer, "{}", postfix.log());
    }
    // While nobody answers, the sender is asked to try again.
    drop(system);
    let answer = eventually("the connection to the socketmap has ended", async || {
        let answer = recipient(&mut smtp, "me@all.example.com").await;
        (!answer.starts_with("550")).then_some(answer)
    })
    .await;
    assert!(answer.starts_with("451 4.3."), "{answer}: {}", postfix.log());
}

/// Waits until Rspamd finds this in a mail.
async fn finds(rspamd: &Rspamd, recipient: &str, symbols: &[&str]) {
    let mut last = Vec::new();
    let what = format!("Rspamd finds {symbols:?} in a mail to {recipient}");
    eventually(&what, async || {
        last = rspamd.symbols(recipient).await;
        (last == symbols).then_some(())
    })
    .await;
}

/// What Rspamd finds changes with what is known, and maps that have not changed are not sent again.
async fn rspamd_reads_the_maps(system: System) {
    let rule = documented("rspamd", "127.0.0.1:8081", &system.domains().address());
    let opposite = rule.replace("CATCH_ALL", "NOT_CATCH_ALL").replace("rspamd/", "rspamd/not-");
    // Both maps are empty when it starts.
    let rspamd = Rspamd::start(&[rule, opposite].concat()).await;
    let finds = async |recipient: &str, symbols: &[&str]| finds(&rspamd, recipient, symbols).await;
    finds("me@all.example.com", &[]).await;
    with_domains(&system).await;
    finds("me@all.example.com", &["CATCH_ALL"]).await;
    finds("me@some.example.com", &["NOT_CATCH_ALL"]).await;
    finds("me@never.seen.example.com", &[]).await;
    let not_modified = async || rspamd.log().contains("data is not modified").then_some(());
    eventually("Rspamd is told that a map has not changed", not_modified).await;
    assert_eq!(system.events().put("/events/all.example.com/bounced").await, StatusCode::ACCEPTED);
    finds("me@all.example.com", &["NOT_CATCH_ALL"]).await;
    for problem in ["lost connection", "error reading", "cannot load"] {
        assert!(!rspamd.log().contains(problem), "{}", rspamd.log());
    }
}

#[tokio::test]
async fn rspamd_reads_the_maps_of_the_standalone() {
    rspamd_reads_the_maps(System::standalone(&[]).await).await;
}

#[tokio::test]
async fn rspamd_reads_the_maps_of_query() {
    rspamd_reads_the_maps(System::cluster(&[]).await).await;
}

#[tokio::test]
async fn rspamd_shows_a_token_as_the_password_of_an_address() {
    let (data, access) = (data_file(), Access::by_token());
    let token = access.bearer.clone().unwrap().replacen("Bearer ", "", 1);
    let variables = [("CATCHALL_DATA", data.to_str().unwrap())];
    let service = Service::guarded("standalone", &Servers::none(), &variables, access).await;
    send_events(&service).await;
    let with_token = documented("rspamd", "127.0.0.1:8081", &format!("rspamd:{token}@{}", service.address()));
    let rspamd = Rspamd::start(&with_token).await;
    finds(&rspamd, "me@all.example.com", &["CATCH_ALL"]).await;
}
