//! Load, and its own comparison: the real `catchall-load`.

use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use catchall::load::workload::{Names, Shape};
use serde_json::Value;

use crate::chance::Chance;
use crate::ledger::counters;
use crate::processes::command;
use crate::round::Result;
use crate::stage::Stage;

/// The ways in: name, arguments, events per second. Published to the broker directly, an event without any id is
/// counted at least once, so there it always has one.
type Way = (&'static str, &'static [&'static str], u64);
const PUT: Way = ("put", &["--via", "put", "--connections", "8"], 200);
const PUT_KEYED: Way =
    ("put-h2 keyed", &["--via", "put-h2", "--keyed", "--connections", "2", "--streams", "16"], 300);
const BULK: Way = ("bulk", &["--via", "bulk", "--connections", "2", "--batch", "100"], 1500);
const BULK_KEYED: Way =
    ("bulk keyed", &["--via", "bulk", "--keyed", "--connections", "2", "--batch", "100"], 1500);
const AMQP_KEYED: Way = (
    "amqp keyed",
    &["--via", "amqp", "--keyed", "--connections", "1", "--streams", "32", "--batch", "10"],
    500,
);

/// Seconds for which there are events. Every run is ended long before, when its fault is over.
const ENOUGH: u64 = 240;

/// How long it may take until all load flows: a few processes start, and read the counters before.
const START: Duration = Duration::from_secs(30);

/// How long the comparison may take.
const COMPARE: Duration = Duration::from_mins(2);

/// Domains that are emitted at a time: the first to have been counted.
const FIRST: u32 = 20;

/// A running `catchall-load`. It is killed when nobody waits for it any more.
pub(crate) struct Load {
    name: &'static str,
    seed: u64,
    child: Child,
    stdout: std::thread::JoinHandle<String>,
    stderr: std::thread::JoinHandle<String>,
}

/// What one of them came to.
#[derive(Debug)]
pub(crate) struct Sent {
    pub(crate) name: &'static str,
    pub(crate) acknowledged: u64,
    pub(crate) lost: u64,
    pub(crate) duplicated: u64,
    /// Requests without an answer or with one that says no, and events sent again.
    pub(crate) trouble: u64,
    /// What is wrong, where anything is.
    pub(crate) wrong: Option<String>,
}

impl Drop for Load {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Load {
    /// Starts one for each way in, and returns when the events of each are being counted.
    pub(crate) async fn start_all(stage: &Stage, mut chance: Chance) -> Result<Vec<Self>> {
        let bulk = if chance.number(0, 1) == 0 { BULK } else { BULK_KEYED };
        let ways = [PUT, PUT_KEYED, bulk, AMQP_KEYED];
        let loads: Vec<Self> =
            ways.into_iter().map(|way| Self::start(way, stage, chance.number(0, u32::MAX.into()))).collect();
        let begun = Instant::now();
        for load in &loads {
            let names = Names::new(Shape::Waves, load.seed);
            let domains: Vec<String> = (0..FIRST).map(|domain| names.canonical(domain)).collect();
            while counters(&stage.primary, &domains).await?.is_empty() {
                if begun.elapsed() > START {
                    return Err(format!("no event sent by {} was counted within {START:?}", load.name));
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        Ok(loads)
    }

    fn start((name, arguments, rate): Way, stage: &Stage, seed: u64) -> Self {
        let mut child = command("load")
            .args([
                "--workload",
                "waves",
                "--json",
                "--verify",
                "--retry-for",
                "120",
                "--settle-within",
                "120",
            ])
            .args(arguments)
            .args(["--seed", &seed.to_string(), "--rate", &rate.to_string()])
            .args(["--events", &(rate * ENOUGH).to_string()])
            .args(["--ingest-url", &stage.ingest_url, "--query-url", &stage.query_url])
            .env("CATCHALL_AMQP_URL", &stage.servers.amqp_url)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it is built");
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        Self { name, seed, child, stdout: read(stdout.unwrap()), stderr: read(stderr.unwrap()) }
    }

    /// Ends the sending and returns what the comparison came to.
    pub(crate) async fn end_all(loads: Vec<Self>) -> Result<Vec<Sent>> {
        for load in &loads {
            let pid = load.child.id().to_string();
            let sent = Command::new("kill").args(["-INT", &pid]).status();
            sent.map_err(|error| format!("kill: {error}"))?;
        }
        let begun = Instant::now();
        let mut all = Vec::new();
        for mut load in loads {
            let status = loop {
                match load.child.try_wait().map_err(|error| error.to_string())? {
                    Some(status) => break status,
                    None if begun.elapsed() > COMPARE => {
                        return Err(format!("{} has not compared within {COMPARE:?}", load.name));
                    }
                    None => tokio::time::sleep(Duration::from_millis(20)).await,
                }
            };
            // A value cannot be moved out of what has a destructor.
            let stdout = std::mem::replace(&mut load.stdout, std::thread::spawn(String::new));
            let stderr = std::mem::replace(&mut load.stderr, std::thread::spawn(String::new));
            let (stdout, stderr) = (stdout.join().unwrap(), stderr.join().unwrap());
            let report = serde_json::from_str(&stdout);
            let report: Value = report.map_err(|_| format!("{}: {status}: {stdout}{stderr}", load.name))?;
            all.push(Sent::new(load.name, &report)?);
        }
        Ok(all)
    }
}

impl Sent {
    fn new(name: &'static str, report: &Value) -> Result<Self> {
        let number = |value: &Value| value.as_u64().ok_or(format!("{name}: {report}"));
        let verification = &report["verification"];
        let (lost, duplicated) = (number(&verification["lost"])?, number(&verification["duplicated"])?);
        let (refused, wrong_status) = (number(&report["refused"])?, number(&verification["wrong_status"])?);
        let wrong = lost + duplicated + refused + wrong_status > 0;
        Ok(Self {
            name,
            acknowledged: number(&report["acknowledged"])?,
            lost,
            duplicated,
            trouble: number(&report["errors"])? + number(&report["retried"])?,
            wrong: wrong.then(|| format!("{name}: {report}")),
        })
    }
}

/// Reads to the end beside everything else, so that the writer never waits.
fn read(mut from: impl Read + Send + 'static) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut text = String::new();
        let _ = from.read_to_string(&mut text);
        text
    })
}
