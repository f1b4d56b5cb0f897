//! The load: the real `catchall-load`.

use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, anyhow};
use catchall::load::workload::Shape;
use serde::Deserialize;

use crate::figures::Latency;
use crate::meter;
use crate::processes::command;

/// More events than any row has time for.
const ENOUGH: u64 = 1_000_000_000_000;

/// What is to be sent, and how.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Order {
    pub(crate) via: &'static str,
    pub(crate) shape: Shape,
    /// Size of the population; waves have none.
    pub(crate) domains: Option<u32>,
    /// Events of a request or message, where it is not the usual number.
    pub(crate) batch: Option<u32>,
    /// Connections, where they are not the usual number.
    pub(crate) connections: Option<u32>,
    /// Events per second; nothing for a closed loop.
    pub(crate) rate: Option<f64>,
    pub(crate) amount: Amount,
    pub(crate) seed: u64,
}

/// How much is sent.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Amount {
    /// What can be sent in this time.
    Seconds(u64),
    Events(u64),
}

/// What it says of itself at the end.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Report {
    pub(crate) acknowledged: u64,
    pub(crate) refused: u64,
    pub(crate) unknown: u64,
    pub(crate) errors: u64,
    pub(crate) last_error: Option<String>,
    /// From the first event to the last acknowledgement.
    pub(crate) seconds: f64,
    pub(crate) latency_ms: Latency,
    /// Processor time of the whole process.
    #[serde(skip)]
    pub(crate) micros: f64,
}

/// A running program that prints a JSON object at its end. It is killed when nobody waits for it any more.
pub(crate) struct Printing {
    child: Child,
    stdout: Option<JoinHandle<String>>,
    stderr: Option<JoinHandle<String>>,
}

impl Drop for Printing {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Printing {
    pub(crate) fn start(command: &mut Command) -> anyhow::Result<Self> {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        Ok(Self { child, stdout: stdout.map(read), stderr: stderr.map(read) })
    }

    /// Asks it to come to its end.
    pub(crate) fn interrupt(&self) -> anyhow::Result<()> {
        Command::new("kill").args(["-INT", &self.child.id().to_string()]).status().context("kill")?;
        Ok(())
    }

    /// Waits for its end and returns what it printed and the processor time it took, in microseconds.
    pub(crate) async fn ended<T: for<'a> Deserialize<'a>>(&mut self) -> anyhow::Result<(T, f64)> {
        let pid = self.child.id();
        while !meter::has_ended(pid) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        // As long as nobody has asked how it ended, the kernel still knows.
        let micros = meter::micros(pid);
        let status = self.child.wait()?;
        let text = |reading: &mut Option<JoinHandle<String>>| {
            reading.take().and_then(|reading| reading.join().ok()).unwrap_or_default()
        };
        let (stdout, stderr) = (text(&mut self.stdout), text(&mut self.stderr));
        let printed = serde_json::from_str(&stdout);
        Ok((printed.map_err(|_| anyhow!("{status}: {stdout}{stderr}"))?, micros))
    }
}

/// Reads to the end beside everything else, so that the writer never waits.
fn read(mut from: impl Read + Send + 'static) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut text = String::new();
        let _ = from.read_to_string(&mut text);
        text
    })
}

/// A running `catchall-load`.
pub(crate) struct Load(Printing);

impl Load {
    pub(crate) fn start(order: &Order, ingest_url: &str, amqp_url: &str) -> anyhow::Result<Self> {
        let Order { via, shape, domains, batch, connections, rate, amount, seed } = order;
        let events = match amount {
            Amount::Seconds(_) => ENOUGH,
            Amount::Events(events) => *events,
        };
        let mut command = command("load");
        command.args(["--json", "--via", via, "--workload", &shape.to_string(), "--seed", &seed.to_string()]);
        command.args(["--events", &events.to_string(), "--ingest-url", ingest_url]);
        command.env("CATCHALL_AMQP_URL", amqp_url);
        let options = [
            ("--domains", domains.map(|domains| domains.to_string())),
            ("--batch", batch.map(|batch| batch.to_string())),
            ("--connections", connections.map(|connections| connections.to_string())),
            ("--rate", rate.map(|rate| rate.to_string())),
        ];
        for (option, value) in options {
            command.args(value.iter().flat_map(|value| [option, value]));
        }
        Ok(Self(Printing::start(&mut command).context("cannot start catchall-load")?))
    }

    /// Ends the sending when it is time, and returns what it came to.
    pub(crate) async fn end(mut self, amount: Amount) -> anyhow::Result<Report> {
        if let Amount::Seconds(seconds) = amount {
            let pid = self.0.child.id();
            let time = tokio::time::sleep(Duration::from_secs(seconds));
            let early = async {
                while !meter::has_ended(pid) {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            };
            tokio::select! {
                () = time => self.0.interrupt()?,
                () = early => {}
            }
        }
        let (report, micros) = self.0.ended().await.context("catchall-load")?;
        Ok(Report { micros, ..report })
    }
}
