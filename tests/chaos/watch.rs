//! Polls `/livez` and `/readyz` of every service.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use harness::http::HttpClient;
use harness::usage;
use hyper::StatusCode;
use tokio::task::AbortHandle;

/// How often each service is polled.
const LOOK: Duration = Duration::from_millis(80);

/// A live process answers at once; this allows for a busy machine.
const TIMEOUT: Duration = Duration::from_secs(5);

/// What was seen since the last call of [`Watch::take`].
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    /// Services whose `/readyz` was red.
    pub(crate) red: BTreeSet<&'static str>,
    /// Bad answers of `/livez`.
    pub(crate) dead: Vec<String>,
    /// The peak memory of any process of a service, in megabytes.
    pub(crate) peaks: BTreeMap<&'static str, u64>,
    /// Services of which a running process had no peak that can be read.
    pub(crate) without_peak: BTreeSet<&'static str>,
}

/// The notes of all watchers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Watch(Arc<Mutex<Seen>>);

/// Polls one process until it is dropped. Drop it before the process is killed or stopped.
pub(crate) struct Watcher(AbortHandle);

impl Drop for Watcher {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Seen {
    /// Notes the peak memory of a process of the service `name`.
    pub(crate) fn remember(&mut self, name: &'static str, pid: u32) {
        if let Some(megabytes) = usage::peak_megabytes(pid) {
            let peak = self.peaks.entry(name).or_default();
            *peak = megabytes.max(*peak);
        } else if !usage::has_ended(pid) {
            self.without_peak.insert(name);
        }
    }
}

impl Watch {
    /// Begins to poll a process of the service `name`.
    pub(crate) fn over(&self, name: &'static str, pid: u32, ops_url: String) -> Watcher {
        let seen = Arc::clone(&self.0);
        let client = HttpClient::with_keep_alive();
        let looking = tokio::spawn(async move {
            loop {
                // Read each time, because the process may be killed at any moment.
                seen.lock().unwrap().remember(name, pid);
                let livez = client.get(&format!("{ops_url}/livez"), TIMEOUT).await;
                if !livez.as_ref().is_ok_and(|(status, _)| *status == StatusCode::OK) {
                    seen.lock().unwrap().dead.push(format!("/livez of {name}: {livez:?}"));
                }
                let readyz = client.get(&format!("{ops_url}/readyz"), TIMEOUT).await;
                if !readyz.is_ok_and(|(status, _)| status == StatusCode::OK) {
                    seen.lock().unwrap().red.insert(name);
                }
                tokio::time::sleep(LOOK).await;
            }
        });
        Watcher(looking.abort_handle())
    }

    /// What was seen since the last call.
    pub(crate) fn take(&self) -> Seen {
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}
