//! The dependencies of a process, and whether they are available: the source of `/readyz`.

use std::fmt::{self, Display};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// The dependencies of one process. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Health(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    entries: Mutex<Vec<(&'static str, State)>>,
    changed: Notify,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    /// Not reached yet: not ready, but no failure is reported.
    Starting,
    Up,
    Down(String),
}

/// One dependency's entry, held by the code that talks to it. An entry lasts as long as the process.
#[derive(Clone, Debug)]
pub struct Dependency {
    health: Health,
    index: usize,
    /// Whether changes of its state are logged.
    is_told: bool,
}

impl Health {
    /// Registers a dependency, which is not ready until [`Dependency::up`] is called. Several may share a
    /// name, as the connections to one broker do.
    #[must_use]
    pub fn dependency(&self, name: &'static str) -> Dependency {
        let mut entries = self.entries();
        entries.push((name, State::Starting));
        Dependency { health: self.clone(), index: entries.len() - 1, is_told: true }
    }

    /// Why the process is not ready: one line for each dependency that is not up, without repeats.
    #[must_use]
    pub fn missing(&self) -> Vec<String> {
        let mut lines: Vec<String> = self
            .entries()
            .iter()
            .filter_map(|(name, state)| match state {
                State::Up => None,
                State::Starting => Some(format!("{name}: not reached yet")),
                State::Down(reason) => Some(format!("{name}: {reason}")),
            })
            .collect();
        lines.sort();
        lines.dedup();
        lines
    }

    /// Waits until every dependency is up.
    pub async fn ready(&self) {
        loop {
            // Registered before the check, so a change in between is not missed.
            let changed = self.0.changed.notified();
            if self.missing().is_empty() {
                return;
            }
            changed.await;
        }
    }

    fn entries(&self) -> MutexGuard<'_, Vec<(&'static str, State)>> {
        self.0.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Dependency {
    /// A dependency that affects neither readiness nor the log. Its user reports problems itself.
    #[must_use]
    pub fn untold() -> Self {
        Self { is_told: false, ..Health::default().dependency("untold") }
    }

    /// Marks the dependency as available, and logs the change if it was not: once for all that share its
    /// name, when the last of them is.
    pub fn up(&self) {
        if let Some((name, others)) = self.change(&State::Up)
            && others.iter().all(|other| *other == State::Up)
        {
            tracing::info!(dependency = name, "{name} is available");
        }
    }

    /// Marks the dependency as unavailable or misconfigured, and logs a new reason: once for all that share
    /// its name.
    pub fn down(&self, reason: impl Display) {
        let reason = reason.to_string();
        let down = State::Down(reason.clone());
        if let Some((name, others)) = self.change(&down)
            && !others.contains(&down)
        {
            tracing::warn!(dependency = name, reason, "{name} is not available, trying again: {reason}");
        }
    }

    /// The dependency's name and the states of the others of that name, if this changed its state and the log
    /// tells of it.
    fn change(&self, state: &State) -> Option<(&'static str, Vec<State>)> {
        let mut entries = self.health.entries();
        let (name, before) = &mut entries[self.index];
        if before == state {
            return None;
        }
        let name = *name;
        before.clone_from(state);
        self.health.0.changed.notify_waiters();
        let others =
            entries.iter().enumerate().filter(|(index, entry)| *index != self.index && entry.0 == name);
        self.is_told.then(|| (name, others.map(|(_, entry)| entry.1.clone()).collect()))
    }
}

impl Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let missing = self.missing();
        if missing.is_empty() { f.write_str("ready") } else { f.write_str(&missing.join("\n")) }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn it_is_ready_when_every_dependency_is_up() {
        let health = Health::default();
        assert_eq!(health.to_string(), "ready");
        let (broker, again, database) =
            (health.dependency("broker"), health.dependency("broker"), health.dependency("database"));
        assert_eq!(health.missing(), ["broker: not reached yet", "database: not reached yet"]);
        database.up();
        broker.up();
        again.down("connection refused");
        assert_eq!(health.to_string(), "broker: connection refused");
        again.up();
        assert_eq!(health.to_string(), "ready");
    }

    #[tokio::test]
    async fn who_waits_for_it_is_woken_when_the_last_dependency_is_up() {
        let health = Health::default();
        health.ready().await;
        let (broker, database) = (health.dependency("broker"), health.dependency("database"));
        assert_eq!(health.ready().now_or_never(), None);
        tokio::join!(health.ready(), async {
            broker.up();
            tokio::task::yield_now().await;
            database.up();
        });
        assert_eq!(health.to_string(), "ready");
    }
}
