//! Postfix, with a configuration of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::server::{self, Server, unpacked};
use crate::proxy::{address, reserve};
use crate::scratch::Scratch;
use crate::servers::eventually;
use crate::untested::not_tested;

/// Postfix with a configuration of its own.
#[derive(Debug)]
pub struct Postfix {
    scratch: Scratch,
    unpacked: PathBuf,
}

impl Postfix {
    /// A Postfix that relays to everybody and has these further lines in its `main.cf`.
    #[must_use]
    pub fn new(lines: &str) -> Self {
        let (scratch, unpacked) = (Scratch::new(), unpacked());
        let shared = unpacked.join("usr/lib/postfix");
        let (commands, here) = (unpacked.join("usr/sbin"), scratch.path().display());
        let (commands, shared) = (commands.display(), shared.display());
        // The users are any two that every Debian has, other than root and nobody.
        let main = format!(
            "compatibility_level = 3.6\nmail_owner = mail\nsetgid_group = games\nmyhostname = mail.test\n\
             queue_directory = {here}/queue\ndata_directory = {here}/data\nmeta_directory = {here}\n\
             command_directory = {commands}\ndaemon_directory = {here}/lib/postfix/sbin\n\
             shlib_directory = {shared}\n\
             maillog_file = {here}/log\nmaillog_file_prefixes = {here}\n\
             import_environment = MAIL_CONFIG LD_LIBRARY_PATH\n\
             inet_interfaces = 127.0.0.1\nmydestination =\nlocal_recipient_maps =\nalias_maps =\n\
             relay_domains = static:all\nsmtpd_relay_restrictions = reject_unauth_destination\n{lines}\n"
        );
        fs::write(scratch.path().join("main.cf"), main).expect("the directory can be written");
        Self { scratch, unpacked }
    }

    fn command(&self, program: &str, libraries: &Path) -> Command {
        let mut command = server::command(program, libraries);
        command.env("MAIL_CONFIG", self.scratch.path());
        command
    }

    /// What `postmap -q` finds under a key in a table, and what it says on standard error.
    #[must_use]
    pub fn look_up(&self, key: &str, table: &str) -> (Option<String>, String) {
        let postmap = self.unpacked.join("usr/sbin/postmap");
        let mut command = self.command(postmap.to_str().expect("UTF-8"), &self.unpacked.join("usr/lib"));
        let output = command.args(["-q", key, table]).output();
        let output = output.expect("postmap can be run");
        let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
        let found = text(output.stdout).strip_suffix('\n').map(str::to_owned);
        assert_eq!(output.status.success(), found.is_some(), "{key} in {table}");
        (found, text(output.stderr))
    }

    /// Starts its SMTP server. `None`, and a line that says so, where this user may not.
    pub async fn serve(&self) -> Option<Smtpd> {
        if !fs::metadata("/proc/self").is_ok_and(|of| std::os::unix::fs::MetadataExt::uid(&of) == 0) {
            not_tested("only root may start Postfix's SMTP server, so no recipient is asked about by SMTP");
            return None;
        }
        let here = self.scratch.path();
        // No other process is given the port until it listens.
        let reserved = reserve();
        let port = address(&reserved).port();
        let services = format!(
            "127.0.0.1:{port} inet n - n - - smtpd\npostlog unix-dgram n - n - 1 postlogd\n\
             rewrite unix - - n - - trivial-rewrite\nanvil unix - - n - 1 anvil\n"
        );
        fs::write(here.join("master.cf"), services).expect("the directory can be written");
        let owned = ["data", "queue/private", "queue/public"];
        for folder in owned.iter().chain(&["queue/pid"]) {
            fs::create_dir_all(here.join(folder)).expect("the directory can be written");
        }
        let run = |program: &str, arguments: &[&str]| {
            let ended = Command::new(program).args(arguments).current_dir(here).status();
            assert!(ended.expect(program).success(), "{program} {arguments:?}");
        };
        run("chown", &[&["mail"][..], &owned].concat());
        // Its processes have another user, who may not get to where they were unpacked.
        run("cp", &["-r", self.unpacked.join("usr/lib").to_str().expect("UTF-8"), "lib"]);
        let mut command = self.command("setsid", &here.join("lib"));
        command.args([&self.scratch.at("lib/postfix/sbin/master"), "-d"]);
        let server = Server::start(&mut command, &self.scratch.at("output"));
        let open = async || tokio::net::TcpStream::connect(("127.0.0.1", port)).await.ok();
        eventually("Postfix listens", open).await;
        Some(Smtpd { address: format!("127.0.0.1:{port}"), _server: server })
    }

    /// Its log.
    #[must_use]
    pub fn log(&self) -> String {
        let read = |name| fs::read_to_string(self.scratch.path().join(name)).unwrap_or_default();
        read("log") + &read("output")
    }
}

/// A running SMTP server of Postfix.
#[derive(Debug)]
pub struct Smtpd {
    /// Where it listens.
    pub address: String,
    _server: Server,
}
