//! Hostile input: values that an error message would repeat, messages that no library can parse, deeply
//! nested headers.

use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::Result;
use bytes::Bytes;
use catchall::broker::{DEAD, EVENTS};
use flate2::Compression;
use flate2::write::GzEncoder;
use futures::future::join_all;
use harness::amqp::AmqpClient;
use harness::expected::ExpectedCounts;
use harness::frames::{FramePublisher, nested_headers, publish_in_latin_1};
use harness::http::HttpClient;
use harness::sql;
use http_body_util::Full;
use hyper::{Request, StatusCode, header};
use lapin::types::AMQPValue;
use serde_json::Value;

use super::dead_letters::{await_dead_letters, dead, empty};
use super::lifted::Lifted;
use crate::cluster::Cluster;

/// Clients, and requests of each. If each byte were repeated as six bytes, they would take far more memory
/// than ingest may use. With more of them a debug build would do nothing but decompress.
const AMPLIFYING: usize = 8;
const TIMES: usize = 2;

/// Bytes of the invalid value: in a request almost as many as its body may have.
const REQUEST_VALUE: usize = (10 << 20) - 100;
const MESSAGE_VALUE: usize = 300 << 10;

/// How many such messages are published.
const MESSAGES: usize = 40;

/// How long a request may take: decompressing ten megabytes takes time in a debug build.
const TIMEOUT: Duration = Duration::from_mins(1);

/// A reason that is shortened has fewer bytes than this.
const MAX_REASON: usize = 1000;

/// Good messages per second, and for how many seconds they are sent beside one bad message per second.
const GOOD: u64 = 1000;
const SECONDS: u64 = 10;

/// The longest time without a counted good message. It allows for a busy machine.
const STANDSTILL: Duration = Duration::from_secs(5);

/// After this long without progress the wait is given up.
const FOR_GOOD: Duration = Duration::from_secs(15);

/// The depth of nesting. A level takes five bytes, and a frame holds 128 KiB.
const DEPTH: u32 = 18_000;

/// How many such messages are published. The tool is run twice for each.
const DEEP: usize = 1;

/// An event whose count is a text of control characters, each of which is six bytes long when it is escaped.
fn amplifying(size: usize) -> Vec<u8> {
    let value = "\u{7f}".repeat(size);
    format!(r#"{{"domain":"a.com","event":"delivered","count":"{value}"}}"#).into_bytes()
}

pub(super) async fn amplification(cluster: &mut Cluster, label: &str) -> Result<Lifted> {
    empty(&cluster.servers).await;
    let mut packed = GzEncoder::new(Vec::new(), Compression::best());
    packed.write_all(&amplifying(REQUEST_VALUE))?;
    let packed = Bytes::from(packed.finish()?);
    let asking = (0..AMPLIFYING).map(|_| async {
        let client = HttpClient::with_keep_alive();
        let (mut read, mut wrong) = (0_usize, Vec::new());
        for _ in 0..TIMES {
            let request = Request::post(format!("{}/events", cluster.ingest_url))
                .header(header::CONTENT_TYPE, "application/x-ndjson")
                .header(header::CONTENT_ENCODING, "gzip")
                .body(Full::from(packed.clone()));
            match client.send(request.expect("it is a request"), TIMEOUT).await {
                Ok((StatusCode::BAD_REQUEST, body)) if body.len() < MAX_REASON => read += 1,
                Ok((StatusCode::SERVICE_UNAVAILABLE, _)) => {}
                Ok((status, body)) => wrong.push(format!("{status} with {} bytes", body.len())),
                Err(reason) => wrong.push(reason),
            }
        }
        (read, wrong)
    });
    let publisher = cluster.servers.publisher().await;
    let publishing = async {
        let message = amplifying(MESSAGE_VALUE);
        for number in 0..MESSAGES {
            publisher.publish(&message, Some(&format!("{label}-{number}"))).await;
        }
    };
    let (answers, ()) = tokio::join!(join_all(asking), publishing);
    let (read, wrong): (Vec<usize>, Vec<Vec<String>>) = answers.into_iter().unzip();
    let (read, wrong) = (read.iter().sum::<usize>(), wrong.concat());
    let mut lifted = Lifted::now();
    if read == 0 {
        lifted.failures.push("no amplifying request was read".into());
    }
    if let Some(first) = wrong.first() {
        let count = wrong.len();
        lifted.failures.push(format!("{count} amplifying requests got a wrong answer, the first: {first}"));
    }
    lifted
        .failures
        .extend(await_dead_letters(&publisher, MESSAGES).await.err().map(|error| error.to_string()));
    lifted.failures.extend(reasons(&publisher).await);
    Ok(lifted)
}

/// Takes all dead letters and checks that each has a short reason.
async fn reasons(publisher: &AmqpClient) -> Option<String> {
    let mut wrong = None;
    while let Some((_, headers, _)) = publisher.dead_letter().await {
        match headers.inner().get("catchall-reason") {
            Some(AMQPValue::LongString(reason)) if reason.as_bytes().len() < MAX_REASON => {}
            Some(AMQPValue::LongString(reason)) => {
                wrong = Some(format!("a dead letter has a reason of {} bytes", reason.as_bytes().len()));
            }
            _ => wrong = Some("a dead letter has no reason".into()),
        }
    }
    wrong
}

/// Good messages continue to be counted, and none of them becomes a dead letter.
pub(super) async fn unparsable(cluster: &mut Cluster, label: &str) -> Result<Lifted> {
    empty(&cluster.servers).await;
    let mut expected = ExpectedCounts::default();
    let (publisher, domain) = (cluster.servers.publisher().await, format!("good.{label}.test"));
    let body = format!(r#"{{"domain":"{domain}","event":"delivered"}}"#);
    let good = async {
        let begun = tokio::time::Instant::now();
        // Sent every tenth of a second, or later if the machine is busy.
        for tenth in 0..SECONDS * 10 {
            tokio::time::sleep_until(begun + Duration::from_millis(100 * tenth)).await;
            let publishing = (0..GOOD / 10).map(|number| {
                let (publisher, body) = (&publisher, body.as_bytes());
                async move { publisher.publish(body, Some(&format!("{label}-{tenth}-{number}"))).await }
            });
            join_all(publishing).await;
        }
        Instant::now()
    };
    let bad = async {
        for _ in 0..SECONDS {
            tokio::time::sleep(Duration::from_secs(1)).await;
            publish_in_latin_1(&cluster.servers, EVENTS, body.as_bytes()).await;
        }
    };
    let standstill = longest_standstill(&cluster.primary, &domain, GOOD * SECONDS);
    let (ended, (), standstill) = tokio::join!(good, bad, standstill);
    expected.expect(domain, GOOD * SECONDS, GOOD * SECONDS);
    let mut lifted = Lifted { expected, ..Lifted::now() };
    let (standstill, counted) = standstill?;
    let behind = counted.saturating_duration_since(ended);
    lifted.note = Some(format!(
        "good ones stood still for {:.1} s at most, all counted {:.1} s after the last",
        standstill.as_secs_f64(),
        behind.as_secs_f64()
    ));
    if standstill > STANDSTILL {
        lifted.failures.push(format!("no good message was counted for {standstill:?}"));
    }
    // The comparison finds good messages that became dead letters.
    let bad = usize::try_from(SECONDS).unwrap_or(usize::MAX);
    if lifted.failures.is_empty() {
        lifted.failures.extend(
            await_dead_letters(&cluster.servers.publisher().await, bad)
                .await
                .err()
                .map(|error| error.to_string()),
        );
    }
    empty(&cluster.servers).await;
    Ok(lifted)
}

/// The longest time in which a counter did not grow until it reached `most`, and when it did.
async fn longest_standstill(primary: &str, domain: &str, most: u64) -> Result<(Duration, Instant)> {
    let (mut longest, mut last, mut counted) = (Duration::ZERO, Instant::now(), 0);
    loop {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let counts = sql::counts(primary, &[domain.to_owned()]).await?;
        let now = counts.get(domain).copied().unwrap_or_default().delivered;
        longest = longest.max(last.elapsed());
        if now > counted {
            (counted, last) = (now, Instant::now());
        }
        if counted >= most || last.elapsed() > FOR_GOOD {
            return Ok((longest, last));
        }
    }
}

/// No process crashes, and the tool can list, show and discard the dead letters.
pub(super) async fn deep_headers(cluster: &mut Cluster, label: &str) -> Result<Lifted> {
    empty(&cluster.servers).await;
    let headers = nested_headers(DEPTH);
    let mut publisher = FramePublisher::connect(&cluster.servers).await;
    for number in 0..DEEP {
        let key = format!("{label}-{number}");
        // Dead letters without an id are distinguished by their bodies.
        let body = format!(r#"{{"number":{number}}}"#);
        publisher.publish(EVENTS, key.as_bytes(), Some(&headers), body.as_bytes()).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let looking = cluster.servers.publisher().await;
    let mut lifted = Lifted::now();
    let begun = Instant::now();
    let (mut dead_letters, mut ended) = (0, 0);
    while dead_letters < DEEP && !cluster.workers.is_empty() && begun.elapsed() < TIMEOUT / 2 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let before = cluster.workers.len();
        cluster.workers.retain_mut(|worker| worker.service.has_ended().is_none());
        ended += before - cluster.workers.len();
        dead_letters = looking.waiting(DEAD).await as usize;
    }
    if ended > 0 {
        lifted.failures.push(format!("{ended} workers crashed on a message"));
    }
    if dead_letters != DEEP {
        lifted.failures.push(format!("{dead_letters} dead letters instead of {DEEP}"));
    }
    lifted.failures.extend(shown(cluster).await);
    empty(&cluster.servers).await;
    if ended > 0 {
        // Messages that crash workers are removed, or no worker could run at the end of this round.
        let path = format!("/api/queues/{}/{EVENTS}/contents", cluster.servers.name);
        cluster.servers.management(hyper::Method::DELETE, &path, "").await;
        cluster.fill().await;
    }
    lifted.at = Instant::now();
    Ok(lifted)
}

/// What the tool for dead letters fails to do with them.
async fn shown(cluster: &Cluster) -> Vec<String> {
    let mut failures = Vec::new();
    let (listed, stdout, stderr) = dead(&cluster.servers, &["list", "--json"]).await;
    let dead_letters: Vec<Value> =
        stdout.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    if !listed || dead_letters.len() != DEEP {
        failures.push(format!("catchall-dead list: {} dead letters, {stderr}", dead_letters.len()));
        return failures;
    }
    for dead_letter in &dead_letters {
        let reference = dead_letter["ref"].as_str().unwrap_or_default();
        let (shown, _, stderr) = dead(&cluster.servers, &["show", reference]).await;
        let (discarded, _, more) = dead(&cluster.servers, &["discard", reference]).await;
        if !(shown && discarded) {
            failures.push(format!("catchall-dead show and discard: {stderr}{more}"));
        }
    }
    failures
}
