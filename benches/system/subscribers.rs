//! A hundred subscribers of server-sent events, beside a load that changes statuses.

use std::cell::RefCell;
use std::fmt::Write;
use std::time::{Duration, Instant};

use anyhow::{anyhow, ensure};
use bytes::Bytes;
use futures::future::try_join_all;
use harness::http::HttpClient;
use harness::stats::real;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1::handshake;
use hyper::{Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::stats::RowStats;
use crate::system::RunningSystem;

/// Subscribers, and changes a second.
const SUBSCRIBERS: usize = 100;
const CHANGES: usize = 1000;

/// How often events are sent, and how long an answer may take.
const EVERY: Duration = Duration::from_millis(50);
const TIMEOUT: Duration = Duration::from_secs(30);

/// Bounces new domains at the rate for so many seconds while all subscribe. An event of the row is a change.
pub(crate) async fn run(system: RunningSystem, seconds: u64) -> anyhow::Result<RowStats> {
    let address = system.query_address()?.to_string();
    let heard = RefCell::new(0_u64);
    let subscribers = try_join_all((0..SUBSCRIBERS).map(|_| subscribe(&address))).await?;
    let before = system.micros();
    let begun = Instant::now();
    let sent = {
        let following = try_join_all(subscribers.into_iter().map(|body| follow(body, &heard)));
        tokio::select! {
            ended = following => return Err(anyhow!("the subscribers have ended: {ended:?}")),
            sent = send(&system, seconds) => sent?,
        }
    };
    let took = begun.elapsed().as_secs_f64();
    let micros = system.micros().since(before, sent);
    let peak_megabytes = system.peaks();
    system.clear().await;
    let share = micros.query.unwrap_or_default() * real(sent) / took / 1e6;
    let heard = *heard.borrow();
    // The last events may not have come yet.
    let least = sent.saturating_sub(2 * CHANGES as u64) * SUBSCRIBERS as u64;
    Ok(RowStats {
        events: sent,
        seconds: took,
        acknowledged_per_second: real(sent) / took,
        micros_per_event: Some(micros),
        peak_megabytes,
        notes: vec![format!("query used {share:.3} of a core; {heard} events were heard")],
        failure: (heard < least).then(|| format!("{heard} events were heard, and not {least}")),
        ..RowStats::default()
    })
}

async fn subscribe(address: &str) -> anyhow::Result<hyper::body::Incoming> {
    let (mut requests, connection) = handshake(TokioIo::new(TcpStream::connect(address).await?)).await?;
    tokio::spawn(connection);
    let request = Request::get("/changes?since=now")
        .header(header::HOST, address)
        .header(header::ACCEPT, "text/event-stream")
        .body(Empty::<Bytes>::new())?;
    let answer = requests.send_request(request).await?;
    ensure!(answer.status() == StatusCode::OK, "a subscriber was answered {}", answer.status());
    // The connection lasts as long as there is somebody who could send another request.
    std::mem::forget(requests);
    Ok(answer.into_body())
}

async fn follow(mut body: hyper::body::Incoming, heard: &RefCell<u64>) -> anyhow::Result<()> {
    while let Some(frame) = body.frame().await {
        let data = frame?.into_data().unwrap_or_default();
        let events = data.windows(6).filter(|window| window == b"data: ").count();
        *heard.borrow_mut() += events as u64;
    }
    Ok(())
}

async fn send(system: &RunningSystem, seconds: u64) -> anyhow::Result<u64> {
    let (http, url) = (HttpClient::with_keep_alive(), format!("{}/events", system.ingest_url()));
    let (mut due, end) = (Instant::now(), Instant::now() + Duration::from_secs(seconds));
    let mut number = 0;
    let run = uuid::Uuid::now_v7().simple().to_string();
    while due < end {
        let mut lines = String::new();
        for _ in 0..CHANGES * usize::try_from(EVERY.as_millis())? / 1000 {
            writeln!(lines, r#"{{"domain":"s{number}.{run}.example","event":"bounced"}}"#)?;
            number += 1;
        }
        let post = Request::post(&url).header(header::CONTENT_TYPE, "application/x-ndjson");
        let answer = http.send(post.body(lines.into())?, TIMEOUT).await;
        let (status, body) = answer.map_err(|error| anyhow!(error))?;
        ensure!(status == StatusCode::ACCEPTED, "events were answered {status}: {body}");
        due += EVERY;
        tokio::time::sleep_until(due.into()).await;
    }
    Ok(number)
}
