//! The socketmap: what mail servers are told, who gets the socket, and how connections end.

use std::fs;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixListener;

use harness::processes::{Service, run};
use harness::proxy::{Proxy, host};
use harness::scratch::Scratch;
use harness::servers::{Servers, eventually};
use harness::socketmap::{SocketmapClient, netstring};
use harness::system::{System, data_file};
use hyper::{Method, StatusCode};

const ANY_PORT: (&str, &str) = ("CATCHALL_SOCKETMAP", "127.0.0.1:0");

async fn client(service: &Service) -> SocketmapClient {
    SocketmapClient::connect(&service.socketmap_address().await).await.unwrap()
}

async fn count(system: &System, events: &str) {
    let headers = [("content-type", "application/x-ndjson")];
    let (status, _, body) =
        system.events().request(Method::POST, "/events", &headers, events.to_owned()).await;
    assert_eq!(status, StatusCode::ACCEPTED, "{body}");
}

#[tokio::test]
async fn mail_servers_are_told_what_is_known_of_a_domain() {
    for system in System::both(&[ANY_PORT]).await {
        count(
            &system,
            r#"{"domain": "all.com", "event": "delivered", "count": 1001}
               {"domain": "some.com", "event": "bounced"}
               {"domain": "few.com", "event": "delivered", "count": 1000}"#,
        )
        .await;
        let query = system.domains();
        query.answers("all.com", "catch-all", 1001, 0).await;
        query.answers("some.com", "not catch-all", 0, 1).await;
        query.answers("few.com", "unknown", 1000, 0).await;
        let cases = [
            ("status all.com", "OK catch-all"),
            ("status somebody@ALL.com", "OK catch-all"),
            ("status some.com", "OK not catch-all"),
            ("status few.com", "NOTFOUND "),
            ("status never.seen.com", "NOTFOUND "),
            ("status *", "NOTFOUND "),
            ("status \u{1}@[192.0.2.1]", "NOTFOUND "),
            ("transport all.com", "PERM there is no such map; the map is named status"),
            ("status", "PERM a request is a map, a space and a key"),
        ];
        let mut client = client(query).await;
        for (request, reply) in cases {
            assert_eq!(client.ask(request).await.as_deref(), Some(reply), "{request}");
        }
        // All at once, and the same in bytes that come one by one.
        let requests: String =
            cases.iter().cycle().take(900).map(|(request, _)| netstring(request)).collect();
        client.send(&requests).await;
        for (request, reply) in cases.iter().cycle().take(900) {
            assert_eq!(client.reply().await.as_deref(), Some(*reply), "{request}");
        }
        for byte in netstring("status all.com").into_bytes() {
            client.send([byte]).await;
            tokio::task::yield_now().await;
        }
        assert_eq!(client.reply().await.as_deref(), Some("OK catch-all"));
        let metrics = query.ops("/metrics").await.1;
        for (reply, count) in [("OK", 304), ("NOTFOUND", 404), ("PERM", 202), ("TEMP", 0)] {
            let line = format!("catchall_socketmap_requests_total{{reply=\"{reply}\"}} {count}\n");
            assert!(metrics.contains(&line), "{line}{metrics}");
        }
    }
}

#[tokio::test]
async fn what_is_no_request_ends_its_connection_and_no_other() {
    let service = System::standalone(&[ANY_PORT]).await;
    let service = service.events();
    let mut good = client(service).await;
    for garbage in ["GET / HTTP/1.1\r\n\r\n", "5000:", "99999999999999999999:", "14:status a.comXXX", "::,"] {
        let mut bad = client(service).await;
        bad.send(netstring("status a.com") + garbage).await;
        assert_eq!(bad.reply().await.as_deref(), Some("NOTFOUND "), "{garbage}");
        assert_eq!(bad.reply().await, None, "{garbage}");
        assert_eq!(good.ask("status a.com").await.as_deref(), Some("NOTFOUND "), "{garbage}");
    }
    service.logs_times("closed the connection of a client", 1).await;
}

#[tokio::test]
async fn while_the_database_is_away_mail_waits() {
    let servers = Servers::fresh().await;
    let wire = Proxy::to(host(&servers.replica_url), true).await;
    let behind = Servers { replica_url: wire.through(&servers.replica_url), ..servers.clone() };
    let query = Service::ready("query", &behind, &[ANY_PORT]).await;
    let mut client = client(&query).await;
    assert_eq!(client.ask("status a.com").await.as_deref(), Some("NOTFOUND "));
    wire.cut();
    query.becomes_unready("replica").await;
    assert_eq!(client.ask("status a.com").await.as_deref(), Some("TEMP the database cannot be read"));
    // What needs no database is answered all the same.
    assert_eq!(client.ask("status localhost").await.as_deref(), Some("NOTFOUND "));
    wire.mend();
    eventually("it is read again", async || {
        (client.ask("status a.com").await.as_deref() == Some("NOTFOUND ")).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_socket_that_a_killed_process_left_is_replaced_and_goes_at_the_end() {
    let scratch = Scratch::new();
    let path = scratch.at("socketmap");
    let address = format!("unix:{path}");
    let data = data_file();
    let mode = [("CATCHALL_SOCKETMAP", &*address), ("CATCHALL_DATA", data.to_str().unwrap())];
    let is_socket = || fs::symlink_metadata(&path).is_ok_and(|of| of.file_type().is_socket());
    let permissions = || fs::metadata(&path).unwrap().permissions().mode() & 0o777;
    {
        let service = Service::ready("standalone", &Servers::none(), &mode).await;
        assert_eq!(client(&service).await.ask("status a.com").await.as_deref(), Some("NOTFOUND "));
        assert_eq!(permissions(), 0o660);
        // Dropped, and so killed.
    }
    assert!(is_socket());
    let wider = [&mode[..], &[("CATCHALL_SOCKETMAP_MODE", "666")]].concat();
    let mut service = Service::ready("standalone", &Servers::none(), &wider).await;
    let mut client = client(&service).await;
    assert_eq!(permissions(), 0o666);
    assert_eq!(client.ask("status a.com").await.as_deref(), Some("NOTFOUND "));
    service.signal("TERM");
    assert_eq!(client.reply().await, None);
    assert!(service.ended().await.success());
    assert!(!is_socket());
}

#[tokio::test]
async fn a_socket_of_a_live_process_and_a_file_of_another_kind_are_left_alone() {
    let scratch = Scratch::new();
    let path = scratch.at("socketmap");
    let address = format!("unix:{path}");
    let run = || {
        let data = data_file();
        let variables = [
            ("CATCHALL_DATA", data.to_str().unwrap()),
            ("CATCHALL_LISTEN", "127.0.0.1:0"),
            ("CATCHALL_OPS_LISTEN", "127.0.0.1:0"),
            ("CATCHALL_SOCKETMAP", &*address),
        ];
        let (status, _, stderr) = run("standalone", &[], &variables);
        assert_eq!(status.code(), Some(1), "{stderr}");
        stderr
    };
    fs::write(&path, "something else").unwrap();
    let stderr = run();
    assert!(stderr.contains(&format!("cannot listen on {address} (CATCHALL_SOCKETMAP)")), "{stderr}");
    assert!(stderr.contains("not a socket"), "{stderr}");
    assert_eq!(fs::read_to_string(&path).unwrap(), "something else");
    fs::remove_file(&path).unwrap();
    let other = UnixListener::bind(&path).unwrap();
    assert!(run().contains("another process listens there"));
    drop(other);
    fs::remove_dir_all(scratch.path()).unwrap();
    assert!(run().contains("No such file or directory"));
}

/// Two processes of one service may have the same settings while one takes over from the other.
#[tokio::test]
async fn the_next_query_takes_the_address_when_the_last_one_leaves() {
    let scratch = Scratch::new();
    let unix = format!("unix:{}", scratch.at("socketmap"));
    let servers = Servers::fresh().await;
    for address in [&*unix, "127.0.0.1:0"] {
        let mut first = Service::ready("query", &servers, &[("CATCHALL_SOCKETMAP", address)]).await;
        let address = first.socketmap_address().await;
        let second = Service::ready("query", &servers, &[("CATCHALL_SOCKETMAP", &*address)]).await;
        second.logs("another process listens on").await;
        let mut client = SocketmapClient::connect(&address).await.unwrap();
        assert_eq!(client.ask("status a.com").await.as_deref(), Some("NOTFOUND "));
        assert!(!second.has_logged("answering mail servers"));
        first.signal("TERM");
        assert!(first.ended().await.success());
        assert_eq!(second.socketmap_address().await, address);
        let mut client = SocketmapClient::connect(&address).await.unwrap();
        assert_eq!(client.ask("status a.com").await.as_deref(), Some("NOTFOUND "));
    }
}

#[test]
fn a_network_does_not_reach_it_by_mistake() {
    for (variables, says) in [
        (
            &[("CATCHALL_SOCKETMAP", "0.0.0.0:8082")][..],
            "CATCHALL_SOCKETMAP is 0.0.0.0:8082, which other machines",
        ),
        (&[("CATCHALL_SOCKETMAP", "socketmap")], "CATCHALL_SOCKETMAP (--socketmap <ADDRESS>) is not valid"),
        (&[("CATCHALL_SOCKETMAP", "unix:socketmap")], "begins with a slash"),
        (&[("CATCHALL_SOCKETMAP_MODE", "rw")], "three octal digits"),
    ] {
        let data = data_file();
        let free = [
            ("CATCHALL_DATA", data.to_str().unwrap()),
            ("CATCHALL_LISTEN", "127.0.0.1:0"),
            ("CATCHALL_OPS_LISTEN", "127.0.0.1:0"),
        ];
        let (status, _, stderr) = run("standalone", &[], &[variables, &free[..]].concat());
        assert_eq!(status.code(), Some(2), "{stderr}");
        assert!(stderr.contains(says) && stderr.lines().count() == 1, "{stderr}");
    }
}

#[tokio::test]
async fn a_network_reaches_it_where_everybody_may_come_in() {
    let open = [("CATCHALL_SOCKETMAP", "0.0.0.0:0"), ("CATCHALL_OPEN", "yes")];
    let system = System::standalone(&open).await;
    let address = system.events().socketmap_address().await.replace("0.0.0.0", "127.0.0.1");
    let mut client = SocketmapClient::connect(&address).await.unwrap();
    assert_eq!(client.ask("status a.com").await.as_deref(), Some("NOTFOUND "));
}
