//! Rspamd, with a configuration of its own.

use std::fs;

use http_body_util::Full;
use hyper::{Request, StatusCode};
use serde_json::Value;

use super::server::{Server, command, unpacked};
use crate::http::send;
use crate::proxy::{address, reserve};
use crate::scratch::Scratch;
use crate::servers::eventually;

/// A mail without anything to find fault with.
const MAIL: &str = "From: me@sender.test\r\nTo: you@receiver.test\r\nSubject: hello\r\n\
    Date: Sat, 28 Nov 2026 10:00:00 +0000\r\nMessage-Id: <1@sender.test>\r\n\r\nhello\r\n";

/// A running Rspamd.
#[derive(Debug)]
pub struct Rspamd {
    scratch: Scratch,
    address: String,
    _server: Server,
}

impl Rspamd {
    /// Starts one that has these rules, in the words of its module multimap, and looks for new maps all the
    /// time.
    pub async fn start(rules: &str) -> Self {
        let (scratch, unpacked) = (Scratch::new(), unpacked());
        // No other process is given the port until it listens.
        let reserved = reserve();
        let address = address(&reserved).to_string();
        let (here, share) = (scratch.path().display(), unpacked.join("usr/share/rspamd"));
        let share = share.display();
        let config = format!(
            "options {{\n  filters = \"\"; map_watch_interval = 1s; tempdir = \"{here}\";\n  \
             hs_cache_dir = \"{here}\"; control_socket = \"{here}/control mode=0600\";\n  \
             url_tld = \"{here}/tld\"; dns {{ nameserver = [\"127.0.0.1:1\"]; }}\n}}\n\
             logging {{ type = \"console\"; level = \"info\"; }}\n\
             worker \"normal\" {{ bind_socket = \"{address}\"; count = 1; }}\n\
             actions {{ reject = 15; }}\n\
             lua = \"{here}/init.lua\"\n\
             modules {{ path = \"{share}/plugins/multimap.lua\"; }}\n\
             multimap {{\n{rules}\n}}\n"
        );
        for (name, text) in [
            ("rspamd.conf", &*config),
            ("init.lua", "require \"global_functions\" ()\n"),
            // The whole list takes ten seconds to compile.
            ("tld", "test\n"),
        ] {
            fs::write(scratch.path().join(name), text).expect("the directory can be written");
        }
        let rspamd = unpacked.join("usr/bin/rspamd");
        let mut command = command("setsid", &unpacked.join("usr/lib"));
        command.arg(rspamd).args(["--no-fork", "--insecure", "--config", &scratch.at("rspamd.conf")]);
        for (name, folder) in
            [("PLUGINSDIR", "/plugins"), ("LUALIBDIR", "/lualib"), ("RULESDIR", "/rules"), ("SHAREDIR", "")]
        {
            command.arg(format!("--var={name}={share}{folder}"));
        }
        for name in ["CONFDIR", "LOCAL_CONFDIR", "DBDIR", "RUNDIR", "LOGDIR"] {
            command.arg(format!("--var={name}={here}"));
        }
        let server = Server::start(&mut command, &scratch.at("log"));
        let open = async || tokio::net::TcpStream::connect(&address).await.ok();
        eventually("Rspamd listens", open).await;
        Self { scratch, address, _server: server }
    }

    /// The symbols that a mail to a recipient gets, in their order.
    pub async fn symbols(&self, recipient: &str) -> Vec<String> {
        let request = Request::post(format!("http://{}/checkv2", self.address))
            .header("From", "me@sender.test")
            .header("Rcpt", recipient)
            .body(Full::from(MAIL))
            .expect("a request");
        let (status, _, body) = send(request).await;
        assert_eq!(status, StatusCode::OK, "{body}");
        let answer: Value = serde_json::from_str(&body).expect("JSON");
        let mut symbols: Vec<String> =
            answer["symbols"].as_object().expect("symbols").keys().cloned().collect();
        symbols.sort();
        symbols
    }

    /// Its log.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.scratch.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Rspamd {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
    }
}
