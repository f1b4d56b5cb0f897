//! Loads catchall: makes a workload, sends it, and checks that all of it was counted.
//!
//! It uses one event loop on one thread, because it shares the machine with the system it measures. A
//! [`workload`] generates events. Senders, one for each request that may be in flight, send them over a
//! connection and note the outcome in the stats and in the [`record`]. The verification reads every domain
//! before and after the run and compares.
//!
//! Latency is measured from the time an event was due. In a closed loop that is when the previous event was
//! answered. At a fixed rate it is the event's time in the schedule, so a server that stalls is charged for
//! all events that wait, not only for those in flight.

mod amqp;
mod body;
mod config;
pub mod counts;
mod draw;
mod exchange;
mod stats;
mod http1;
mod http2;
pub mod record;
pub mod pace;
mod population;
mod post;
mod reading;
mod report;
mod run;
mod sender;
mod access;
mod target;
mod verification;
mod waves;
pub mod workload;

use std::pin::{Pin, pin};
use std::rc::Rc;
use std::time::Instant;

use anyhow::Context;
use catchall_progress::HumanCount;
use futures::FutureExt;
use futures::future::try_join_all;
use tokio::task::JoinSet;

use crate::amqp::DirectPublisher;
use crate::config::{Plan, Via};
use crate::http1::Http1;
use crate::http2::Http2;
use crate::pace::{Pace, Rate};
use crate::post::{Bulk, Put};
use crate::reading::CounterReader;
use crate::record::SendRecord;
use crate::run::Run;
use crate::sender::{Transport, send};
use crate::verification::{Comparison, Snapshot};
use catchall_progress::{Display, Progress};

pub use crate::config::LoadConfig;
pub use crate::report::{ExitReason, Latency, Report};
pub use crate::verification::Verification;

/// The run was interrupted before there was anything to report.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("interrupted")]
pub struct Interrupted;

/// Sends the events, compares if asked to, and reports. An interrupt ends the sending early; what was sent is
/// still compared.
///
/// # Errors
///
/// When a server cannot be reached at the start, or counters cannot be read. [`Interrupted`] when the
/// interrupt comes before or after the sending.
pub async fn run(config: LoadConfig, interrupt: impl Future<Output = ()>) -> anyhow::Result<Report> {
    let plan = Plan::new(config);
    let names = plan.names;
    let interrupt = pin!(interrupt.fuse());
    match plan.config.via {
        Via::Put => {
            let clients = http1(&plan).await?.into_iter();
            let transports = clients.map(|client| Put { client, names }).collect();
            run_with(&plan, transports, interrupt).await
        }
        Via::PutH2 => {
            let clients = http2(&plan).await?.into_iter();
            let transports = clients.map(|client| Put { client, names }).collect();
            run_with(&plan, transports, interrupt).await
        }
        Via::Bulk => {
            let clients = http1(&plan).await?.into_iter();
            let transports = clients.map(|client| Bulk { client, names }).collect();
            run_with(&plan, transports, interrupt).await
        }
        Via::Amqp => {
            let broker = plan.broker()?;
            let connect =
                |number| DirectPublisher::connect(broker, number, plan.streams, names, plan.timeout);
            let publishers = try_join_all((0..plan.connections).map(connect)).await;
            run_with(&plan, publishers.context("cannot publish")?, interrupt).await
        }
    }
}

async fn http1(plan: &Plan) -> anyhow::Result<Vec<Http1>> {
    let target = plan.ingest();
    let connect = |_| Http1::connect(target.clone(), plan.timeout, plan.config.reconnect);
    let connections = (0..plan.connections).map(connect);
    try_join_all(connections).await.with_context(|| format!("cannot reach ingest at {target}"))
}

async fn http2(plan: &Plan) -> anyhow::Result<Vec<http2::Http2Stream>> {
    let target = plan.ingest();
    let connections = (0..plan.connections).map(|_| Http2::connect(target.clone(), plan.streams));
    let connections = try_join_all(connections).await;
    let connections = connections.with_context(|| format!("cannot reach ingest at {target}"))?;
    let slots = connections.iter().flat_map(|connection| std::iter::repeat_n(connection, plan.streams));
    Ok(slots.map(|connection| connection.stream(plan.timeout)).collect())
}

/// The whole run, from the first reading of counters to the last.
async fn run_with<C: Transport + 'static>(
    plan: &Plan,
    transports: Vec<C>,
    mut interrupt: Pin<&mut impl Future<Output = ()>>,
) -> anyhow::Result<Report> {
    let display = Display::detect();
    let LoadConfig { workload, events, verify, threshold, .. } = &plan.config;
    eprintln!("{} events of {workload}, seed {}, by {}", HumanCount(*events), plan.seed, plan.config.via);
    let mut run = Run::new(plan.workload(), plan.keys(), plan.retry_for);
    let mut comparing = None;
    if *verify {
        let mut reader =
            CounterReader::connect(plan.query(), plan.names, *threshold, plan.timeout, plan.retry_for)
                .await?;
        let snapshot = Snapshot::read(plan.workload(), *events, &mut reader, display, plan.settle_within);
        let snapshot = unless(interrupt.as_mut(), snapshot).await?;
        *run.record.get_mut() = Some(SendRecord::with_domains(plan.population()));
        comparing = Some((reader, snapshot));
    }
    let begun = Instant::now();
    let run = send_all(plan, run, transports, display, interrupt.as_mut()).await?;
    let acknowledged = run.stats.borrow().last_acknowledged.unwrap_or(begun);
    let mut report = Report::new(plan, &run, acknowledged.duration_since(begun));
    if let (Some((mut reader, snapshot)), Some(record)) = (comparing, run.record.take()) {
        let comparison = Comparison::new(&snapshot, &record, acknowledged, plan.settle_within);
        let verification = unless(interrupt, comparison.run(plan.names, &mut reader, display)).await?;
        report.verification = Some(verification);
    }
    Ok(report)
}

/// The output of `work`, unless an interrupt comes first.
async fn unless<T>(
    interrupt: Pin<&mut impl Future<Output = ()>>,
    work: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<T> {
    tokio::select! {
        biased;
        output = work => output,
        () = interrupt => Err(Interrupted.into()),
    }
}

/// Sends every event, or those until the interrupt, and waits for the answers.
async fn send_all<C: Transport + 'static>(
    plan: &Plan,
    mut run: Run,
    transports: Vec<C>,
    display: Display,
    interrupt: Pin<&mut impl Future<Output = ()>>,
) -> anyhow::Result<Rc<Run>> {
    let events = plan.config.events;
    let requests = events.div_ceil(plan.batch);
    #[expect(clippy::cast_precision_loss, reason = "a batch has few events")]
    let rate = plan.config.rate.map(|rate| Rate::per_second(rate / plan.batch as f64));
    let pace = rate.map(|rate| Pace::begin(rate, requests)).transpose().context("cannot keep a pace")?;
    run.hand_out(events, plan.batch, pace);
    let run = Rc::new(run);
    let mut senders = JoinSet::new();
    for transport in transports {
        senders.spawn_local(send(Rc::clone(&run), transport));
    }
    let mut stop = interrupt.map(|()| run.interrupt());
    let sending = async {
        loop {
            tokio::select! {
                biased;
                ended = senders.join_next() => match ended {
                    None => return anyhow::Ok(()),
                    Some(ended) => ended.context("a sender failed")?,
                },
                () = &mut stop, if !run.is_interrupted() => {}
            }
        }
    };
    display.follow("sending", "events", events, || progress(&run), sending).await?;
    Ok(Rc::clone(&run))
}

fn progress(run: &Run) -> Progress {
    let stats = run.stats.borrow();
    let mut note =
        format!(", {} in flight, {} errors", HumanCount(stats.in_flight), HumanCount(stats.errors));
    if let Some(trouble) = &stats.trouble {
        note = format!("{note}: {trouble}");
    }
    Progress { done: stats.done(), note, ..Progress::default() }
}
