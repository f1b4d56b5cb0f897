//! The data about all domains on the page, read once for all visitors at the same moment.

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

/// How long the data is reused: many reloads cost no more reads than this allows.
const KEPT: Duration = Duration::from_secs(1);

/// The data for the page.
#[derive(Debug)]
pub(super) struct Glance {
    pub(super) totals: Totals,
    /// The latest changes, the latest first.
    pub(super) latest: Portion,
    pub(super) standing: Standing,
    pub(super) read_at: UtcTime,
}

/// When the data was last read, and the data: `None` if it could not be read.
type Last = Option<(Instant, Option<Arc<Glance>>)>;

/// The data that was last read, for all threads of a process.
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

    /// The data to show; `None` if it cannot be read. Requests that come during a read wait for it.
    pub(super) async fn take(&self) -> Option<Arc<Glance>> {
        let mut last = Arc::clone(&self.last.0).lock_owned().await;
        if let Some((at, glance)) = &*last
            && at.elapsed() < KEPT
        {
            return glance.clone();
        }
        let this = self.clone();
        // To its end, even if the client goes away: the store goes on, and the next client would have it read
        // again.
        let reading = tokio::spawn(async move {
            let glance = this.read().await.ok().map(Arc::new);
            *last = Some((Instant::now(), glance.clone()));
            glance
        });
        reading.await.expect("a read does not panic")
    }

    async fn read(&self) -> Result<Glance, Problem> {
        let (totals, latest, standing) = futures::try_join!(
            self.source.totals(MINUTES, ()),
            self.source.latest(CHANGES),
            self.source.standing()
        )?;
        let read_at = UtcTime(OffsetDateTime::now_utc().unix_timestamp() * 1000);
        Ok(Glance { totals, latest, standing, read_at })
    }
}
