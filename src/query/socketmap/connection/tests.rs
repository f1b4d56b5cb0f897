use std::sync::Arc;

use futures::FutureExt;
use tokio::io::{DuplexStream, duplex};
use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::*;
use crate::classified::Classified;
use crate::counters::Counters;
use crate::query::lookup::Lookups;

/// What the kernel may hold between a client and the server in these tests.
const PIPE: usize = 64 * 1024;

/// Answers each name by its length: more than a thousand deliveries, or a bounce, or nothing.
async fn look_up_by_length(lookups: Arc<Lookups>) {
    loop {
        let flush = lookups.take().await;
        let counters = |name: &DomainName| match name.as_str().len() {
            5 => Counters { delivered: 1001, bounced: 0 },
            6 => Counters { delivered: 0, bounced: 1 },
            _ => Counters { delivered: 1000, bounced: 0 },
        };
        let known = |name| Classified::new(counters(name), 1000, None);
        let found = flush.items.iter().map(known).collect();
        flush.answer.send(Some(found));
    }
}

/// A client, and the connection that serves it.
fn connect(pipe: usize, stop: Shutdown) -> (DuplexStream, JoinHandle<Result<(), Offence>>) {
    let (client, server) = duplex(pipe);
    let lookups = Arc::new(Lookups::new(1000));
    tokio::spawn(look_up_by_length(Arc::clone(&lookups)));
    let domains = Domains { lookups, threshold: None };
    let served = tokio::spawn(async move { serve(server, &domains, &Replies::register(), stop).await });
    (client, served)
}

fn never() -> Shutdown {
    std::future::pending().boxed().shared()
}

fn written(texts: &[&str]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for text in texts {
        netstring::append(text, &mut bytes);
    }
    bytes
}

/// Reads exactly these replies.
async fn gets(client: &mut DuplexStream, replies: &[&str]) {
    let expected = written(replies);
    let mut read = vec![0; expected.len()];
    client.read_exact(&mut read).await.unwrap();
    assert_eq!(read.escape_ascii().to_string(), expected.escape_ascii().to_string());
}

#[tokio::test]
async fn requests_are_answered_in_their_order_however_many_there_are() {
    let (mut client, served) = connect(PIPE, never());
    let kinds = [
        ("status a.com", "OK catch-all"),
        ("status me@ab.com", "OK not catch-all"),
        ("status abc.com", "NOTFOUND "),
        ("status localhost", "NOTFOUND "),
        ("other a.com", "PERM there is no such map; the map is named status"),
    ];
    let (requests, replies): (Vec<_>, Vec<_>) = kinds.iter().cycle().take(1234).copied().unzip();
    client.write_all(&written(&requests)).await.unwrap();
    gets(&mut client, &replies).await;
    drop(client);
    assert_eq!(served.await.unwrap(), Ok(()));
}

#[tokio::test(start_paused = true)]
async fn a_request_may_come_byte_by_byte_but_not_for_long() {
    let (mut client, served) = connect(PIPE, never());
    let request = written(&["status a.com"]);
    // A hundred slow requests take longer together than one may.
    for _ in 0..100 {
        for byte in &request {
            client.write_all(&[*byte]).await.unwrap();
            sleep(ARRIVAL / 20).await;
        }
        gets(&mut client, &["OK catch-all"]).await;
    }
    for byte in &request {
        // It has been cut off when the last bytes come.
        let _ = client.write_all(&[*byte]).await;
        sleep(ARRIVAL / 10).await;
    }
    assert_eq!(served.await.unwrap(), Err(Offence::TooSlow));
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_ends_and_that_is_no_offence() {
    let (mut client, served) = connect(PIPE, never());
    for _ in 0..3 {
        sleep(IDLE * 9 / 10).await;
        client.write_all(&written(&["status a.com"])).await.unwrap();
        gets(&mut client, &["OK catch-all"]).await;
    }
    assert_eq!(served.await.unwrap(), Ok(()));
    assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
}

#[tokio::test]
async fn what_is_no_request_ends_the_connection_after_those_before_it() {
    for (garbage, offence) in [
        ("EHLO mail.example\r\n", Malformed::NotANetstring),
        ("4097:status ", Malformed::TooLong),
        ("13:status a.com.com,", Malformed::NotANetstring),
    ] {
        let (mut client, served) = connect(PIPE, never());
        let bytes = [&*written(&["status a.com", "status b.com"]), garbage.as_bytes()].concat();
        client.write_all(&bytes).await.unwrap();
        gets(&mut client, &["OK catch-all", "OK catch-all"]).await;
        assert_eq!(served.await.unwrap(), Err(Offence::Malformed(offence)), "{garbage}");
    }
}

#[tokio::test]
async fn the_longest_request_is_answered() {
    let (mut client, _served) = connect(PIPE, never());
    let long = format!("status {}@a.com", "x".repeat(LONGEST - "status @a.com".len()));
    client.write_all(&written(&["status b.com", &long, &long, "status localhost"])).await.unwrap();
    gets(&mut client, &["OK catch-all", "OK catch-all", "OK catch-all", "NOTFOUND "]).await;
}

#[tokio::test(start_paused = true)]
async fn who_reads_no_reply_is_cut_off() {
    let (mut client, served) = connect(100, never());
    let requests = written(&["status a.com"; 50]);
    // It is cut off before all is written.
    let _ = client.write_all(&requests).await;
    assert_eq!(served.await.unwrap(), Err(Offence::Unread));
}

#[tokio::test]
async fn what_cannot_be_looked_up_now_may_be_asked_again() {
    let (mut client, server) = duplex(PIPE);
    let lookups = Arc::new(Lookups::new(1));
    let domains = Domains { lookups: Arc::clone(&lookups), threshold: None };
    tokio::spawn(async move { serve(server, &domains, &Replies::register(), never()).await });
    client.write_all(&written(&["status a.com", "status b.com"])).await.unwrap();
    lookups.take().await.answer.send(None);
    let full = "TEMP too many requests are waiting for the database";
    gets(&mut client, &["TEMP the database cannot be read", full]).await;
}

#[tokio::test]
async fn at_a_stop_what_has_arrived_is_still_answered() {
    let stop = std::future::ready(()).boxed().shared();
    let (mut client, server) = duplex(PIPE);
    client.write_all(&written(&["status a.com"])).await.unwrap();
    let lookups = Arc::new(Lookups::new(1000));
    tokio::spawn(look_up_by_length(Arc::clone(&lookups)));
    let domains = Domains { lookups, threshold: None };
    assert_eq!(serve(server, &domains, &Replies::register(), stop).await, Ok(()));
    gets(&mut client, &["OK catch-all"]).await;
    assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
}
