//! TLS to the broker and to the databases: who is believed, and what is said about the others.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use harness::authority::{Authority, Certificate};
use harness::processes::{LONG_DEADLINE, Service, run};
use harness::proxy::host;
use harness::servers::Servers;
use harness::system::{data_file, directory};
use hyper::{Method, StatusCode};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

/// A file of the throw-away authority that `./dev` has made for the servers.
fn file(name: &str) -> String {
    let directory = std::env::var("CATCHALL_TEST_TLS").expect("./dev test sets it");
    format!("{directory}/{name}")
}

/// The servers of a test, reached by TLS that verifies everything.
fn secured(servers: &Servers) -> Servers {
    let amqp = servers.amqp_url.replace("amqp://", "amqps://");
    let port = fs::read_to_string(file("amqps")).unwrap();
    let database = |url: &str| {
        let url = url.replace("127.0.0.1", "localhost");
        format!("{url}?sslmode=verify-full&sslrootcert={}", file("ca.pem"))
    };
    Servers {
        amqp_url: amqp.replace(host(&servers.amqp_url), &format!("localhost:{}", port.trim())),
        database_url: database(&servers.database_url),
        replica_url: database(&servers.replica_url),
        ..servers.clone()
    }
}

#[tokio::test]
async fn an_event_goes_all_the_way_by_tls() {
    let servers = Servers::fresh().await;
    let (secured, ca) = (secured(&servers), file("ca.pem"));
    let ca = [LONG_DEADLINE, ("CATCHALL_AMQP_CA", &*ca)];
    let ingest = Service::ready("ingest", &secured, &ca).await;
    let _worker = Service::ready("worker", &secured, &ca).await;
    let query = Service::ready("query", &secured, &[]).await;
    assert_eq!(ingest.put("/events/example.com/bounced").await, StatusCode::ACCEPTED);
    query.answers("example.com", "not catch-all", 0, 1).await;
    let encrypted = "select count(*) from pg_stat_ssl join pg_stat_activity using (pid)
        where ssl and datname = current_database() and application_name like 'catchall-worker%'";
    assert!(servers.number(encrypted).await > 0);
}

#[tokio::test]
async fn a_certificate_takes_the_place_of_user_and_password() {
    let servers = Servers::fresh().await;
    servers.management(Method::PUT, "/api/users/certified", r#"{"password_hash": "", "tags": ""}"#).await;
    let path = format!("/api/permissions/{}/certified", servers.name);
    servers.management(Method::PUT, &path, r#"{"configure": "^$", "write": ".*", "read": ".*"}"#).await;
    let mut secured = secured(&servers);
    let (_, address) = secured.amqp_url.split_once('@').unwrap();
    secured.amqp_url = format!("amqps://{address}");
    let files = ["ca.pem", "client.pem", "client.key"].map(file);
    let [ca, cert, key] = &files;
    let variables = [
        LONG_DEADLINE,
        ("CATCHALL_AMQP_CA", &**ca),
        ("CATCHALL_AMQP_CERT", &**cert),
        ("CATCHALL_AMQP_KEY", &**key),
    ];
    let ingest = Service::ready("ingest", &secured, &variables).await;
    assert_eq!(ingest.put("/events/example.com/bounced").await, StatusCode::ACCEPTED);
    // Without it, the broker knows nobody of that name.
    let stranger = Service::start("ingest", &secured, &variables[..2]).await;
    stranger.becomes_unready("broker: ").await;
}

#[tokio::test]
async fn files_that_are_replaced_count_for_the_next_connection() {
    let secured = secured(&Servers::fresh().await);
    let directory = directory();
    let own = ["ca.pem", "client.pem", "client.key"].map(|name| directory.join(name));
    // An authority that the broker's certificate is not from, and a certificate that the broker does not trust.
    let foreign = Authority::default();
    let client = foreign.certificate(&["localhost"]);
    fs::write(&own[0], foreign.pem()).unwrap();
    let (cert, key) = client.write(&directory);
    fs::rename(cert, &own[1]).unwrap();
    fs::rename(key, &own[2]).unwrap();
    let [ca, cert, key] = own.each_ref().map(|path| path.to_str().unwrap());
    let variables =
        [LONG_DEADLINE, ("CATCHALL_AMQP_CA", ca), ("CATCHALL_AMQP_CERT", cert), ("CATCHALL_AMQP_KEY", key)];
    let ingest = Service::start("ingest", &secured, &variables).await;
    ingest.becomes_unready("not signed by a trusted authority").await;
    fs::copy(file("ca.pem"), ca).unwrap();
    ingest.becomes_unready("UnknownCA").await;
    fs::copy(file("client.pem"), cert).unwrap();
    fs::copy(file("client.key"), key).unwrap();
    ingest.becomes_ready().await;
    assert_eq!(ingest.put("/events/example.com/bounced").await, StatusCode::ACCEPTED);
}

/// A server that is not what it should be.
#[derive(Clone, Copy, Debug)]
enum Protocol {
    Amqp,
    Postgres,
}

impl Protocol {
    /// Begins a connection as a server does that has TLS, or has none.
    async fn begin(self, stream: &mut TcpStream, has_tls: bool) -> std::io::Result<()> {
        match (self, has_tls) {
            (Self::Amqp, true) => Ok(()),
            (Self::Amqp, false) => stream.write_all(b"AMQP\x00\x00\x09\x01").await,
            (Self::Postgres, _) => {
                // The request for TLS.
                stream.read_exact(&mut [0; 8]).await?;
                stream.write_all(if has_tls { b"S" } else { b"N" }).await
            }
        }
    }
}

/// Where a server listens that shows this certificate, or speaks no TLS.
async fn impostor(protocol: Protocol, certificate: Option<&Certificate>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let tls = certificate.map(|Certificate { cert, key }| {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![CertificateDer::from_pem_slice(cert.as_bytes()).unwrap()],
                PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
            );
        TlsAcceptor::from(Arc::new(config.unwrap()))
    });
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let tls = tls.clone();
            tokio::spawn(async move {
                protocol.begin(&mut stream, tls.is_some()).await?;
                match tls {
                    Some(tls) => drop(tls.accept(stream).await?),
                    None => drop(stream.read(&mut [0; 1024]).await?),
                }
                std::io::Result::Ok(())
            });
        }
    });
    port
}

#[tokio::test]
async fn what_is_wrong_with_a_server_is_said_in_a_sentence() {
    let (authority, foreign) = (Authority::default(), Authority::default());
    let ca: PathBuf = directory().join("ca.pem");
    fs::write(&ca, authority.pem()).unwrap();
    let ca = ca.to_str().unwrap();
    for (certificate, reason) in [
        (Some(foreign.certificate(&["localhost"])), "not signed by a trusted authority"),
        (Some(authority.certificate(&["example.com"])), "its certificate is for another name"),
        (Some(authority.expired(&["localhost"])), "its certificate has expired"),
        (None, "TLS"),
    ] {
        for (protocol, program) in [(Protocol::Amqp, "ingest"), (Protocol::Postgres, "query")] {
            let port = impostor(protocol, certificate.as_ref()).await;
            let mut servers = Servers::none();
            servers.amqp_url = format!("amqps://alice:s3cret@localhost:{port}/x");
            servers.replica_url =
                format!("postgres://alice:s3cret@localhost:{port}/x?sslmode=verify-full&sslrootcert={ca}");
            let service = Service::start(program, &servers, &[("CATCHALL_AMQP_CA", ca)]).await;
            service.becomes_unready(reason).await;
            service.logs(reason).await;
            assert!(!service.log().concat().contains("s3cret"), "{:?}", service.log());
        }
    }
}

#[test]
fn a_url_that_protects_nothing_is_refused_unless_the_network_is_trusted() {
    let data = data_file();
    let postgres = "postgres://alice:s3cret@nowhere.invalid/x";
    for (program, command, variable, url) in [
        ("ingest", &[][..], "CATCHALL_AMQP_URL", "amqp://alice:s3cret@nowhere.invalid/x"),
        ("worker", &[], "CATCHALL_AMQP_URL", "amqp://alice:s3cret@nowhere.invalid/x"),
        ("dead", &["count"], "CATCHALL_AMQP_URL", "amqp://alice:s3cret@nowhere.invalid/x"),
        ("worker", &[], "CATCHALL_DATABASE_URL", postgres),
        ("dead", &["replay", "--all"], "CATCHALL_DATABASE_URL", postgres),
        ("migrate", &[], "CATCHALL_DATABASE_URL", postgres),
        ("admin", &["audit"], "CATCHALL_DATABASE_URL", postgres),
        ("standalone", &["move"], "CATCHALL_DATABASE_URL", postgres),
        ("query", &[], "CATCHALL_REPLICA_URL", postgres),
    ] {
        let weak = ["disable", "allow", "prefer", "require", "verify-ca"];
        let weak = weak.map(|mode| format!("{url}?sslmode={mode}"));
        let weak = if url.starts_with("amqp") { &[][..] } else { &weak };
        for url in weak.iter().map(|url| &**url).chain([url]) {
            let mut variables = vec![
                ("CATCHALL_AMQP_URL", "amqp://127.0.0.1:1"),
                ("CATCHALL_DATABASE_URL", "postgres://127.0.0.1:1/x"),
                ("CATCHALL_DATA", data.to_str().unwrap()),
            ];
            // The tool for what is counted is given one of its two places.
            variables.retain(|(name, _)| *name != variable && (program, *name) != ("admin", "CATCHALL_DATA"));
            variables.push((variable, url));
            let (status, _, stderr) = run(program, command, &variables);
            assert_eq!(status.code(), Some(2), "{program} {url}: {stderr}");
            let says = format!("{variable} leads to another machine, and anyone on the network path");
            assert!(stderr.contains(&says) && stderr.contains("CATCHALL_TRUSTED_NETWORK=yes"), "{stderr}");
            assert!(!stderr.contains("s3cret") && stderr.lines().count() == 1, "{stderr}");
        }
    }
    for (program, command) in [("ingest", &[][..]), ("dead", &["count"])] {
        let plain = [("CATCHALL_AMQP_URL", "amqp://127.0.0.1:1"), ("CATCHALL_AMQP_CA", "/nowhere/ca.pem")];
        let (status, _, stderr) = run(program, command, &plain);
        assert_eq!(status.code(), Some(2), "{stderr}");
        assert!(stderr.contains("CATCHALL_AMQP_URL begins with amqp://: write amqps://"), "{stderr}");
    }
    let trusted = [("CATCHALL_DATABASE_URL", postgres), ("CATCHALL_TRUSTED_NETWORK", "yes")];
    let (status, _, stderr) = run("migrate", &[], &trusted);
    assert_eq!(status.code(), Some(1), "{stderr}");
    assert!(stderr.starts_with("catchall-migrate: postgres://nowhere.invalid:5432/x: "), "{stderr}");
}
