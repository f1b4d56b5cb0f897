//! The standalone: its process is killed or stopped, its disk is full, others use its file, its data moves.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use harness::expected::ExpectedCounts;
use harness::processes::command;
use harness::proxy::Wire;
use harness::sql;

use super::lifted::Lifted;
use crate::rng::Rng;
use crate::standalone::Standalone;

/// How often a process is killed.
const KILLS: usize = 4;

/// How long what is waited for may take: seconds, on a busy machine.
const TIMEOUT: Duration = Duration::from_mins(1);

/// A slow connection makes the worst moment likely: what was counted has not been answered yet, and never is,
/// so that it is sent again.
const SLOW: Wire = Wire::Slow(Duration::from_millis(150));

pub(super) async fn killed(standalone: &mut Standalone, rng: &mut Rng) -> Result<Lifted> {
    let mut lifted = Lifted::now();
    for _ in 0..KILLS {
        standalone.wires(SLOW);
        rng.pause(300, 2000).await;
        standalone.wires(Wire::Cut);
        standalone.process.take().context("it runs")?.kill().await;
        rng.pause(0, 500).await;
        standalone.wires(Wire::Whole);
        lifted = Lifted::now();
        standalone.start().await;
        rng.pause(0, 500).await;
    }
    Ok(lifted)
}

pub(super) async fn stopped(standalone: &mut Standalone, rng: &mut Rng) -> Result<Lifted> {
    let process = standalone.process.as_mut().context("it runs")?;
    process.look_away();
    process.service.signal("STOP");
    rng.pause(3000, 6000).await;
    process.service.signal("CONT");
    let lifted = Lifted::now();
    process.look(&standalone.watch);
    Ok(lifted)
}

/// Fills the file system until an event is refused, and makes room after a while.
pub(super) async fn disk_full(standalone: &mut Standalone, rng: &mut Rng) -> Result<Lifted> {
    let process = standalone.running()?;
    let path = standalone.directory()?.join("ballast");
    let mut ballast = File::create(&path).context("the ballast")?;
    let begun = Instant::now();
    // The WAL is written over from its beginning now and then, and needs no room until it is longer again.
    let reason = loop {
        let (status, reason) = process.service.readyz().await;
        if !status.is_success() {
            break reason;
        }
        while ballast.write(&[1; 16 * 1024]).is_ok_and(|written| written > 0) {}
        if begun.elapsed() > TIMEOUT {
            bail!("every event found room within {TIMEOUT:?}");
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    rng.pause(2000, 4000).await;
    drop(ballast);
    let mut lifted = Lifted::now();
    fs::remove_file(path).context("the ballast")?;
    if !reason.contains("the disk is full") {
        lifted.failures.push(format!("/readyz said {reason:?} when the disk was full"));
    }
    Ok(lifted)
}

/// The exit status that says that another process uses the data file.
const IN_USE: i32 = 15;

/// Starts others on the file, as whoever forgot that it is served: at the same address and at another one.
pub(super) async fn second_process(standalone: &mut Standalone, rng: &mut Rng) -> Result<Lifted> {
    let mut failures = Vec::new();
    let same = standalone.listen.to_string();
    for listen in [&*same, "127.0.0.1:0", &same, "127.0.0.1:0"] {
        let mut second = command("standalone");
        second.args(["--data", standalone.data(), "--listen", listen, "--ops-listen", "127.0.0.1:0"]);
        let Output { status, stderr, .. } = ended(spawned(&mut second)?).await?;
        if status.code() != Some(IN_USE) {
            let said = String::from_utf8_lossy(&stderr);
            failures.push(format!("a second process at {listen} ended with {status}: {said}"));
        }
        rng.pause(100, 500).await;
    }
    Ok(Lifted { failures, ..Lifted::now() })
}

/// Events of each request while the WAL is held, and the domains they are for.
const BURST: u32 = 10_000;
const DOMAINS: u32 = 500;

/// The WAL begins anew at 64 Ki pages of 1 KiB, unless it is held.
const USUAL_PAGES: f64 = 65_536.0;

/// A WAL of so many pages is held.
const HELD_PAGES: f64 = 1.4 * USUAL_PAGES;

/// How soon a WAL that is not held any more begins anew. It is looked at once a second.
const SHORTENED: Duration = Duration::from_secs(20);

pub(super) async fn held_wal(standalone: &mut Standalone, label: &str) -> Result<Lifted> {
    let mut expected = ExpectedCounts::default();
    let copy = standalone.data.with_file_name("copy.db");
    let backup = stopped_backup(standalone, &copy).await?;
    let service = &standalone.running()?.service;
    let pages = async || service.metric("catchall_data_wal_pages").await;
    let (begun, mut sent, mut longest) = (Instant::now(), 0, 0.0_f64);
    // Whatever fails, the backup is not left stopped.
    let grown = loop {
        if let Err(reason) = standalone.post(label, sent..sent + BURST, DOMAINS, &mut expected).await {
            break Err(reason);
        }
        sent += BURST;
        longest = longest.max(pages().await);
        if longest > HELD_PAGES {
            break Ok(());
        }
        if begun.elapsed() > TIMEOUT {
            break Err(anyhow::anyhow!("a held WAL has only {longest} pages after {TIMEOUT:?}"));
        }
    };
    signal(&backup, "CONT")?;
    let Output { status, stderr, .. } = ended(backup).await?;
    grown?;
    let mut lifted = Lifted { expected, ..Lifted::now() };
    if !status.success() {
        let said = String::from_utf8_lossy(&stderr);
        lifted.failures.push(format!("the backup ended with {status}: {said}"));
    }
    while pages().await > USUAL_PAGES && lifted.at.elapsed() < SHORTENED {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let (mib, took) = (longest / 1024.0, lifted.at.elapsed());
    if took < SHORTENED {
        lifted.note =
            Some(format!("the WAL grew to {mib:.0} MiB and began anew after {:.1} s", took.as_secs_f64()));
    } else {
        lifted
            .failures
            .push(format!("the WAL grew to {mib:.0} MiB and did not begin anew within {SHORTENED:?}"));
    }
    let mut check = command("standalone");
    let Output { status, stderr, .. } = ended(spawned(check.args(["check", "--data"]).arg(&copy))?).await?;
    if !status.success() {
        let said = String::from_utf8_lossy(&stderr);
        lifted.failures.push(format!("the check of the copy ended with {status}: {said}"));
    }
    Ok(lifted)
}

/// Starts a backup and stops it while it reads. It is let on for a millisecond at a time until it does.
async fn stopped_backup(standalone: &Standalone, copy: &Path) -> Result<Child> {
    let begun = Instant::now();
    while begun.elapsed() < TIMEOUT {
        let mut backup = command("standalone");
        let mut backup = spawned(backup.args(["backup", "--data", standalone.data()]).arg(copy))?;
        while backup.try_wait()?.is_none() {
            signal(&backup, "STOP")?;
            tokio::time::sleep(Duration::from_millis(1)).await;
            if holds_log(backup.id())? {
                return Ok(backup);
            }
            signal(&backup, "CONT")?;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    bail!("no backup could be stopped while it reads within {TIMEOUT:?}");
}

/// Whether a process reads from a WAL: SQLite locks one of five bytes of the index of the WAL for that.
fn holds_log(pid: u32) -> Result<bool> {
    let locks = fs::read_to_string("/proc/locks").context("/proc/locks")?;
    let pid = pid.to_string();
    Ok(locks.lines().any(|lock| {
        let fields: Vec<&str> = lock.split_ascii_whitespace().collect();
        let first = fields.get(6).and_then(|first| first.parse::<u64>().ok());
        fields.get(3) == Some(&"READ")
            && fields.get(4) == Some(&&*pid)
            && first.is_some_and(|first| (123..128).contains(&first))
    }))
}

/// How many rows have been moved, while no worker runs.
const MOVED: &str = "select (select count(*) from event_claims) + (select count(*) from domain_counters)";

/// The steps of docs/operating.md, with a move that is killed again and again.
pub(super) async fn move_killed(standalone: &mut Standalone, rng: &mut Rng) -> Result<Lifted> {
    let data = standalone.data().to_owned();
    let mut cluster = standalone.cluster.take().context("there is a cluster")?;
    cluster.start_ingest().await;
    cluster.start_query().await;
    standalone.lead_up(&cluster);
    rng.pause(500, 1000).await;
    standalone.process.take().context("it runs")?.stop().await?;
    let to = cluster.servers.database_url.clone();
    let spawn = || spawned(command("standalone").args(["move", "--data", &data, "--to", &to]));
    let (mut early, mut moved) = (0, Vec::new());
    for kill in 0..KILLS {
        let mut moving = spawn()?;
        let (begun, pause) = (Instant::now(), rng.millis(50, 2000));
        // The first one comes once a part is moved, so that no move is done before, however fast it is.
        while begun.elapsed() < pause && (kill > 0 || sql::number(&cluster.primary, MOVED).await? == 0) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        moving.kill()?;
        // A process that has ended by itself has an exit status.
        early += usize::from(moving.wait()?.code().is_none());
        moved.push(sql::number(&cluster.primary, MOVED).await?.to_string());
    }
    let Output { status, stdout, stderr } = ended(spawn()?).await?;
    let mut lifted = Lifted { expected: std::mem::take(&mut standalone.filled), ..Lifted::now() };
    cluster.fill().await;
    standalone.cluster = Some(cluster);
    let moved = moved.join(", ");
    lifted.note = Some(format!("{early} of {KILLS} kills ended the move, after {moved} rows"));
    if early == 0 {
        lifted.failures.push("the move was done before it could be killed".into());
    }
    if !status.success() {
        let said = String::from_utf8_lossy(&[stdout, stderr].concat()).into_owned();
        lifted.failures.push(format!("the move ended with {status}: {said}"));
    }
    Ok(lifted)
}

fn spawned(command: &mut Command) -> Result<Child> {
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().context("catchall")
}

/// Waits until it has ended. It says so little that no pipe is full before.
async fn ended(mut child: Child) -> Result<Output> {
    let begun = Instant::now();
    while child.try_wait()?.is_none() {
        if begun.elapsed() > TIMEOUT {
            child.kill()?;
            bail!("a command has not ended within {TIMEOUT:?}");
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(child.wait_with_output()?)
}

fn signal(child: &Child, name: &str) -> Result<()> {
    Command::new("kill").args([&format!("-{name}"), &child.id().to_string()]).status().context("kill")?;
    Ok(())
}
