//! Reads counters over HTTP/1.1 with keep-alive, in a closed loop or at a fixed rate.
//!
//! It runs as a separate process, so that its own processor time can be measured.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use bytes::Bytes;
use catchall_load::Latency;
use catchall_load::pace::{Pace, Rate};
use catchall_load::workload::{Names, Shape, Workload};
use clap::ValueEnum;
use harness::load::JsonProcess;
use hdrhistogram::Histogram;
use http_body_util::Full;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;
use tokio::runtime::{Builder, LocalOptions};
use tokio::task::JoinSet;

use crate::myself::myself;
use crate::question::Question;
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
    /// What to ask
    #[arg(long, value_enum)]
    pub(crate) question: Question,
}

/// The result.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Reads {
    /// Reads that were answered as they should be. A read of many things counts as many.
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
    let question = config.question.to_possible_value().context("every question has a name")?;
    command.args(["--question", question.get_name()]);
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
        readers.spawn_local(ask(Rc::clone(&run), connection, config.address, config.question));
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

async fn connect(address: SocketAddr) -> anyhow::Result<SendRequest<Full<Bytes>>> {
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
    mut connection: SendRequest<Full<Bytes>>,
    address: SocketAddr,
    question: Question,
) -> anyhow::Result<()> {
    let host = address.to_string();
    loop {
        if let Some(pace) = &run.pace {
            if !pace.wait().await {
                return Ok(());
            }
        } else if Instant::now() >= run.until {
            return Ok(());
        }
        let (due, names) = run.state.borrow_mut().next(run.pace.as_ref(), question.draws());
        let request = question.request(&names, &host)?;
        connection.ready().await?;
        let answer = connection.send_request(request).await?;
        let answered = question.answered(answer, &names).await;
        let now = Instant::now();
        let state = &mut *run.state.borrow_mut();
        state.last = now;
        match answered {
            Ok(count) => {
                state.answered += count;
                let micros = now.saturating_duration_since(due).as_micros();
                state.micros.saturating_record(u64::try_from(micros).unwrap_or(u64::MAX));
            }
            Err(error) => {
                state.wrong += 1;
                state.example.get_or_insert_with(|| format!("{error:#}"));
            }
        }
    }
}

impl ReadState {
    /// When the next read was due, and so many domains for it.
    fn next(&mut self, pace: Option<&Pace>, draws: usize) -> (Instant, Vec<String>) {
        let due = pace.map_or_else(Instant::now, |pace| pace.moment(self.begun));
        self.begun += 1;
        let domains = (0..draws).map(|_| Names::Population.canonical(self.domains.draw().domain));
        (due, domains.collect())
    }
}
