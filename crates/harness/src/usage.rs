//! Processor time and memory of processes, as the kernel counts them.

use std::fs;

use crate::stats::real;

/// The kernel reports hundredths of a second (`USER_HZ`), whatever its own clock rate is.
const MICROS_PER_TICK: f64 = 10_000.0;

/// A process as `/proc` shows it.
struct Stat {
    state: char,
    parent: u32,
    /// Processor time of the process itself, in ticks.
    own: u64,
    /// Processor time of its children that have ended, in ticks.
    ended: u64,
}

fn stat(pid: u32) -> Option<Stat> {
    let line = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The program's name comes before that and may contain any character.
    let (_, rest) = line.rsplit_once(") ")?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    let number = |place: usize| fields.get(place)?.parse::<u64>().ok();
    Some(Stat {
        state: fields.first()?.chars().next()?,
        parent: fields.get(1)?.parse().ok()?,
        own: number(11)? + number(12)?,
        ended: number(13)? + number(14)?,
    })
}

/// Processor time of a process in microseconds; 0 when it is gone.
#[must_use]
pub fn micros(pid: u32) -> f64 {
    stat(pid).map_or(0.0, |stat| real(stat.own) * MICROS_PER_TICK)
}

/// Processor time of a process and of all its children, including those that have ended, in microseconds.
#[must_use]
pub fn tree_micros(pid: u32) -> f64 {
    let Some(root) = stat(pid) else { return 0.0 };
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let children = pids.filter_map(stat).filter(|stat| stat.parent == pid);
    let ticks: u64 = children.map(|child| child.own + child.ended).sum();
    real(root.own + root.ended + ticks) * MICROS_PER_TICK
}

/// Whether a process has ended. Its numbers remain until it is reaped.
#[must_use]
pub fn has_ended(pid: u32) -> bool {
    stat(pid).is_none_or(|stat| stat.state == 'Z')
}

/// Processor time of the whole machine.
#[derive(Clone, Copy, Debug)]
pub struct MachineTime {
    /// Time that was used or stolen, in ticks.
    wanted: u64,
    /// Time that the hypervisor gave to other guests, in ticks.
    stolen: u64,
}

impl MachineTime {
    /// The totals until now.
    #[must_use]
    pub fn now() -> Option<Self> {
        let text = fs::read_to_string("/proc/stat").ok()?;
        let ticks = text.lines().next()?.split_ascii_whitespace().skip(1).map(str::parse::<u64>);
        // user, nice, system, idle, iowait, irq, softirq, steal
        let ticks: Vec<u64> = ticks.collect::<Result<_, _>>().ok()?;
        let stolen = *ticks.get(7)?;
        Some(Self { wanted: ticks[..3].iter().chain(&ticks[5..8]).sum(), stolen })
    }

    /// The share of the requested processor time since then that was stolen.
    #[must_use]
    pub fn stolen_since(before: Option<Self>) -> Option<f64> {
        let (before, now) = (before?, Self::now()?);
        Some(real(now.stolen - before.stolen) / real((now.wanted - before.wanted).max(1)))
    }
}

/// The peak memory of a process, in megabytes.
#[must_use]
pub fn peak_megabytes(pid: u32) -> Option<u64> {
    kilobytes(pid, "VmHWM:").map(|kilobytes| kilobytes.div_ceil(1024))
}

/// Resets the peak memory of a process. Where the kernel forbids it, the peak remains that of the whole
/// lifetime.
pub fn forget_peak(pid: u32) {
    const PEAK: &str = "5";
    let _ = fs::write(format!("/proc/{pid}/clear_refs"), PEAK);
}

/// The resident memory of a process, rounded up to megabytes.
#[must_use]
pub fn megabytes(pid: u32) -> Option<u64> {
    kilobytes(pid, "VmRSS:").map(|kilobytes| kilobytes.div_ceil(1024))
}

/// The resident memory of a process in megabytes, with fractions.
#[must_use]
pub fn resident_megabytes(pid: u32) -> Option<f64> {
    kilobytes(pid, "VmRSS:").map(|kilobytes| real(kilobytes) / 1024.0)
}

fn kilobytes(pid: u32, name: &str) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let value = status.lines().find_map(|line| line.strip_prefix(name))?;
    value.trim().strip_suffix(" kB")?.parse().ok()
}
