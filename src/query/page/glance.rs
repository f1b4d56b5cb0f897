//! What the page shows of all domains, read once for all who look at the same moment.

use std::sync::Arc;
use std::time::Duration;

use time::OffsetDateTime;
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::http::Problem;
use crate::query::source::Source;
use crate::query::totals::MINUTES;
use crate::store::{Portion, Standing};
use crate::totals::Totals;
use crate::utc_time::UtcTime;

/// Changes that are shown.
const CHANGES: u32 = 20;

/// How long what was read is shown to others too: strangers who reload cost no more reads than this allows.
const KEPT: Duration = Duration::from_secs(1);

/// All that was read for the page.
#[derive(Debug)]
pub(super) struct Glance {
    pub(super) totals: Totals,
    /// The last changes, the last one first.
    pub(super) latest: Portion,
    pub(super) standing: Standing,
    pub(super) read_at: UtcTime,
}

/// When it was read last, and what was read: `None` if it could not be.
type Last = Option<(Instant, Option<Arc<Glance>>)>;

/// What was read last, for all threads of a process.
#[derive(Clone, Default)]
pub(in crate::query) struct LastGlance(Arc<Mutex<Last>>);

/// Reads for the pages of a thread.
#[derive(Clone)]
pub(super) struct Glances {
    source: Source,
    last: LastGlance,
}

impl Glances {
    pub(super) fn new(source: Source, last: LastGlance) -> Self {
        Self { source, last }
    }

    /// What is to be shown; `None` where it cannot be read. Those who come while it is read wait for it.
    pub(super) async fn take(&self) -> Option<Arc<Glance>> {
        let mut last = self.last.0.lock().await;
        if let Some((at, glance)) = &*last
            && at.elapsed() < KEPT
        {
            return glance.clone();
        }
        let glance = self.read().await.ok().map(Arc::new);
        *last = Some((Instant::now(), glance.clone()));
        glance
    }

    async fn read(&self) -> Result<Glance, Problem> {
        let (totals, latest, standing) = futures::try_join!(
            self.source.totals(MINUTES),
            self.source.latest(CHANGES),
            self.source.standing()
        )?;
        let read_at = UtcTime(OffsetDateTime::now_utc().unix_timestamp() * 1000);
        Ok(Glance { totals, latest, standing, read_at })
    }
}
