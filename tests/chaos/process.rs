//! A process of the system under load, and its watcher.

use anyhow::{Result, anyhow};
use harness::processes::Service;

use crate::watch::{Watch, Watcher};

/// A process of a service, and its watcher.
pub(crate) struct WatchedProcess {
    pub(crate) service: Service,
    pub(crate) name: &'static str,
    watcher: Option<Watcher>,
}

impl WatchedProcess {
    /// Begins to watch a process that is ready.
    pub(crate) fn new(name: &'static str, service: Service, watch: &Watch) -> Self {
        let mut process = Self { service, name, watcher: None };
        process.look(watch);
        process
    }

    /// Starts a watcher for it.
    pub(crate) fn look(&mut self, watch: &Watch) {
        let ops_url = format!("http://{}", self.service.ops_address());
        self.watcher = Some(watch.over(self.name, self.service.pid(), ops_url));
    }

    /// Stops its watcher, because what follows is intended.
    pub(crate) fn look_away(&mut self) {
        self.watcher = None;
    }

    /// Stops it with SIGKILL.
    pub(crate) async fn kill(mut self) {
        self.look_away();
        self.service.signal("KILL");
        self.service.ended().await;
    }

    /// Stops it with SIGTERM.
    pub(crate) async fn stop(mut self) -> Result<()> {
        self.look_away();
        self.service.signal("TERM");
        let status = self.service.ended().await;
        if status.success() { Ok(()) } else { Err(anyhow!("{} ended with {status} on SIGTERM", self.name)) }
    }
}
