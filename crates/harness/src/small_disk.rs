//! A small file system of a process's own, to fill up.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::untested::not_tested;

/// What makes a mount namespace in which anybody may mount.
const NAMESPACE: [&str; 2] = ["--map-root-user", "--mount"];

/// Whether this user may make a small file system. If not, that is printed.
#[must_use]
pub fn may_mount() -> bool {
    let probe = Command::new("unshare").args(NAMESPACE).arg("true").stderr(Stdio::null()).status();
    let may = probe.is_ok_and(|status| status.success());
    if !may {
        not_tested("this user may not mount a small file system (unshare --map-root-user --mount)");
    }
    may
}

/// A command that runs in a mount namespace of its own, with an empty file system of so many MiB over a
/// directory. `command` is for a shell; the process becomes what it executes last. `None` where this user may
/// not make one.
#[must_use]
pub fn on_small_disk(directory: &Path, mib: u32, command: &str) -> Option<Command> {
    may_mount().then(|| {
        let directory = directory.display();
        let script = format!("mount -t tmpfs -o size={mib}m none '{directory}' && exec {command}");
        let mut command = Command::new("unshare");
        command.args(NAMESPACE).args(["sh", "-c", &script]);
        command
    })
}

/// The directory as the process with this ID sees it. What is in its file system is reached by that.
#[must_use]
pub fn seen_by(pid: u32, directory: &Path) -> PathBuf {
    format!("/proc/{pid}/root{}", directory.display()).into()
}
