//! TLS of the listeners.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use harness::authority::{Authority, Certificate};
use harness::processes::{LONG_DEADLINE, Service, run};
use harness::servers::{Servers, eventually};
use harness::system::{data_file, directory};
use harness::tls::{HttpsConnection, TlsClient};
use http_body_util::Full;
use hyper::{Request, StatusCode, Version};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

const PROTOCOLS: [&str; 2] = ["h2", "http/1.1"];

/// A standalone that speaks TLS, and the files with its certificate.
struct Served {
    service: Service,
    directory: PathBuf,
}

impl Served {
    async fn with(certificate: &Certificate, more: &[(&str, &str)]) -> Self {
        let directory = directory();
        let (cert, key) = certificate.write(&directory);
        let data = data_file();
        let variables = [
            LONG_DEADLINE,
            ("CATCHALL_DATA", data.to_str().unwrap()),
            ("CATCHALL_TLS_CERT", cert.to_str().unwrap()),
            ("CATCHALL_TLS_KEY", key.to_str().unwrap()),
        ];
        let service = Service::start("standalone", &Servers::none(), &[&variables[..], more].concat()).await;
        Self { service, directory }
    }
}

fn put(connection: &str) -> Request<Full<hyper::body::Bytes>> {
    // An absolute URI, as HTTP/2 needs it.
    let uri = format!("https://{connection}/events/example.com/delivered");
    Request::put(uri).body(Full::default()).unwrap()
}

#[tokio::test]
async fn clients_choose_between_both_protocols_and_the_operations_port_speaks_tls_too() {
    let authority = Authority::default();
    let served = Served::with(&authority.certificate(&["localhost"]), &[]).await;
    let address = served.service.address();
    for (protocols, version) in
        [(&PROTOCOLS[..], Version::HTTP_2), (&PROTOCOLS[1..], Version::HTTP_11), (&[], Version::HTTP_11)]
    {
        let client = TlsClient::new(&authority.pem(), None, protocols);
        let (status, spoken, _) = client.send(&address, put(&address)).await.unwrap();
        assert_eq!((status, spoken), (StatusCode::ACCEPTED, version), "{protocols:?}");
    }
    let client = TlsClient::new(&authority.pem(), None, &PROTOCOLS[1..]);
    let ops = served.service.ops_address();
    let metrics = Request::get(format!("https://{ops}/metrics")).body(Full::default()).unwrap();
    let (status, _, body) = client.send(&ops, metrics).await.unwrap();
    assert_eq!(status, StatusCode::OK);
    assert!(body.contains("catchall_ingest_accepted_events_total 3"), "{body}");
    // Neither port answers who speaks plain HTTP.
    for address in [address, ops] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
    }
}

#[tokio::test]
async fn a_client_finds_out_that_it_is_not_the_right_server() {
    let (authority, foreign) = (Authority::default(), Authority::default());
    for (certificate, says) in [
        (foreign.certificate(&["localhost"]), "UnknownIssuer"),
        (authority.certificate(&["example.com"]), "not valid for name"),
        (authority.expired(&["localhost"]), "expired"),
    ] {
        let served = Served::with(&certificate, &[]).await;
        let client = TlsClient::new(&authority.pem(), None, &PROTOCOLS);
        let error = client.connect(&served.service.address(), "localhost").await.unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
}

#[tokio::test]
async fn a_renewed_certificate_counts_and_no_connection_is_lost() {
    let (old, new) = (Authority::default(), Authority::default());
    let served = Served::with(&old.certificate(&["localhost"]), &[]).await;
    let address = served.service.address();
    let client = TlsClient::new(&old.pem(), None, &PROTOCOLS);
    let mut kept = HttpsConnection::open(&client, &address).await.unwrap();
    assert_eq!(kept.send(put(&address)).await.unwrap().0, StatusCode::ACCEPTED);
    // A key without its certificate changes nothing.
    let renewed = new.certificate(&["localhost"]);
    fs::write(served.directory.join("key.pem"), &renewed.key).unwrap();
    let logged = async || served.service.has_logged("keeping the last valid version").then_some(());
    eventually("the key that does not fit is told", logged).await;
    client.connect(&address, "localhost").await.unwrap();
    let _ = renewed.write(&served.directory);
    let renewed = TlsClient::new(&new.pem(), None, &PROTOCOLS);
    let connects = async || renewed.connect(&address, "localhost").await.ok();
    eventually("the renewed certificate is shown", connects).await;
    assert!(client.connect(&address, "localhost").await.is_err());
    assert_eq!(kept.send(put(&address)).await.unwrap().0, StatusCode::ACCEPTED);
}

#[tokio::test]
async fn a_client_needs_a_certificate_where_an_authority_for_clients_is_named() {
    let (authority, clients, foreign) = (Authority::default(), Authority::default(), Authority::default());
    let ca = directory().join("clients.pem");
    fs::write(&ca, clients.pem()).unwrap();
    let more = [("CATCHALL_TLS_CLIENT_CA", ca.to_str().unwrap())];
    let served = Served::with(&authority.certificate(&["localhost"]), &more).await;
    let address = served.service.address();
    let send = async |own: Option<Certificate>| -> io::Result<StatusCode> {
        let client = TlsClient::new(&authority.pem(), own.as_ref(), &PROTOCOLS);
        client.send(&address, put(&address)).await.map(|(status, _, _)| status)
    };
    assert_eq!(send(Some(clients.certificate(&["mailer"]))).await.unwrap(), StatusCode::ACCEPTED);
    for own in [None, Some(foreign.certificate(&["mailer"])), Some(clients.expired(&["mailer"]))] {
        assert!(send(own).await.is_err());
    }
}

#[tokio::test]
async fn half_open_handshakes_hold_up_nobody_and_end_by_themselves() {
    let authority = Authority::default();
    let served = Served::with(&authority.certificate(&["localhost"]), &[]).await;
    let address = served.service.address();
    let mut silent = Vec::new();
    for _ in 0..200 {
        silent.push(TcpStream::connect(&address).await.unwrap());
    }
    // The beginning of a record that never ends.
    for stream in &mut silent[..100] {
        stream.write_all(&[0x16, 0x03, 0x01, 0x01]).await.unwrap();
    }
    let client = TlsClient::new(&authority.pem(), None, &PROTOCOLS);
    // Before the first of them is ended.
    let answer = timeout(Duration::from_secs(9), client.send(&address, put(&address))).await.unwrap();
    assert_eq!(answer.unwrap().0, StatusCode::ACCEPTED);
    sleep(Duration::from_secs(10)).await;
    for stream in &mut silent {
        let ended = timeout(Duration::from_secs(5), stream.read(&mut [0; 16])).await;
        assert!(matches!(ended, Ok(Ok(0) | Err(_))), "{ended:?}");
    }
}

#[test]
fn what_is_wrong_with_the_files_is_said_at_the_start() {
    let (authority, directory) = (Authority::default(), directory());
    let (cert, key) = authority.certificate(&["localhost"]).write(&directory);
    let other = directory.join("other.pem");
    fs::write(&other, authority.certificate(&["localhost"]).key).unwrap();
    let [cert, key, other] = [&cert, &key, &other].map(|path| path.to_str().unwrap());
    let data = data_file();
    for (variables, says) in [
        (&[("CATCHALL_TLS_CERT", cert)][..], "CATCHALL_TLS_KEY (--tls-key <FILE>) is required"),
        (&[("CATCHALL_TLS_KEY", key)], "CATCHALL_TLS_CERT (--tls-cert <FILE>) is required"),
        (&[("CATCHALL_TLS_CLIENT_CA", cert)], "CATCHALL_TLS_CERT (--tls-cert <FILE>) is required"),
        (&[("CATCHALL_TLS_CERT", "/nowhere"), ("CATCHALL_TLS_KEY", key)], "cannot read /nowhere"),
        (&[("CATCHALL_TLS_CERT", key), ("CATCHALL_TLS_KEY", key)], "no certificate in it"),
        (&[("CATCHALL_TLS_CERT", cert), ("CATCHALL_TLS_KEY", cert)], "no private key"),
        (&[("CATCHALL_TLS_CERT", cert), ("CATCHALL_TLS_KEY", other)], "KeyMismatch"),
    ] {
        let variables = [variables, &[("CATCHALL_DATA", data.to_str().unwrap())]].concat();
        let (status, _, stderr) = run("standalone", &[], &variables);
        assert_eq!(status.code(), Some(2), "{stderr}");
        assert!(stderr.contains(says) && stderr.lines().count() == 1, "{stderr}");
    }
}
