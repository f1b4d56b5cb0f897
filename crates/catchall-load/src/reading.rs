//! Counters as the query service serves them.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use futures::future::try_join_all;
use http::{Method, StatusCode};
use serde::Deserialize;

use crate::counts::Counts;
use crate::exchange::{Client, HttpRequest};
use crate::http2::{Http2, Http2Stream};
use crate::sender::backoff;
use crate::target::Target;
use crate::workload::Names;

/// Connections, and requests on each: enough for the server to answer in batches.
const CONNECTIONS: usize = 4;
const STREAMS: usize = 64;

/// What was read about a domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reading {
    /// Its counters.
    pub(crate) counters: Counts,
    /// Whether the status that was served with them follows the rule.
    pub(crate) status_is_right: bool,
}

/// Answers to a client without the right token.
const REFUSALS: [StatusCode; 2] = [StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN];

/// Reads counters, many domains at a time.
#[derive(Debug)]
pub(crate) struct CounterReader {
    streams: Vec<Http2Stream>,
    target: Target,
    names: Names,
    threshold: u64,
    retry_for: Duration,
}

impl CounterReader {
    /// Connects to the query service.
    ///
    /// # Errors
    ///
    /// When it cannot be reached.
    pub(crate) async fn connect(
        target: Target,
        names: Names,
        threshold: u64,
        timeout: Duration,
        retry_for: Duration,
    ) -> anyhow::Result<Self> {
        let mut streams = Vec::new();
        for _ in 0..CONNECTIONS {
            let connection = Http2::connect(target.clone(), STREAMS).await;
            let connection = connection.with_context(|| format!("cannot read counters at {target}"))?;
            streams.extend((0..STREAMS).map(|_| Rc::clone(&connection).stream(timeout)));
        }
        Ok(Self { streams, target, names, threshold, retry_for })
    }

    /// Reads each domain and calls `tell` with its index in `domains`, in any order.
    ///
    /// # Errors
    ///
    /// When a domain cannot be read within the time for retries.
    pub(crate) async fn read(
        &mut self,
        domains: &[u32],
        tell: impl FnMut(usize, Reading),
    ) -> anyhow::Result<()> {
        let Self { streams, target, names, threshold, retry_for } = self;
        let (next, tell) = (Cell::new(0), RefCell::new(tell));
        let (next, tell, names, threshold, retry_for) = (&next, &tell, *names, *threshold, *retry_for);
        let readers = streams.iter_mut().map(async |stream| {
            while let Some(domain) = domains.get(next.get()) {
                let place = next.replace(next.get() + 1);
                let reading = read(stream, &names.canonical(*domain), threshold, retry_for).await?;
                (tell.borrow_mut())(place, reading);
            }
            anyhow::Ok(())
        });
        try_join_all(readers).await.with_context(|| format!("cannot read counters at {target}"))?;
        Ok(())
    }
}

async fn read(
    stream: &mut Http2Stream,
    domain: &str,
    threshold: u64,
    retry_for: Duration,
) -> anyhow::Result<Reading> {
    let give_up = Instant::now() + retry_for;
    let mut delays = backoff();
    loop {
        let path = format!("/domains/{domain}");
        let reason = match stream.exchange(HttpRequest::new(Method::GET, path.into())).await {
            Ok(answer) if answer.status == StatusCode::OK => return reading(&answer.body, domain, threshold),
            // Another try would be refused like this one.
            Ok(answer) if REFUSALS.contains(&answer.status) => return Err(anyhow!(answer.reason())),
            Ok(answer) => answer.reason(),
            Err(failure) => failure.to_string(),
        };
        if Instant::now() >= give_up {
            return Err(anyhow!(reason));
        }
        tokio::time::sleep(delays.next().unwrap_or_default()).await;
    }
}

fn reading(body: &[u8], domain: &str, threshold: u64) -> anyhow::Result<Reading> {
    #[derive(Deserialize)]
    struct Served<'a> {
        domain: &'a str,
        status: &'a str,
        delivered: u64,
        bounced: u64,
    }

    let served = serde_json::from_slice::<Served>(body).ok().filter(|served| served.domain == domain);
    let Some(Served { status, delivered, bounced, .. }) = served else {
        return Err(anyhow!("asked for {domain}, it says {:?}", String::from_utf8_lossy(body)));
    };
    let counters = Counts { delivered, bounced };
    Ok(Reading { counters, status_is_right: status == counters.status(threshold) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_is_held_against_the_counters_it_came_with() {
        let body = |status, delivered, bounced| {
            format!(r#"{{"domain":"a.com","status":"{status}","delivered":{delivered},"bounced":{bounced}}}"#)
        };
        for (status, delivered, bounced, right) in [
            ("unknown", 1000, 0, true),
            ("catch-all", 1001, 0, true),
            ("not catch-all", 1001, 1, true),
            ("unknown", 1001, 0, false),
            ("catch-all", 1000, 0, false),
            ("catch-all", 1001, 1, false),
            ("catchall", 1001, 0, false),
        ] {
            let reading = reading(body(status, delivered, bounced).as_bytes(), "a.com", 1000).unwrap();
            let counters = Counts { delivered, bounced };
            assert_eq!(reading, Reading { counters, status_is_right: right }, "{status}");
        }
    }

    #[test]
    fn another_domains_counters_are_no_answer() {
        let body = br#"{"domain":"b.com","status":"unknown","delivered":0,"bounced":0}"#;
        assert!(reading(body, "a.com", 1000).is_err());
        assert!(reading(b"", "a.com", 1000).is_err());
    }
}
