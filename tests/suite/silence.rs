//! What those can take of a service who say nothing: many connections and streams that are opened, and then
//! stay silent.

use std::io::{ErrorKind, Read};
use std::net::SocketAddr;

use bytes::Bytes;
use futures::future::join_all;
use h2::client::ResponseFuture;
use harness::processes::Service;
use harness::servers::eventually;
use harness::system::System;
use hyper::{Method, Request, StatusCode};
use tokio::net::{TcpSocket, TcpStream};

const NDJSON: (&str, &str) = ("content-type", "application/x-ndjson");
const EVENT: &str = "{\"domain\":\"silence.example\",\"event\":\"delivered\"}\n";

/// Connections of HTTP/2, and silent streams on each: one less than there may be.
const CONNECTIONS: usize = 20;
const STREAMS: usize = 199;

/// Opens streams that announce a packed body and send nothing of it. They have all begun when this returns.
async fn silent_streams(address: &str) -> Vec<(ResponseFuture, h2::SendStream<Bytes>)> {
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut requests, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let mut streams = Vec::new();
    for _ in 0..STREAMS {
        let request = Request::post(format!("http://{address}/events")).header(NDJSON.0, NDJSON.1);
        let request = request.header("content-encoding", "zstd").body(()).unwrap();
        requests = requests.ready().await.unwrap();
        streams.push(requests.send_request(request, false).unwrap());
    }
    // It comes after them all.
    let request =
        Request::put(format!("http://{address}/events/silence.example/delivered")).body(()).unwrap();
    let answer = requests.ready().await.unwrap().send_request(request, true).unwrap().0;
    assert_eq!(answer.await.unwrap().status(), StatusCode::ACCEPTED);
    streams
}

#[tokio::test]
async fn silent_streams_take_no_memory_from_those_who_send() {
    let check = async |system: System| {
        let ingest = system.events();
        let address = ingest.address();
        let silent = join_all((0..CONNECTIONS).map(|_| silent_streams(&address))).await;
        for _ in 0..10 {
            let (status, _, body) =
                ingest.request(Method::POST, "/events", &[NDJSON], EVENT.repeat(1000)).await;
            assert_eq!(status, StatusCode::ACCEPTED, "{body}");
            assert_eq!(ingest.put("/events/silence.example/delivered").await, StatusCode::ACCEPTED);
        }
        // They were late. If they had held or wanted any memory, they would have been refused for that.
        let answers =
            silent.into_iter().flatten().map(async |(answer, _body)| answer.await.unwrap().status());
        for status in join_all(answers).await {
            assert_eq!(status, StatusCode::REQUEST_TIMEOUT);
        }
        let sent = u64::try_from(CONNECTIONS).unwrap() + 10 * 1001;
        system.settle_at("silence.example", sent, 0).await;
    };
    // A hundredth of what these streams would need.
    join_all(System::both(&[("CATCHALL_BODY_BUDGET_MIB", "32")]).await.map(check)).await;
}

/// Opens a connection to the operations port from another address of this machine, and says nothing.
async fn silent(service: &Service, from: &str) -> std::net::TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::new(from.parse().unwrap(), 0)).unwrap();
    socket.connect(service.ops_address().parse().unwrap()).await.unwrap().into_std().unwrap()
}

/// How many of these connections are still open.
fn open(connections: &[std::net::TcpStream]) -> usize {
    let is_open = |mut stream: &std::net::TcpStream| {
        stream.read(&mut [0]).is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
    };
    connections.iter().filter(|stream| is_open(stream)).count()
}

#[tokio::test]
async fn silent_connections_keep_no_probe_out() {
    let check = async |system: System| {
        let ingest = system.events();
        let mut connections = Vec::new();
        for number in 0..300 {
            // The last is where the probes come from.
            let from = ["127.0.0.2", "127.0.0.3", "127.0.0.1"][number % 3];
            connections.push(silent(ingest, from).await);
            if number % 20 == 19 {
                for path in ["/livez", "/readyz"] {
                    let (status, body) = ingest.ops(path).await;
                    assert_eq!(status, StatusCode::OK, "{body}");
                }
            }
        }
        eventually("the port has no more than its places", async || {
            (open(&connections) <= 100).then_some(())
        })
        .await;
        ingest.logs("closing idle connections for new ones").await;
    };
    join_all(System::both(&[]).await.map(check)).await;
}
