//! The real programs, and how they are run to their end.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};

/// The program `catchall-NAME`, or `catchall` for "standalone", beside the test that runs it: in
/// `target/PROFILE`.
///
/// # Panics
///
/// When it is not there.
#[must_use]
pub fn binary(name: &str) -> String {
    let test = std::env::current_exe().expect("a test has a path");
    // The test itself is in target/PROFILE/deps.
    let folder = test.parent().and_then(Path::parent).expect("a test is in target/PROFILE/deps");
    let name = if name == "standalone" { "catchall".to_owned() } else { format!("catchall-{name}") };
    let binary = folder.join(name);
    let profile = folder.file_name().and_then(OsStr::to_str).filter(|profile| *profile != "debug");
    let profile = profile.map(|profile| format!(" --profile {profile}")).unwrap_or_default();
    let path = binary.display();
    assert!(binary.exists(), "{path} is not built: run ./dev test, or cargo build --locked --bins{profile}");
    path.to_string()
}

/// A command with an empty environment, except for the variable by which `./dev test` finds processes that
/// are left running.
#[must_use]
pub fn command(name: &str) -> Command {
    let mut command = Command::new(binary(name));
    command
        .env_clear()
        .envs(std::env::vars().filter(|(name, _)| name == "CATCHALL_DEV"))
        .stdin(Stdio::null());
    command
}

/// Runs a program to its end. Returns its exit status, standard output and standard error.
#[must_use]
pub fn run(name: &str, arguments: &[&str], variables: &[(&str, &str)]) -> (ExitStatus, String, String) {
    let output = command(name).args(arguments).envs(variables.iter().copied()).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status, text(output.stdout), text(output.stderr))
}
