//! Group commit: events that come while another commit is under way share the next one.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use harness::servers::eventually;
use harness::system::data_file;

use super::start;

#[tokio::test]
async fn events_that_come_at_the_same_time_share_few_commits() {
    const EVENTS: usize = 200;
    let service = start(&data_file(), &[]).await;
    let address = service.address();
    let mut clients: Vec<_> = (0..EVENTS).map(|_| TcpStream::connect(&address).unwrap()).collect();
    // While it is stopped, all of them arrive.
    service.signal("STOP");
    let request = format!(
        "PUT /events/crowd.example/delivered HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n"
    );
    for client in &mut clients {
        client.write_all(request.as_bytes()).unwrap();
    }
    service.signal("CONT");
    for client in &mut clients {
        client.set_read_timeout(Some(Duration::from_secs(70))).unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 202 "), "{answer}");
    }
    let delivered = "catchall_worker_delivered_total";
    eventually("all are counted", async || (service.metric(delivered).await >= 200.0).then_some(())).await;
    let commits = service.metric("catchall_worker_commit_seconds_count").await;
    assert!((1.0..=50.0).contains(&commits), "{commits} commits of {EVENTS} events");
    service.answers("crowd.example", "unknown", 200, 0).await;
}
