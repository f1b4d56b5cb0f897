//! Runs `catchall-load` as a process.

use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, anyhow};
use catchall_load::Report;
use catchall_load::workload::Shape;
use serde::Deserialize;

use crate::program::command;
use crate::usage;

/// More events than any run can send.
const ENOUGH: u64 = 1_000_000_000_000;

/// The options of a load run.
#[derive(Clone, Copy, Debug)]
pub struct LoadSpec {
    /// How events are sent: a value of `--via`.
    pub via: &'static str,
    /// The shape of the traffic.
    pub shape: Shape,
    /// Size of the population; waves have none.
    pub domains: Option<u32>,
    /// Events per request or message; `None`: the default.
    pub batch: Option<u32>,
    /// Connections; `None`: the default.
    pub connections: Option<u32>,
    /// Requests or messages in flight on each connection; `None`: the default.
    pub streams: Option<u32>,
    /// Whether each event, or each message, has a key.
    pub keyed: bool,
    /// Whether each request opens a connection.
    pub reconnect: bool,
    /// Events per second; `None`: a closed loop.
    pub rate: Option<f64>,
    /// How much is sent.
    pub amount: Amount,
    /// The seed of the workload.
    pub seed: u64,
}

/// How much is sent.
#[derive(Clone, Copy, Debug)]
pub enum Amount {
    /// As many events as can be sent in so many seconds.
    Seconds(u64),
    /// So many events.
    Events(u64),
    /// As many events as can be sent until it is interrupted.
    UntilInterrupted,
}

impl LoadSpec {
    /// One second of PUT requests in a closed loop. Other specifications start from this one.
    pub const BASE: Self = Self {
        via: "put",
        shape: Shape::Waves,
        domains: None,
        batch: None,
        connections: None,
        streams: None,
        keyed: false,
        reconnect: false,
        rate: None,
        amount: Amount::Seconds(1),
        seed: 0,
    };

    fn arguments(&self) -> Vec<String> {
        let Self { via, shape, domains, batch, connections, streams, keyed, reconnect, rate, amount, seed } =
            self;
        let events = match amount {
            Amount::Seconds(_) | Amount::UntilInterrupted => ENOUGH,
            Amount::Events(events) => *events,
        };
        let options = [
            ("--via", Some((*via).to_owned())),
            ("--workload", Some(shape.to_string())),
            ("--seed", Some(seed.to_string())),
            ("--events", Some(events.to_string())),
            ("--domains", domains.map(|domains| domains.to_string())),
            ("--batch", batch.map(|batch| batch.to_string())),
            ("--connections", connections.map(|connections| connections.to_string())),
            ("--streams", streams.map(|streams| streams.to_string())),
            ("--rate", rate.map(|rate| rate.to_string())),
        ];
        let options = options.into_iter().filter_map(|(name, value)| Some([name.to_owned(), value?]));
        let flags = [("--keyed", *keyed), ("--reconnect", *reconnect)];
        let flags = flags.into_iter().filter(|(_, set)| *set).map(|(flag, _)| flag.to_owned());
        options.flatten().chain(flags).collect()
    }
}

/// A running program that prints one JSON object before it ends. Dropping it kills the program.
pub struct JsonProcess {
    child: Child,
    stdout: Option<JoinHandle<String>>,
    stderr: Option<JoinHandle<String>>,
}

impl Drop for JsonProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl JsonProcess {
    /// Starts the program.
    ///
    /// # Errors
    ///
    /// When that fails.
    pub fn start(command: &mut Command) -> anyhow::Result<Self> {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        Ok(Self { child, stdout: stdout.map(read), stderr: stderr.map(read) })
    }

    /// Sends SIGINT.
    ///
    /// # Errors
    ///
    /// When `kill` cannot be run.
    pub fn interrupt(&self) -> anyhow::Result<()> {
        Command::new("kill").args(["-INT", &self.child.id().to_string()]).status().context("kill")?;
        Ok(())
    }

    /// Waits until it ends. Returns the printed object and the processor time it took, in microseconds.
    ///
    /// # Errors
    ///
    /// When it printed anything else; the error holds its whole output.
    pub async fn ended<T: for<'a> Deserialize<'a>>(&mut self) -> anyhow::Result<(T, f64)> {
        let pid = self.child.id();
        while !usage::has_ended(pid) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        // The kernel keeps these numbers until the process is reaped.
        let micros = usage::micros(pid);
        let status = self.child.wait()?;
        let text = |reading: &mut Option<JoinHandle<String>>| {
            reading.take().and_then(|reading| reading.join().ok()).unwrap_or_default()
        };
        let (stdout, stderr) = (text(&mut self.stdout), text(&mut self.stderr));
        let printed = serde_json::from_str(&stdout);
        Ok((printed.map_err(|_| anyhow!("{status}: {stdout}{stderr}"))?, micros))
    }
}

/// Reads everything in a thread of its own, so that the writer never blocks.
fn read(mut from: impl Read + Send + 'static) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut text = String::new();
        let _ = from.read_to_string(&mut text);
        text
    })
}

/// A running `catchall-load`.
pub struct LoadRun {
    process: JsonProcess,
    amount: Amount,
}

impl LoadRun {
    /// Starts the load tool with these options, variables and `more` arguments.
    ///
    /// # Errors
    ///
    /// When that fails.
    pub fn start(
        spec: &LoadSpec,
        ingest_url: &str,
        variables: &[(&str, &str)],
        more: &[&str],
    ) -> anyhow::Result<Self> {
        let mut command = command("load");
        command.args(["--json", "--ingest-url", ingest_url]).args(spec.arguments()).args(more);
        command.envs(variables.iter().copied());
        let process = JsonProcess::start(&mut command).context("cannot start catchall-load")?;
        Ok(Self { process, amount: spec.amount })
    }

    /// Ends the sending. With `--verify`, the tool still compares what was sent.
    ///
    /// # Errors
    ///
    /// When `kill` cannot be run.
    pub fn interrupt(&self) -> anyhow::Result<()> {
        self.process.interrupt()
    }

    /// Waits until the run ends, or ends it when its time is over. Returns the report and the processor time
    /// of the tool in microseconds.
    ///
    /// # Errors
    ///
    /// When there is no report; the error holds the whole output.
    pub async fn end(mut self) -> anyhow::Result<(Report, f64)> {
        if let Amount::Seconds(seconds) = self.amount {
            let pid = self.process.child.id();
            let time = tokio::time::sleep(Duration::from_secs(seconds));
            let early = async {
                while !usage::has_ended(pid) {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            };
            tokio::select! {
                () = time => self.process.interrupt()?,
                () = early => {}
            }
        }
        self.process.ended().await.context("catchall-load")
    }
}
