//! Reads counters over HTTP/1.1 with keep-alive, in a closed loop or at a fixed rate.
//!
//! It runs as a separate process, so that its own processor time can be measured.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, ensure};
use bytes::Bytes;
use catchall_load::Latency;
use catchall_load::pace::{Pace, Rate};
use catchall_load::workload::{Names, Shape, Workload};
use harness::load::JsonProcess;
use hdrhistogram::Histogram;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;
use tokio::runtime::{Builder, LocalOptions};
use tokio::task::JoinSet;

use crate::baseline::myself;
use crate::stats::{histogram, latency};

/// The options of the reader.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ReaderConfig {
    #[arg(long)]
    pub(crate) address: SocketAddr,
    /// Number of domains to read from
    #[arg(long)]
    pub(crate) domains: u32,
    /// Reads per second; without it a closed loop
    #[arg(long)]
    pub(crate) rate: Option<f64>,
    #[arg(long)]
    pub(crate) seconds: u64,
    #[arg(long, default_value_t = 64)]
    pub(crate) connections: usize,
}

/// The result.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Reads {
    /// Reads that were answered with the counters of the domain.
    pub(crate) answered: u64,
    /// Reads that were answered with anything else.
    pub(crate) wrong: u64,
    /// The first wrong answer.
    pub(crate) example: Option<String>,
    /// Seconds until the last answer.
    pub(crate) seconds: f64,
    pub(crate) latency_ms: Latency,
}

/// Reads in a separate process. Returns the result and its processor time in microseconds.
pub(crate) async fn read(config: &ReaderConfig) -> anyhow::Result<(Reads, f64)> {
    let mut command = myself("reader")?;
    command.args(["--address", &config.address.to_string(), "--domains", &config.domains.to_string()]);
    command.args(["--seconds", &config.seconds.to_string()]);
    command.args(["--connections", &config.connections.to_string()]);
    if let Some(rate) = config.rate {
        command.args(["--rate", &rate.to_string()]);
    }
    let mut reader = JsonProcess::start(&mut command).context("cannot start a reader")?;
    reader.ended().await.context("the reader")
}

/// The main function of the reader process.
pub(crate) fn main(config: &ReaderConfig) -> anyhow::Result<()> {
    let runtime = Builder::new_current_thread().enable_all().build_local(LocalOptions::default())?;
    let reads = runtime.block_on(run(config))?;
    println!("{}", serde_json::to_string(&reads)?);
    Ok(())
}

struct ReadRun {
    pace: Option<Pace>,
    until: Instant,
    state: RefCell<ReadState>,
}

struct ReadState {
    domains: Workload,
    /// How many reads were begun.
    begun: u64,
    answered: u64,
    wrong: u64,
    example: Option<String>,
    last: Instant,
    micros: Histogram<u64>,
}

async fn run(config: &ReaderConfig) -> anyhow::Result<Reads> {
    let mut connections = Vec::new();
    for _ in 0..config.connections {
        connections.push(connect(config.address).await?);
    }
    let begun = Instant::now();
    // An open loop begins only the reads that are due within the time.
    #[expect(clippy::cast_precision_loss, reason = "seconds are few")]
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rate is not negative")]
    let requests = |rate: f64| (rate * config.seconds as f64) as u64;
    let pace = config.rate.map(|rate| Pace::begin(Rate::per_second(rate), requests(rate))).transpose()?;
    let run = Rc::new(ReadRun {
        pace,
        until: begun + Duration::from_secs(config.seconds),
        state: RefCell::new(ReadState {
            domains: Workload::new(Shape::Uniform, 1, config.domains),
            begun: 0,
            answered: 0,
            wrong: 0,
            example: None,
            last: begun,
            micros: histogram(),
        }),
    });
    let mut readers = JoinSet::new();
    for connection in connections {
        readers.spawn_local(ask(Rc::clone(&run), connection, config.address));
    }
    let in_time = tokio::time::timeout_at(run.until.into(), async {
        while let Some(ended) = readers.join_next().await {
            ended??;
        }
        anyhow::Ok(())
    });
    if let Ok(ended) = in_time.await {
        ended?;
    }
    if let Some(pace) = &run.pace {
        pace.stop();
    }
    // Waits for the reads in flight.
    while let Some(ended) = readers.join_next().await {
        ended??;
    }
    let state = run.state.borrow();
    ensure!(state.answered > 0, "nothing was answered: {:?}", state.example);
    Ok(Reads {
        answered: state.answered,
        wrong: state.wrong,
        example: state.example.clone(),
        seconds: state.last.duration_since(begun).as_secs_f64(),
        latency_ms: latency(&state.micros),
    })
}

async fn connect(address: SocketAddr) -> anyhow::Result<SendRequest<Empty<Bytes>>> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let (requests, connection) = handshake(TokioIo::new(stream)).await?;
    // Its errors are reported to the request in flight.
    tokio::task::spawn_local(connection);
    Ok(requests)
}

/// Reads over one connection until the time is over.
async fn ask(
    run: Rc<ReadRun>,
    mut connection: SendRequest<Empty<Bytes>>,
    address: SocketAddr,
) -> anyhow::Result<()> {
    loop {
        if let Some(pace) = &run.pace {
            if !pace.wait().await {
                return Ok(());
            }
        } else if Instant::now() >= run.until {
            return Ok(());
        }
        let (due, domain) = run.state.borrow_mut().next(run.pace.as_ref());
        let name = Names::Population.canonical(domain);
        let request = Request::get(format!("/domains/{name}")).header(header::HOST, address.to_string());
        connection.ready().await?;
        let (head, body) = connection.send_request(request.body(Empty::new())?).await?.into_parts();
        let body = body.collect().await?.to_bytes();
        let now = Instant::now();
        let right = head.status == StatusCode::OK && is_about(&body, &name).is_ok();
        let state = &mut *run.state.borrow_mut();
        state.last = now;
        if right {
            state.answered += 1;
            let micros = now.saturating_duration_since(due).as_micros();
            state.micros.saturating_record(u64::try_from(micros).unwrap_or(u64::MAX));
        } else {
            state.wrong += 1;
            state.example.get_or_insert_with(|| format!("{}: {}", head.status, body.escape_ascii()));
        }
    }
}

impl ReadState {
    /// When the next read was due, and its domain.
    fn next(&mut self, pace: Option<&Pace>) -> (Instant, u32) {
        let due = pace.map_or_else(Instant::now, |pace| pace.moment(self.begun));
        self.begun += 1;
        (due, self.domains.draw().domain)
    }
}

/// Checks that an answer is about this domain and that it has been counted.
fn is_about(body: &[u8], name: &str) -> anyhow::Result<()> {
    #[derive(Deserialize)]
    struct Served<'a> {
        domain: &'a str,
        delivered: u64,
        bounced: u64,
    }
    let served: Served<'_> = serde_json::from_slice(body)?;
    if served.domain == name && served.delivered + served.bounced > 0 {
        return Ok(());
    }
    Err(anyhow!("another domain, or one that was never seen"))
}
