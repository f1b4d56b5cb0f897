//! Following the feed of changes: one reader of the store for all who wait for news.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, broadcast};
use tokio::time::sleep;

use super::source::Source;
use crate::http::Problem;
use crate::position::Position;
use crate::store::Change;

/// How often the store is asked for news while somebody waits for them. It takes a tenth of a millisecond.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Most changes of one read.
pub(super) const READ: u32 = 1000;

/// Reads that wait for a slow follower. It reads what it has missed from the store.
const KEPT: usize = 64;

/// Changes that became visible at the same time.
pub(super) type News = Arc<[Change]>;

/// The feed of a thread. Nothing is read while nobody follows it. Clones share it.
#[derive(Clone)]
pub(super) struct Feed {
    pub(super) source: Source,
    /// Whoever reads the store for all, while somebody follows.
    reader: Arc<Mutex<Option<broadcast::Sender<News>>>>,
}

impl Feed {
    pub(super) fn new(source: Source) -> Self {
        Self { source, reader: Arc::default() }
    }

    /// News from now on. Whatever is not visible to a read that begins after this returns will be among them.
    pub(super) async fn follow(&self) -> Result<broadcast::Receiver<News>, Problem> {
        let mut reader = self.reader.lock().await;
        if let Some(news) = &*reader {
            return Ok(news.subscribe());
        }
        let head = self.source.head().await?;
        let (news, follower) = broadcast::channel(KEPT);
        *reader = Some(news.clone());
        tokio::spawn(self.clone().read(news, head));
        Ok(follower)
    }

    /// Reads until nobody follows.
    async fn read(self, news: broadcast::Sender<News>, mut position: Position) {
        loop {
            // Whatever goes wrong is logged where it is read, and may work the next time.
            let read = self.source.changes(position.clone(), READ).await.unwrap_or_default();
            if let Some(last) = read.last() {
                position = last.position.clone();
                let is_full = read.len() == READ as usize;
                // Nobody may follow by now.
                let _ = news.send(read.into());
                if is_full {
                    continue;
                }
            }
            sleep(POLL_INTERVAL).await;
            if news.receiver_count() == 0 {
                let mut reader = self.reader.lock().await;
                if news.receiver_count() == 0 {
                    *reader = None;
                    return;
                }
            }
        }
    }
}
