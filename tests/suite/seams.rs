//! One suite for both backends of the two seams: where batches go, and where what is known is read.

use std::sync::Arc;
use std::time::Duration;

use catchall::batch::Batch;
use catchall::broker::{BrokerConfig, Publisher};
use catchall::counters::Counters;
use catchall::domain_name::DomainName;
use catchall::event::{Event, Outcome};
use catchall::health::Health;
use catchall::store::replica::{Replica, ReplicaConfig};
use catchall::store::sqlite::{DataConfig, FileStore};
use catchall::store::{BatchSink, DomainSource, EventRetention};
use harness::processes::Service;
use harness::servers::{Servers, eventually};
use harness::system::data_file;
use tokio::time::Instant;

/// Rows that may wait for the data file.
const CAPACITY: usize = 100_000;

const TIMEOUT: Duration = Duration::from_secs(30);

fn name(name: &str) -> DomainName {
    DomainName::parse(name).unwrap()
}

fn event(domain: &str, outcome: Outcome, count: u64, key: Option<&str>) -> Event {
    Event { domain: name(domain), outcome, count, key: key.map(|key| key.parse().unwrap()) }
}

fn batch(events: impl IntoIterator<Item = Event>) -> Batch {
    let mut batch = Batch::default();
    events.into_iter().for_each(|event| batch.record(event));
    batch
}

/// A backend: both seams, and whether a read that begins after an event was accepted must see it.
struct Backend<S, C> {
    sink: S,
    source: C,
    reads_at_once: bool,
}

impl<S: BatchSink, C: DomainSource> Backend<S, C> {
    async fn accept(&self, events: impl IntoIterator<Item = Event>) {
        self.sink.accept(batch(events), Instant::now() + TIMEOUT).await.unwrap();
    }

    async fn has(&self, expected: &[(&str, u64, u64)]) {
        let names: Vec<DomainName> = expected.iter().map(|(domain, ..)| name(domain)).collect();
        let counters: Vec<Counters> =
            expected.iter().map(|&(_, delivered, bounced)| Counters { delivered, bounced }).collect();
        let read = async || {
            let known = self.source.look_up(&names).await.unwrap();
            known.into_iter().map(|known| known.counters).collect::<Vec<_>>()
        };
        if self.reads_at_once {
            assert_eq!(read().await, counters, "{names:?}");
            return;
        }
        eventually("all is counted", async || (read().await == counters).then_some(())).await;
    }

    /// Everything that holds of both backends.
    async fn keeps_its_word(&self) {
        use Outcome::{Bounced, Delivered};
        assert_eq!(self.source.look_up(&[]).await.unwrap(), []);
        self.has(&[("never-seen.com", 0, 0)]).await;

        // Sums of both outcomes, over several batches, read in any order and more than once.
        self.accept([event("b.com", Delivered, 2, None), event("a.com", Bounced, 1, None)]).await;
        self.accept([event("b.com", Delivered, 3, None), event("b.com", Bounced, 4, None)]).await;
        self.has(&[("b.com", 5, 4), ("none.com", 0, 0), ("a.com", 0, 1), ("b.com", 5, 4)]).await;

        // A key counts once, within a batch and across batches, with or without company.
        let keyed = || event("keyed.com", Delivered, 7, Some("the key"));
        let other = || event("keyed.com", Bounced, 1, Some("0192f3a4-7c00-7000-8000-00000000beef"));
        self.accept([keyed(), keyed()]).await;
        self.accept([keyed()]).await;
        self.accept([other(), event("keyed.com", Delivered, 1, None), keyed(), other()]).await;
        self.accept([event("elsewhere.com", Bounced, 9, Some("the key"))]).await;
        self.accept([event("last.com", Delivered, 1, None)]).await;
        self.has(&[("last.com", 1, 0)]).await;
        self.has(&[("keyed.com", 8, 1), ("elsewhere.com", 0, 0)]).await;

        // A sum stops at the end of the integers.
        let most = catchall::event::MAX_COUNT;
        let full = u64::try_from(i64::MAX).unwrap();
        let sums = (0..full / most + 2).take(3).map(|_| event("full.com", Delivered, most, None));
        self.accept(sums.collect::<Vec<_>>()).await;
        self.has(&[("full.com", 3 * most, 0)]).await;

        // Many domains at a time, at the edges of what a name can be.
        let longest = format!("{0}.{0}.{0}.{1}", "x".repeat(63), "y".repeat(61));
        let names: Vec<String> = (0..3000).map(|number| format!("d{number}.com")).collect();
        let all = || names.iter().map(String::as_str).chain([&*longest, "xn--mller-kva.de"]);
        self.accept(all().map(|domain| event(domain, Delivered, 1, None))).await;
        self.has(&all().map(|domain| (domain, 1, 0)).collect::<Vec<_>>()).await;
    }

    /// The last changes are the end of the feed, the other way round.
    async fn knows_its_latest(&self, lags: bool) {
        let domains = ["first.com", "second.com", "third.com"];
        for domain in domains {
            self.accept([event(domain, Outcome::Bounced, 1, None)]).await;
            self.has(&[(domain, 0, 1)]).await;
        }
        let latest = eventually("the last ones are in the feed", async || {
            let latest = self.source.latest(3).await.unwrap().changes;
            (latest.first()?.report.domain.as_str() == "third.com").then_some(latest)
        });
        let latest = latest.await;
        let names: Vec<_> = latest.iter().rev().map(|change| change.report.domain.as_str()).collect();
        assert_eq!(names, domains);
        let mut after = self.source.changes(latest[2].place.clone(), 10).await.unwrap().changes;
        after.reverse();
        assert_eq!(after, latest[..2]);
        assert_eq!(self.source.latest(1).await.unwrap().changes, latest[..1]);
        assert_eq!(self.source.latest(5).await.unwrap().changes[..3], latest);
        let standing = self.source.standing().await.unwrap();
        assert_eq!((standing.threshold, standing.lag.is_some()), (1000, lags));
    }

    /// Batches that are accepted at the same time.
    async fn counts_what_comes_at_once(&self) {
        let batches = (0..50).map(|number| {
            let key = format!("key {}", number / 2);
            self.accept([
                event("crowd.com", Outcome::Delivered, 1, None),
                event("crowd.com", Outcome::Bounced, 1, Some(&key)),
            ])
        });
        futures::future::join_all(batches).await;
        self.has(&[("crowd.com", 50, 25)]).await;
    }
}

#[tokio::test]
async fn the_broker_and_the_replica_keep_their_word() {
    let servers = Servers::fresh().await;
    let _worker = Service::ready("worker", &servers, &[]).await;
    let broker = BrokerConfig::new(servers.amqp_url.parse().unwrap());
    let health = Health::default();
    let sink = Publisher::connect(broker, "catchall-tests".into(), health.dependency("broker"), TIMEOUT);
    let replica = ReplicaConfig { replica_url: servers.replica_url.parse().unwrap() };
    let backend = Backend { sink, source: Replica::new(&replica, 2), reads_at_once: false };
    assert_eq!(backend.source.latest(5).await.unwrap().changes, []);
    backend.keeps_its_word().await;
    backend.knows_its_latest(true).await;
    backend.counts_what_comes_at_once().await;
}

#[tokio::test]
async fn the_data_file_keeps_its_word_also_after_it_was_closed() {
    let config = DataConfig { data: data_file() };
    let store = Arc::new(FileStore::open(&config, CAPACITY).await.unwrap());
    let health = Health::default();
    let retention = EventRetention { event_retention_secs: 3600 };
    let run = {
        let (store, retention) = (Arc::clone(&store), retention.clone());
        let dependency = health.dependency("data file");
        tokio::spawn(async move { store.run(&retention, dependency).await })
    };
    let backend = Backend { sink: store.writer(), source: store.reader(1, 2), reads_at_once: true };
    assert_eq!(backend.source.latest(5).await.unwrap().changes, []);
    backend.keeps_its_word().await;
    backend.knows_its_latest(false).await;
    backend.counts_what_comes_at_once().await;
    run.abort();
    assert!(run.await.unwrap_err().is_cancelled());
    drop(backend);
    store.close().await;
    let log = std::fs::metadata(config.data.with_extension("db-wal")).map_or(0, |log| log.len());
    assert_eq!(log, 0, "all of it is in the file");
    drop(store);

    let store = FileStore::open(&config, CAPACITY).await.unwrap();
    let backend = Backend { sink: store.writer(), source: store.reader(1, 2), reads_at_once: true };
    backend.has(&[("b.com", 5, 4), ("keyed.com", 8, 1), ("crowd.com", 50, 25)]).await;
    tokio::select! {
        () = store.run(&retention, health.dependency("data file")) => {}
        () = backend.accept([event("crowd.com", Outcome::Bounced, 1, Some("key 0"))]) => {}
    }
    backend.has(&[("crowd.com", 50, 25)]).await;
}
