//! What the servers have in common: where they are unpacked, their environment, their processes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Where they are unpacked.
pub(super) fn unpacked() -> PathBuf {
    let folder = std::env::var("CATCHALL_TEST_MAIL").map(PathBuf::from);
    let folder = folder.expect("CATCHALL_TEST_MAIL is not set: run the tests by ./dev test");
    assert!(folder.join("complete").exists(), "postfix and rspamd are missing, which ./dev test unpacks");
    folder
}

/// A command with an empty environment, except for what finds programs, the libraries in the folders of this
/// one, and processes that are left running.
pub(super) fn command(program: &str, libraries: &Path) -> Command {
    let folders = fs::read_dir(libraries).expect("it is unpacked").map(|entry| entry.expect("a name").path());
    let folders: Vec<String> = folders.map(|folder| folder.display().to_string()).collect();
    let mut command = Command::new(program);
    command
        .env_clear()
        .envs(std::env::vars().filter(|(name, _)| name == "PATH" || name == "CATCHALL_DEV"))
        .env("LD_LIBRARY_PATH", folders.join(":"));
    command
}

/// A process with those it starts. Dropping it ends them.
#[derive(Debug)]
pub(super) struct Server(Child);

impl Server {
    /// `command` runs `setsid`, which makes the process the first of a group, by which all are found.
    pub(super) fn start(command: &mut Command, log: &str) -> Self {
        let log = fs::File::create(log).expect("a log can be written");
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a descriptor")).stderr(log);
        Self(command.spawn().expect("setsid is part of every Debian"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The shell's own: not every Debian has a program for it.
        let kill = format!("kill -s KILL -- -{}", self.0.id());
        let _ = Command::new("sh").args(["-c", &kill]).status();
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
