//! Following the feed of changes: one reader of the store serves all clients that wait for news.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, broadcast};
use tokio::time::{Instant, sleep};

use super::source::Source;
use crate::http::{Problem, ProblemType};
use crate::position::{Place, Position};
use crate::store::Portion;

/// How often the store is asked for news while somebody waits. One read takes a tenth of a millisecond.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Most changes in one read. As events they are 16 kB of text, and at most 70 kB.
pub(super) const READ: u32 = 100;

/// Reads that are kept for slow followers: 3 MB, and at most 16 MB, however many follow. A follower that has
/// missed more reads it from the store.
const KEPT: usize = 256;

/// The feed counts as set back once its head has been before what was already read for this long. A copy that
/// lags behind another one catches up sooner; a restored database may take long to get there.
const SET_BACK: Duration = Duration::from_secs(10);

/// Changes that became visible at the same time.
pub(super) type News = Arc<Portion>;

/// The feed of a thread. Nothing is read while nobody follows it. Clones share it.
#[derive(Clone)]
pub(super) struct Feed {
    pub(super) source: Source,
    reader: Arc<Mutex<Option<FeedReader>>>,
}

/// The one reader of the store for all followers. It exists while somebody follows.
struct FeedReader {
    news: broadcast::Sender<News>,
    /// How far it has read.
    position: Position,
}

impl Feed {
    pub(super) fn new(source: Source) -> Self {
        Self { source, reader: Arc::default() }
    }

    /// News from now on, and the place after which none will be missing. The store is not read if the
    /// reader's own position shows that `since` is valid. Fails if the feed has not given the position
    /// `since`.
    pub(super) async fn follow(
        &self,
        since: &Position,
        held: impl Send + 'static,
    ) -> Result<(broadcast::Receiver<News>, Place), Problem> {
        if let Some(reader) = &*self.reader.lock().await
            && self.source.check(since, &reader.position).is_ok()
        {
            return Ok(reader.follow());
        }
        // Without the lock: a slow read must not hold up the news of others.
        let head = self.source.head(held).await?;
        self.source.check(since, &head)?;
        let mut reader = self.reader.lock().await;
        if let Some(reader) = &*reader
            && reader.position.feed == head.feed
        {
            return Ok(reader.follow());
        }
        // The URL may lead to another database by now. Followers of the old reader learn that it is gone.
        let (news, follower) = broadcast::channel(KEPT);
        *reader = Some(FeedReader { news: news.clone(), position: head.clone() });
        tokio::spawn(self.clone().read(news, head.clone()));
        Ok((follower, head.place))
    }

    /// Reads until nobody follows, or until what was read no longer belongs to the feed. Followers then
    /// reconnect, and learn what has become of their position.
    async fn read(self, news: broadcast::Sender<News>, mut position: Position) {
        let mut set_back_at: Option<Instant> = None;
        loop {
            let (is_full, is_over) = match self.source.changes(&position, READ, ()).await {
                Ok(portion) => {
                    let is_set_back = portion.head < position.place;
                    set_back_at = is_set_back.then(|| set_back_at.unwrap_or_else(Instant::now));
                    let is_over = set_back_at.is_some_and(|at| at.elapsed() > SET_BACK);
                    let is_full = portion.is_full;
                    if portion.end > position.place {
                        position = portion.position();
                        self.tell(&news, portion).await;
                    }
                    (is_full, is_over)
                }
                // Any other failure is logged by the read itself, and the next read may succeed.
                Err(problem) => (false, problem.kind == ProblemType::UnknownPosition),
            };
            if is_full {
                continue;
            }
            sleep(POLL_INTERVAL).await;
            if is_over || news.receiver_count() == 0 {
                let mut reader = self.reader.lock().await;
                if is_over || news.receiver_count() == 0 {
                    reader.take_if(|reader| reader.news.same_channel(&news));
                    return;
                }
            }
        }
    }

    /// Sends news to the followers. A new follower gets either this news or a position that is not before it.
    async fn tell(&self, news: &broadcast::Sender<News>, portion: Portion) {
        let mut reader = self.reader.lock().await;
        if let Some(reader) = reader.as_mut().filter(|reader| reader.news.same_channel(news)) {
            reader.position = portion.position();
        }
        // There may be no followers any more.
        let _ = news.send(portion.into());
    }
}

impl FeedReader {
    fn follow(&self) -> (broadcast::Receiver<News>, Place) {
        (self.news.subscribe(), self.position.place.clone())
    }
}
