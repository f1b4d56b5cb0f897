//! Measures the time from the 202 of the event that decides a domain to the feed's entry about it.

use std::cell::RefCell;
use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::{anyhow, ensure};
use catchall_load::counts::Counts;
use harness::http::HttpClient;
use hyper::StatusCode;
use serde_json::Value;

use crate::measure::SideResult;
use crate::prober::put;
use crate::stats::{histogram, latency};

/// The pause between two probes.
const PAUSE: Duration = Duration::from_millis(40);

/// A change that is not in the feed after this long is missing.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Bounces new domains, one after another, for so many seconds, and waits for the changes by long polls.
pub(crate) async fn probe(ingest_url: &str, query_address: &str, seconds: u64) -> anyhow::Result<SideResult> {
    let until = Instant::now() + Duration::from_secs(seconds);
    let accepted: RefCell<HashMap<String, Instant>> = RefCell::default();
    let (micros, done) = (RefCell::new(histogram()), RefCell::new(false));
    let feed = format!("http://{query_address}/changes");
    let reader = HttpClient::with_keep_alive();
    let mut position = page(&reader, &format!("{feed}?since=now")).await?.1;
    let sending = async {
        let http = HttpClient::with_keep_alive();
        let mut number = 0_u64;
        while Instant::now() < until {
            let domain = format!("change{number}.example");
            number += 1;
            let at = put(&http, &format!("{ingest_url}/events/{domain}/bounced")).await?;
            accepted.borrow_mut().insert(domain, at);
            tokio::time::sleep(PAUSE).await;
        }
        *done.borrow_mut() = true;
        anyhow::Ok(number)
    };
    let reading = async {
        let mut last = Instant::now();
        while !*done.borrow() || !accepted.borrow().is_empty() {
            let (changes, next) =
                page(&reader, &format!("{feed}?limit=1000&wait=1&since={position}")).await?;
            position = next;
            for domain in changes {
                // The entry can come before the sender has seen its 202.
                if let Some(accepted) = accepted.borrow_mut().remove(&domain) {
                    let took = u64::try_from(accepted.elapsed().as_micros())?;
                    micros.borrow_mut().saturating_record(took);
                    last = Instant::now();
                } else if domain.starts_with("change") {
                    micros.borrow_mut().saturating_record(0);
                    last = Instant::now();
                }
            }
            ensure!(last.elapsed() < TIMEOUT, "no change was in the feed for {TIMEOUT:?}");
            if *done.borrow() && last.elapsed() > Duration::from_secs(5) {
                break;
            }
        }
        anyhow::Ok(())
    };
    let (bounced, ()) = tokio::try_join!(sending, reading)?;
    let latency = latency(&micros.borrow());
    let seen = micros.borrow().len();
    let notes = vec![format!("latency: from the 202 to the feed's entry, {seen} of {bounced} probes")];
    let wrong = bounced.saturating_sub(seen);
    let sent = Counts { delivered: 0, bounced };
    Ok(SideResult { sent, latency_ms: Some(latency), wrong, notes, ..SideResult::default() })
}

/// The domains of a page, and the position after it.
async fn page(http: &HttpClient, url: &str) -> anyhow::Result<(Vec<String>, String)> {
    let (status, body) = http.get(url, TIMEOUT).await.map_err(|error| anyhow!(error))?;
    ensure!(status == StatusCode::OK, "{url} was answered {status}: {body}");
    let page: Value = serde_json::from_str(&body)?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let changes = page["changes"].as_array().into_iter().flatten();
    Ok((changes.map(|change| text(&change["domain"])).collect(), text(&page["position"])))
}
