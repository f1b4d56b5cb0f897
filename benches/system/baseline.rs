//! The baselines: two small services on the HTTP server of ingest.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::put;
use catchall::domain_name::DomainName;
use catchall::event::Outcome;
use catchall::health::{Dependency, Health};
use catchall::{http, shutdown};
use futures::future::try_join_all;
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;

use crate::myself::myself;

/// Threads of ingest, query and the baselines. All processes share the cores, and with fewer threads more
/// events or names share a confirm or a query.
pub(crate) const THREADS: u16 = 1;

/// How many connections the naive design has to the primary. On two cores more do not make it faster.
const CONNECTIONS: u32 = 32;

/// The options of the naive design.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Naive {
    /// Where the primary is
    #[arg(long, env = "CATCHALL_DATABASE_URL", value_name = "URL", hide_env_values = true)]
    database_url: String,
}

/// The two baselines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Baseline {
    /// One upsert per PUT, and a 202 after its commit.
    Naive,
    /// A 202 for each PUT, without doing anything.
    Floor,
}

/// Serves until SIGTERM. Prints the address once it is ready.
pub(crate) fn serve(baseline: Baseline, naive: Option<&Naive>) -> anyhow::Result<()> {
    let config = http::HttpConfig::new(SocketAddr::from(([127, 0, 0, 1], 0)), THREADS, 10_000);
    let guard = http::Guard::open();
    let sockets = config.bind()?;
    let address = sockets[0].local_addr()?;
    let database_url = naive.map(|naive| naive.database_url.clone()).unwrap_or_default();
    let health = Health::default();
    let watched = health.clone();
    let router = move || match baseline {
        Baseline::Naive => naive_routes(&database_url, &watched),
        Baseline::Floor => {
            Router::new().route("/events/{domain}/{outcome}", put(async || StatusCode::ACCEPTED))
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let shutdown = shutdown::requested()?;
        let announcing = async {
            // Connections are accepted once every thread has registered its dependencies, perhaps before
            // these are available.
            while TcpStream::connect(address).is_err() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            health.ready().await;
            println!("{address}");
            std::io::stdout().flush()?;
            std::future::pending::<anyhow::Result<()>>().await
        };
        tokio::select! {
            served = http::serve_per_thread(sockets, &config, &guard, router, &health, shutdown) => served,
            failed = announcing => failed,
        }
    })
}

fn naive_routes(database_url: &str, health: &Health) -> Router {
    let pool = PgPoolOptions::new().max_connections(CONNECTIONS).connect_lazy(database_url);
    let pool = pool.expect("the URL was good enough to make the database");
    tokio::spawn(open(pool.clone(), health.dependency("primary")));
    Router::new().route("/events/{domain}/{outcome}", put(put_event)).with_state(pool)
}

/// Opens all connections before clients come: opening one costs as much as dozens of events.
async fn open(pool: PgPool, primary: Dependency) {
    // All at once, because one after the other would reuse the same connection.
    match try_join_all((0..CONNECTIONS).map(|_| pool.acquire())).await {
        Ok(_) => primary.up(),
        Err(error) => {
            eprintln!("naive: {error}");
            std::process::exit(1);
        }
    }
}

async fn put_event(
    State(pool): State<PgPool>,
    Path((domain, outcome)): Path<(String, String)>,
) -> StatusCode {
    let (Ok(domain), Ok(outcome)) = (DomainName::parse(&domain), outcome.parse::<Outcome>()) else {
        return StatusCode::BAD_REQUEST;
    };
    let bounced = i64::from(outcome == Outcome::Bounced);
    let counted =
        sqlx::query(UPSERT).bind(domain.as_str()).bind(1 - bounced).bind(bounced).execute(&pool).await;
    if counted.is_ok() { StatusCode::ACCEPTED } else { StatusCode::SERVICE_UNAVAILABLE }
}

const UPSERT: &str = "\
-- naive: count an event
insert into domain_counters as c (domain, delivered, bounced) values ($1, $2, $3)
on conflict (domain) do update set
    delivered = c.delivered + excluded.delivered,
    bounced = c.bounced + excluded.bounced,
    padding = null";

/// A running baseline. Dropping it kills the process.
pub(crate) struct BaselineProcess {
    child: Child,
    address: SocketAddr,
}

impl Drop for BaselineProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl BaselineProcess {
    /// Starts a baseline and returns once it is ready, which is when it prints its address.
    pub(crate) fn start(baseline: Baseline, database_url: &str) -> anyhow::Result<Self> {
        let part = if baseline == Baseline::Naive { "naive" } else { "floor" };
        let mut command = myself(part)?;
        command.env("CATCHALL_DATABASE_URL", database_url).stdout(Stdio::piped());
        let mut child = command.spawn().context("cannot start a baseline")?;
        let mut line = String::new();
        let stdout = child.stdout.take().context("its output is piped")?;
        BufReader::new(stdout).read_line(&mut line)?;
        let address = line.trim().parse().context("a baseline says where it listens");
        Ok(Self { child, address: address? })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}
