//! Makes domains change their status, and follows the feed of changes, while a fault lasts.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use catchall::counters::Status;
use harness::http::HttpClient;
use http_body_util::Full;
use hyper::{Request, StatusCode};
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::standalone::Standalone;
use crate::subject::Subject;

/// How often a request is sent that makes domains change their status.
const EVERY: Duration = Duration::from_millis(50);

/// A domain is first a catch-all, and so many requests later no more.
const LATER: u64 = 20;

/// How long a request may take.
const TIMEOUT: Duration = Duration::from_secs(5);

/// How long the feed may take to catch up after the fault. It waits for transactions that a fault left open.
const CATCH_UP: Duration = Duration::from_secs(90);

/// What a follower has heard.
#[derive(Debug, Default)]
struct Heard {
    /// The latest status of each domain.
    statuses: HashMap<String, Status>,
    position: Option<String>,
    /// Changes that came after a later one of the same domain.
    out_of_order: Vec<String>,
    /// How often its position was refused as one of another feed, after which it began anew.
    begun_anew: u64,
}

/// Sends and follows until it is stopped.
pub(crate) struct Feed {
    heard: Arc<Mutex<Heard>>,
    stop: Arc<AtomicBool>,
    following: tokio::task::JoinHandle<()>,
    sending: tokio::task::JoinHandle<()>,
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.following.abort();
        self.sending.abort();
    }
}

impl Feed {
    /// Begins at the beginning of the feed.
    pub(crate) fn start(subject: &Subject, label: &str) -> Self {
        let (heard, stop) = (Arc::<Mutex<Heard>>::default(), Arc::<AtomicBool>::default());
        let following = follow(subject.domains_url().to_owned(), Arc::clone(&heard));
        let sending = send(subject.events_url().to_owned(), label.to_owned(), Arc::clone(&stop));
        Self { heard, stop, following: tokio::spawn(following), sending: tokio::spawn(sending) }
    }

    /// Stops to send, and says what is wrong with what was heard, and with statuses and totals.
    pub(crate) async fn end(mut self, subject: &mut Subject) -> Result<Vec<String>> {
        self.stop.store(true, Ordering::Relaxed);
        (&mut self.sending).await.context("the sender of changes")?;
        let mut failures = Vec::new();
        let wrong = subject.text(WRONG).await?;
        if !wrong.is_empty() {
            failures.push(format!("totals or statuses are not those of a recount: {wrong}"));
        }
        let noted = noted(subject).await?;
        let heard = async || Ok(self.heard.lock().expect("nobody panics with it").statuses.clone());
        failures.extend(lost("in the feed", &noted, heard).await?);
        if let Subject::Cluster(Cluster { published, servers, .. }) = subject {
            let mut wrong = Vec::new();
            let taken = async || {
                wrong.extend(published.take(servers).await?);
                Ok(published.statuses())
            };
            failures.extend(lost("published", &noted, taken).await?);
            if let Some(first) = wrong.first() {
                failures.push(format!("{} changes were published out of order, as {first}", wrong.len()));
            }
        }
        let heard = self.heard.lock().expect("nobody panics with it");
        if let Some(first) = heard.out_of_order.first() {
            failures.push(format!("{} changes came out of order, as {first}", heard.out_of_order.len()));
        }
        let moves = matches!(subject, Subject::Standalone(Standalone { cluster: Some(_), .. }));
        if heard.begun_anew != u64::from(moves) {
            failures.push(format!("the feed refused its own position {} times", heard.begun_anew));
        }
        if heard.statuses.is_empty() {
            failures.push("the feed had nothing".into());
        }
        Ok(failures)
    }
}

/// Waits until `known` has all noted statuses. Returns a sentence about those still missing after
/// [`CATCH_UP`].
async fn lost(
    there: &str,
    noted: &HashMap<String, Status>,
    mut known: impl AsyncFnMut() -> Result<HashMap<String, Status>>,
) -> Result<Option<String>> {
    let begun = Instant::now();
    loop {
        let known = known().await?;
        let is_behind =
            |(domain, status): &(&String, &Status)| known.get(*domain).is_none_or(|known| known < status);
        let mut missing = noted.iter().filter(is_behind);
        let Some((domain, status)) = missing.next() else { return Ok(None) };
        if begun.elapsed() > CATCH_UP {
            let (number, status) = (1 + missing.count(), status.name());
            return Ok(Some(format!("{number} changes were not {there}, as {domain} {status}")));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Sends events that change a status, each under a key. Whether they are accepted does not matter here.
async fn send(url: String, label: String, stop: Arc<AtomicBool>) {
    let client = HttpClient::with_keep_alive();
    for number in 0_u64.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let domain = |number: u64| format!("f{number}.{label}.feed.test");
        let id = format!("{label} feed {number}");
        let decides = json!({"domain": domain(number), "event": "delivered", "count": 1001, "id": id});
        let mut events = vec![decides];
        if let Some(earlier) = number.checked_sub(LATER) {
            let id = format!("{label} feed end {earlier}");
            events.push(json!({"domain": domain(earlier), "event": "bounced", "id": id}));
        }
        let request = Request::post(format!("{url}/events"))
            .header("content-type", "application/json")
            .body(Value::from(events).to_string().into());
        let _ = client.send(request.expect("it is a request"), TIMEOUT).await;
        tokio::time::sleep(EVERY).await;
    }
}

/// Asks again and again for what came after the last position, whatever happens to the one who answers.
async fn follow(url: String, heard: Arc<Mutex<Heard>>) {
    let client = HttpClient::with_keep_alive();
    loop {
        let since = heard.lock().expect("nobody panics with it").position.clone();
        let since = since.map(|since| format!("&since={since}")).unwrap_or_default();
        let url = format!("{url}/changes?limit=1000&wait=1{since}");
        match client.get(&url, TIMEOUT).await {
            Ok((StatusCode::OK, body)) => {
                if let Ok(page) = serde_json::from_str(&body) {
                    note(&mut heard.lock().expect("nobody panics with it"), &page);
                }
            }
            Ok((StatusCode::GONE, _)) => {
                let mut heard = heard.lock().expect("nobody panics with it");
                (heard.position, heard.begun_anew) = (None, heard.begun_anew + 1);
            }
            _ => tokio::time::sleep(EVERY).await,
        }
    }
}

fn note(heard: &mut Heard, page: &Value) {
    for change in page["changes"].as_array().into_iter().flatten() {
        let (Some(domain), Some(status)) = (change["domain"].as_str(), change["status"].as_str()) else {
            heard.out_of_order.push(format!("no change: {change}"));
            continue;
        };
        let status: Status = status.parse().unwrap_or_default();
        let before = heard.statuses.insert(domain.to_owned(), status);
        if before.is_some_and(|before| before > status) {
            heard.out_of_order.push(format!("{domain} {}", status.name()));
        }
    }
    heard.position = page["position"].as_str().map(str::to_owned);
}

/// What is noted of each domain that is something, wherever it is kept now.
async fn noted(subject: &Subject) -> Result<HashMap<String, Status>> {
    let client = HttpClient::with_keep_alive();
    let mut found = HashMap::new();
    for status in [Status::CatchAll, Status::NotCatchAll] {
        let url = format!("{}/domains?status={}", subject.domains_url(), status.slug());
        let list = list(&client, &url).await?;
        let names = list.lines().skip(1).filter_map(|row| row.split(',').next());
        found.extend(names.map(|name| (name.to_owned(), status)));
    }
    Ok(found)
}

/// A list as CSV.
async fn list(client: &HttpClient, url: &str) -> Result<String> {
    let request = Request::get(url).header("accept", "text/csv").body(Full::default())?;
    match client.send(request, CATCH_UP).await.map_err(|reason| anyhow!("{reason}"))? {
        (StatusCode::OK, list) => Ok(list),
        answer => bail!("a list was answered with {answer:?}"),
    }
}

/// What is wrong with totals and statuses, from one snapshot: nothing, or the figures. PostgreSQL and SQLite
/// both read it.
const WRONG: &str = "\
select concat(
    (select case when noted <> counted then concat('totals ', noted, ', recount ', counted) end
    from (select concat_ws(' ',
            sum(domains), sum(catch_all), sum(not_catch_all), sum(delivered), sum(bounced)) as noted
        from totals) as noted,
        (select concat_ws(' ', count(*), count(*) filter (where bounced = 0 and delivered > 1000),
            count(*) filter (where bounced > 0), sum(delivered), sum(bounced)) as counted
        from domain_counters) as counted),
    (select case when count(*) > 0 then concat(count(*), ' statuses, as ', min(domain)) end
    from domain_counters as c full join domain_statuses as s using (domain)
    where coalesce(s.status, 0) <> case when c.bounced > 0 then 2 when c.delivered > 1000 then 1 else 0 end))";
