//! Measures the time from the 202 to the GET that shows the event.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use anyhow::{anyhow, ensure};
use bytes::Bytes;
use catchall_load::counts::Counts;
use futures::future::try_join_all;
use harness::http::HttpClient;
use http_body_util::Full;
use hyper::{Request, StatusCode};
use serde::Deserialize;

use crate::measure::SideResult;
use crate::stats::{histogram, latency};

/// How many probes run at a time: few, so that they do not add load.
const AT_ONCE: u32 = 2;

/// The time between two GETs of a probe, which limits the precision.
const BETWEEN: Duration = Duration::from_millis(1);

/// The pause between two probes.
const PAUSE: Duration = Duration::from_millis(20);

/// An event that is not visible after this long is missing.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Sends events of new domains, one after another, for as long as `goes_on` says so.
pub(crate) async fn probe(
    ingest_url: &str,
    query_address: &str,
    goes_on: impl Fn() -> bool,
) -> anyhow::Result<SideResult> {
    let (micros, sent) = (RefCell::new(histogram()), RefCell::new(0));
    let probing = (0..AT_ONCE).map(async |prober| {
        let http = HttpClient::with_keep_alive();
        let mut number = 0;
        while goes_on() {
            let domain = format!("probe{prober}-{number}.example");
            number += 1;
            let accepted = put(&http, &format!("{ingest_url}/events/{domain}/delivered")).await?;
            *sent.borrow_mut() += 1;
            while !is_counted(&http, &format!("http://{query_address}/domains/{domain}")).await? {
                ensure!(accepted.elapsed() < TIMEOUT, "{domain} is not visible after {TIMEOUT:?}");
                tokio::time::sleep(BETWEEN).await;
            }
            let took = u64::try_from(accepted.elapsed().as_micros())?;
            micros.borrow_mut().saturating_record(took);
            tokio::time::sleep(PAUSE).await;
        }
        anyhow::Ok(())
    });
    try_join_all(probing).await?;
    let delivered = *sent.borrow();
    let sent = Counts { delivered, bounced: 0 };
    let latency = latency(&micros.borrow());
    let notes = vec![format!("latency: from the 202 to the GET that shows it, {delivered} probes")];
    Ok(SideResult { sent, latency_ms: Some(latency), notes, ..SideResult::default() })
}

/// Sends the event of a probe. Returns when it was accepted.
pub(crate) async fn put(http: &HttpClient, url: &str) -> anyhow::Result<Instant> {
    let answer = http.send(Request::put(url).body(Full::<Bytes>::default())?, TIMEOUT).await;
    let (status, body) = answer.map_err(|error| anyhow!(error))?;
    ensure!(status == StatusCode::ACCEPTED, "a probe was answered {status}: {body}");
    Ok(Instant::now())
}

async fn is_counted(http: &HttpClient, url: &str) -> anyhow::Result<bool> {
    #[derive(Deserialize)]
    struct Served {
        delivered: u64,
    }
    let (status, body) = http.get(url, TIMEOUT).await.map_err(|error| anyhow!(error))?;
    ensure!(status == StatusCode::OK, "{url} was answered {status}: {body}");
    let served: Served = serde_json::from_str(&body)?;
    Ok(served.delivered > 0)
}
