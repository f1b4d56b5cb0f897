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

/// Most changes of one read. As events they are 16 kB of text, and at most 70 kB.
pub(super) const READ: u32 = 100;

/// Reads that wait for a slow follower: 3 MB, and at most 16 MB, however many follow. It reads what it has
/// missed from the store.
const KEPT: usize = 256;

/// Changes that became visible at the same time.
pub(super) type News = Arc<[Change]>;

/// The feed of a thread. Nothing is read while nobody follows it. Clones share it.
#[derive(Clone)]
pub(super) struct Feed {
    pub(super) source: Source,
    reader: Arc<Mutex<Option<FeedReader>>>,
}

/// Whoever reads the store for all, while somebody follows.
struct FeedReader {
    news: broadcast::Sender<News>,
    /// How far it has read.
    position: Position,
}

impl Feed {
    pub(super) fn new(source: Source) -> Self {
        Self { source, reader: Arc::default() }
    }

    /// News from now on, and the position after which none will be missing. Whoever is there already need not
    /// read the store.
    pub(super) async fn follow(&self) -> Result<(broadcast::Receiver<News>, Position), Problem> {
        let mut reader = self.reader.lock().await;
        if let Some(FeedReader { news, position }) = &*reader {
            return Ok((news.subscribe(), position.clone()));
        }
        let position = self.source.head().await?;
        let (news, follower) = broadcast::channel(KEPT);
        *reader = Some(FeedReader { news: news.clone(), position: position.clone() });
        tokio::spawn(self.clone().read(news, position.clone()));
        Ok((follower, position))
    }

    /// Reads until nobody follows.
    async fn read(self, news: broadcast::Sender<News>, mut position: Position) {
        loop {
            // Whatever goes wrong is logged where it is read, and may work the next time.
            let read = self.source.changes(position.clone(), READ).await.unwrap_or_default();
            if let Some(last) = read.last() {
                position = last.position.clone();
                let is_full = read.len() == READ as usize;
                // Whoever begins to follow gets either these news or a position that is not before them.
                let mut reader = self.reader.lock().await;
                *reader = Some(FeedReader { news: news.clone(), position: position.clone() });
                // Nobody may follow by now.
                let _ = news.send(read.into());
                drop(reader);
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
