//! The memory of processes, as the kernel counts it.

use std::fs;

/// The most a process has had since it was started, or since [`forget_peak`], in megabytes; 0 when it is gone.
pub(crate) fn peak_megabytes(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kilobytes = peak.and_then(|peak| peak.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kilobytes.unwrap_or_default().div_ceil(1024)
}

/// Has the kernel begin anew. Where it does not let us, the peak is that of all the time.
pub(crate) fn forget_peak(pid: u32) {
    const PEAK: &str = "5";
    let _ = fs::write(format!("/proc/{pid}/clear_refs"), PEAK);
}
