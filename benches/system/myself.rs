//! This program, which also runs as some of the processes that it measures.

use std::process::{Command, Stdio};

/// Set by `./dev bench`: the servers are used by this program only.
pub(crate) const ALLOWED: &str = "CATCHALL_BENCH";

/// A command that starts this program again, for one of its parts.
pub(crate) fn myself(part: &str) -> anyhow::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg(part).env_clear();
    command.envs(std::env::vars().filter(|(name, _)| name == "CATCHALL_DEV")).env(ALLOWED, "yes");
    command.stdin(Stdio::null());
    Ok(command)
}
