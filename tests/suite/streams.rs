//! Answers that are streams: how many there may be, and what those that nobody reads keep from others.

use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use h2::RecvStream;
use h2::client::SendRequest;
use harness::processes::Service;
use harness::servers::eventually;
use harness::system::System;
use hyper::{Method, Request, Response, StatusCode, header};
use serde_json::{Value, json};
use tokio::net::TcpStream;

const EVENTS: &str = "text/event-stream";
const NDJSON: &str = "application/x-ndjson";

/// Limits are for each thread.
const ONE_THREAD: (&str, &str) = ("CATCHALL_THREADS", "1");

/// A connection of HTTP/2. It takes 64 kB of an answer that nobody reads, and no more.
struct Connection {
    requests: SendRequest<Bytes>,
    address: String,
}

impl Connection {
    async fn open(service: &Service) -> Self {
        let address = service.address();
        let stream = TcpStream::connect(&address).await.unwrap();
        let (requests, connection) = h2::client::handshake(stream).await.unwrap();
        tokio::spawn(connection);
        Self { requests, address }
    }

    /// The head of an answer. Its body is read by whoever wants it, and ends when this is dropped.
    async fn ask(&self, method: Method, path: &str, accept: &str) -> Response<RecvStream> {
        let uri = format!("http://{}{path}", self.address);
        let request = Request::builder().method(method).uri(uri).header(header::ACCEPT, accept);
        let mut requests = self.requests.clone().ready().await.unwrap();
        let (answer, _) = requests.send_request(request.body(()).unwrap(), true).unwrap();
        answer.await.unwrap()
    }
}

/// Counts a bounce of each domain.
async fn bounce(system: &System, names: &[String]) {
    for names in names.chunks(10_000) {
        let events: Vec<Value> =
            names.iter().map(|name| json!({"domain": name, "event": "bounced"})).collect();
        system.events().post_events(&Value::from(events)).await;
    }
}

/// Waits until `HEAD` is answered, for which there must be a place.
async fn head_is_answered(service: &Service, path: &str, accept: &str) {
    eventually(&format!("there is a place for HEAD {path}"), async || {
        let (status, _, body) = service.request(Method::HEAD, path, &[("accept", accept)], "").await;
        assert_eq!(body, "");
        (status == StatusCode::OK).then_some(())
    })
    .await;
}

/// Reads an answer to its end. A client that reads nothing takes many small frames for an attack.
async fn read(answer: Response<RecvStream>) {
    let mut body = answer.into_body();
    while let Some(Ok(part)) = body.data().await {
        body.flow_control().release_capacity(part.len()).unwrap();
    }
}

/// Clients at one address that one thread lets wait for changes, and requests that a connection may have under
/// way.
const FOLLOWERS: usize = 1000;
const OF_A_CONNECTION: usize = 50;

#[tokio::test]
async fn a_follower_too_many_is_refused_until_one_leaves() {
    let system = System::standalone(&[ONE_THREAD]).await;
    let service = system.domains();
    bounce(&system, &["a.com".to_owned()]).await;
    let (mut connections, mut followers) = (Vec::new(), Vec::new());
    for _ in 0..FOLLOWERS / OF_A_CONNECTION {
        let connection = Connection::open(service).await;
        let asked = (0..OF_A_CONNECTION).map(async |_| {
            let follower = connection.ask(Method::GET, "/changes", EVENTS).await;
            assert_eq!(follower.status(), StatusCode::OK);
            let reading = tokio::spawn(read(follower));
            reading.abort_handle()
        });
        followers.extend(join_all(asked).await);
        connections.push(connection);
    }
    let another = Connection::open(service).await;
    for (path, accept) in [("/changes", EVENTS), ("/changes?since=now&wait=60", "application/json")] {
        let refused = another.ask(Method::GET, path, accept).await;
        assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE, "{path}");
        assert_eq!(refused.headers()[header::RETRY_AFTER], "1");
    }
    // Who need not wait needs no place.
    let (status, page) = service.get("/changes?wait=60").await;
    assert_eq!((status, &page["changes"][0]["domain"]), (StatusCode::OK, &json!("a.com")));
    // The one place that becomes free is left again each time.
    followers.pop().unwrap().abort();
    for _ in 0..3 {
        head_is_answered(service, "/changes", EVENTS).await;
    }
    eventually("there is a place for another", async || {
        let answer = another.ask(Method::GET, "/changes", EVENTS).await;
        (answer.status() == StatusCode::OK).then_some(answer)
    })
    .await;
}

#[tokio::test]
async fn lists_that_nobody_reads_keep_nobody_else_waiting() {
    let system = System::standalone(&[ONE_THREAD]).await;
    let service = system.domains();
    // Three parts of a stream: two are on their way to whoever does not read, so the third has to wait.
    let names: Vec<String> = (10_000..22_000).map(|number| format!("d{number}.com")).collect();
    bounce(&system, &names).await;
    let mut unread = Vec::new();
    eventually("no list has a place any more", async || {
        // At the same time, and each on its own: a stream that is not read ends before long, with its
        // connection.
        let asked = (0..40).map(async |_| {
            let connection = Connection::open(service).await;
            let answer = connection.ask(Method::GET, "/domains", NDJSON).await;
            (connection, answer)
        });
        let mut is_full = false;
        for (connection, answer) in join_all(asked).await {
            if answer.status() == StatusCode::OK {
                unread.push((connection, answer));
            } else {
                assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
                is_full = true;
            }
        }
        is_full.then_some(())
    })
    .await;
    for path in ["/domains?limit=3", "/domains/d10000.com", "/totals", "/changes?limit=3"] {
        assert_eq!(service.get(path).await.0, StatusCode::OK, "{path}");
    }
    // Maps have places of their own.
    let map = "/maps/rspamd/not-catch-all";
    let (status, _, body) = service.request(Method::GET, map, &[], "").await;
    assert_eq!((status, body.lines().count()), (StatusCode::OK, names.len()));
    // More often than there are places, each of which is left again.
    for _ in 0..20 {
        head_is_answered(service, map, "*/*").await;
    }
    unread.pop();
    for accept in [NDJSON, "text/csv", NDJSON] {
        head_is_answered(service, "/domains", accept).await;
    }
    eventually("there is a place for another list", async || {
        let (status, _, body) = service.request(Method::GET, "/domains", &[("accept", NDJSON)], "").await;
        (status == StatusCode::OK).then(|| assert_eq!(body.lines().count(), names.len()))
    })
    .await;
}

/// So many events of a stream.
async fn events(answer: Response<RecvStream>, count: usize) -> Vec<String> {
    let (mut body, mut text) = (answer.into_body(), String::new());
    while text.matches("\n\n").count() < count {
        let data = body.data().await.unwrap().unwrap();
        body.flow_control().release_capacity(data.len()).unwrap();
        text.push_str(std::str::from_utf8(&data).unwrap());
    }
    text.split_terminator("\n\n").map(str::to_owned).collect()
}

#[tokio::test]
async fn an_event_has_the_entry_of_a_page_as_its_data() {
    for system in System::both(&[]).await {
        let query = system.domains();
        bounce(&system, &["a.com", "b.com"].map(str::to_owned)).await;
        let page = eventually("both changes are in the feed", async || {
            let (_, page) = query.get("/changes").await;
            (page["changes"].as_array().unwrap().len() == 2).then_some(page)
        })
        .await;
        let connection = Connection::open(query).await;
        let events = events(connection.ask(Method::GET, "/changes", EVENTS).await, 3).await;
        assert_eq!(events[0], "id: 0-");
        for (event, entry) in events[1..].iter().zip(page["changes"].as_array().unwrap()) {
            let (_, data) = event.split_once("\ndata: ").unwrap();
            assert_eq!(serde_json::from_str::<Value>(data).unwrap(), *entry);
        }
        let (id, _) = events[2].split_once('\n').unwrap();
        assert_eq!(id, format!("id: {}", page["position"].as_str().unwrap()));
    }
}

#[tokio::test]
async fn whoever_waits_gets_what_comes_after_its_position_and_nothing_else() {
    for system in System::both(&[]).await {
        let query = system.domains();
        let (_, now) = query.get("/changes?since=now").await;
        let first = format!("/changes?since={}&wait=60&limit=1", now["position"].as_str().unwrap());
        // A place that is still to come: a file has no copies that could have come there.
        let (_, of_feed) = now["position"].as_str().unwrap().split_once('.').unwrap();
        let never = format!("9000000000000000000.{of_feed}");
        let to_come = format!("/changes?since={never}&wait=2");
        let waiting = join_all((0..20).map(|_| query.get(&first)));
        let (answers, (status, nothing), ()) = tokio::join!(waiting, query.get(&to_come), async {
            // They wait by then. If not, they get the same.
            tokio::time::sleep(Duration::from_millis(300)).await;
            bounce(&system, &["a.com", "b.com"].map(str::to_owned)).await;
        });
        if system.is_standalone() {
            assert_eq!(status, StatusCode::GONE, "{nothing}");
        } else {
            assert_eq!((status, nothing), (StatusCode::OK, json!({"changes": [], "position": never})));
        }
        for (status, page) in &answers {
            assert_eq!((*status, page), (StatusCode::OK, &answers[0].1));
        }
        let (_, page) = &answers[0];
        assert_eq!(page["changes"].as_array().unwrap().len(), 1);
        assert_eq!(page["changes"][0]["domain"], "a.com");
        // What came with it, and is not new any more.
        let rest = format!("/changes?since={}&wait=60", page["position"].as_str().unwrap());
        let (_, rest) = query.get(&rest).await;
        assert_eq!(rest["changes"].as_array().unwrap().len(), 1);
        assert_eq!(rest["changes"][0]["domain"], "b.com");
    }
}
