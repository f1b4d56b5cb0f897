//! A connection whose statement is interrupted when no caller waits for it.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;

use sqlx::sqlite::SqliteConnection;

/// Steps of SQLite's virtual machine between two checks whether the caller still waits: less than a
/// millisecond.
const STEPS: i32 = 10_000;

/// A connection that only reads. If the caller goes away before the end, the statement is interrupted, and
/// the thread that runs it ends. Otherwise a client that gives up each request at once would leave one thread
/// behind after another, each busy to the end of its statement.
#[derive(Debug)]
pub(super) struct Interruptible {
    connection: SqliteConnection,
    is_abandoned: Arc<AtomicBool>,
}

impl Interruptible {
    pub(super) async fn new(mut connection: SqliteConnection) -> Result<Self, sqlx::Error> {
        let is_abandoned = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&is_abandoned);
        connection.lock_handle().await?.set_progress_handler(STEPS, move || !flag.load(Relaxed));
        Ok(Self { connection, is_abandoned })
    }

    /// Reads, and returns the connection if that went well.
    pub(super) async fn read<T>(
        mut self,
        read: impl AsyncFnOnce(&mut SqliteConnection) -> Result<T, sqlx::Error>,
    ) -> Result<(T, Self), sqlx::Error> {
        let mut interest = Interest(Some(Arc::clone(&self.is_abandoned)));
        let found = read(&mut self.connection).await?;
        interest.0 = None;
        Ok((found, self))
    }
}

/// Abandons a connection when it is dropped, unless it was taken out before.
struct Interest(Option<Arc<AtomicBool>>);

impl Drop for Interest {
    fn drop(&mut self) {
        if let Some(is_abandoned) = &self.0 {
            is_abandoned.store(true, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use sqlx::Connection;
    use tokio::time::{sleep, timeout};

    use super::*;

    async fn count_forever(connection: &mut SqliteConnection) -> Result<i64, sqlx::Error> {
        let endless =
            "with recursive n(i) as (select 1 union all select i + 1 from n) select count(*) from n";
        sqlx::query_scalar(endless).fetch_one(connection).await
    }

    #[tokio::test]
    async fn a_statement_ends_when_nobody_waits_for_it() {
        let connection = SqliteConnection::connect(":memory:").await.unwrap();
        let connection = Interruptible::new(connection).await.unwrap();
        // The thread of the connection has the other reference, for as long as it runs.
        let thread = Arc::downgrade(&connection.is_abandoned);
        let read = connection.read(count_forever);
        assert!(timeout(Duration::from_millis(50), read).await.is_err());
        while thread.upgrade().is_some() {
            sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn a_connection_goes_on_after_a_read() {
        let connection = SqliteConnection::connect(":memory:").await.unwrap();
        let mut connection = Interruptible::new(connection).await.unwrap();
        for number in 0..3 {
            let read = async |connection: &mut SqliteConnection| {
                sqlx::query_scalar::<_, i64>("select ?").bind(number).fetch_one(connection).await
            };
            let (found, back) = connection.read(read).await.unwrap();
            assert_eq!(found, number);
            connection = back;
        }
    }
}
