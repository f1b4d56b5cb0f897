//! Serving: the routes of ingest and query, with the data file behind them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use anyhow::Context;

use super::command::ServeConfig;
use crate::health::Health;
use crate::process::{ExitError, Process};
use crate::store::sqlite::FileStore;
use crate::{http, ingest, query};

/// The beginning of the document of its requests.
const ABOUT: http::About = http::About {
    title: "catchall",
    description: "Takes delivery events, and tells you which e-mail domains are catch-alls.",
    address: "127.0.0.1:8080",
};

/// Opens the data file, binds, and serves until the shutdown and the grace period after it.
pub(super) async fn serve(mut config: ServeConfig, process: Process) -> anyhow::Result<()> {
    let guard = config.guard.load(Some(&config.http), &config.ops, Some(&config.intake.rates))?;
    let capacity = config.intake.max_waiting_events() * usize::from(config.http.threads);
    let store = FileStore::open(&config.data, capacity).await.map_err(ExitError::from)?;
    let (sockets, ops) = (config.http.bind_alone()?, config.ops.bind()?);
    let socketmap = config.socketmap.bind_alone(&config.guard)?;
    // All queries use the threshold of the file from here on.
    if let Some(threshold) = config.lookup.take_threshold() {
        store.set_threshold(threshold).await.map_err(ExitError::from)?;
    }
    let health = Health::default();
    greet(&store, &guard, sockets[0].local_addr()?, ops.local_addr()?);
    let (budget, shared) = (config.intake.budget(), query::SharedByThreads::default());
    let store = Arc::new(store);
    let readers = usize::from(config.http.threads) + usize::from(socketmap.is_some());
    let reads = query::READS_AT_ONCE as usize;
    let mail = socketmap.map(|socketmap| {
        let reader = {
            let store = Arc::clone(&store);
            move || store.reader(readers, reads)
        };
        let dependency = health.dependency("data file");
        query::serve_socketmap(socketmap, &config.lookup, reader, dependency, process.shutdown.clone())
    });
    let router = {
        let (config, store, health) = (config.clone(), Arc::clone(&store), health.clone());
        let stop = process.shutdown.clone();
        move || {
            let events = ingest::routes(&config.intake, &budget, store.writer());
            let (reader, dependency) = (store.reader(readers, reads), health.dependency("data file"));
            let domains = query::routes(&config.lookup, reader, dependency, &shared, stop.clone());
            http::documented(ABOUT, events.merge(domains))
        }
    };
    let writer = health.dependency("data file");
    let stop = process.shutdown.clone();
    let serving = http::serve_per_thread(sockets, &config.http, &guard, router, &health, stop);
    let served = tokio::select! {
        served = query::both(serving, mail) => served,
        served = http::serve_ops(ops, &guard, health.clone(), process.metrics, process.shutdown) => {
            served.context("the operations routes")
        }
        () = store.run(&config.retention, writer) => Ok(()),
    };
    store.close().await;
    served
}

/// Logs the addresses and a command to try.
fn greet(store: &FileStore, guard: &http::Guard, listen: SocketAddr, ops_listen: SocketAddr) {
    tracing::info!(version = env!("CARGO_PKG_VERSION"), "catchall {}", env!("CARGO_PKG_VERSION"));
    let data = store.path().display();
    tracing::info!(%data, "its data is in {data}");
    tracing::info!(%listen, %ops_listen, "taking events and answering queries");
    let url = format!("{}://{}", guard.scheme(), reachable(listen));
    let token = if guard.asks_for_tokens() { "-H 'Authorization: Bearer TOKEN' " } else { "" };
    tracing::info!("look: {url}/");
    tracing::info!("try: curl -X PUT {token}{url}/events/example.com/delivered");
}

/// An address at which this machine reaches a socket that listens at `address`.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(match address.ip() {
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    address
}
