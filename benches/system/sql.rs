//! Statements of this program's own, each on a connection of its own.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use catchall::counters::Counters;
use sqlx::{AssertSqlSafe, Connection, PgConnection};

/// How long a replica may take to have what the primary had a moment ago: it may have fallen behind for minutes.
const REPLAY: Duration = Duration::from_mins(10);

/// Runs statements that return nothing.
pub(crate) async fn execute(url: &str, statements: &str) -> anyhow::Result<()> {
    let mut connection = PgConnection::connect(url).await?;
    let done = sqlx::raw_sql(AssertSqlSafe(statements)).execute(&mut connection).await;
    done.with_context(|| format!("cannot execute {statements:?}"))?;
    connection.close().await?;
    Ok(())
}

/// The text that a query returns.
pub(crate) async fn text(url: &str, query: &str) -> anyhow::Result<String> {
    let mut connection = PgConnection::connect(url).await?;
    let text = sqlx::query_scalar(AssertSqlSafe(query)).fetch_one(&mut connection).await;
    let text = text.with_context(|| format!("cannot query {query:?}"))?;
    connection.close().await?;
    Ok(text)
}

/// The sum of all counters.
pub(crate) async fn sums(url: &str) -> anyhow::Result<Counters> {
    const SUMS: &str =
        "select concat(coalesce(sum(delivered), 0), ' ', coalesce(sum(bounced), 0)) from domain_counters";
    let sums = text(url, SUMS).await?;
    let (delivered, bounced) = sums.split_once(' ').context("two sums")?;
    Ok(Counters { delivered: delivered.parse()?, bounced: bounced.parse()? })
}

/// What was added to all counters between two looks.
pub(crate) fn between(before: Counters, after: Counters) -> Counters {
    Counters { delivered: after.delivered - before.delivered, bounced: after.bounced - before.bounced }
}

/// How often a transaction was ended because it waited in a circle.
pub(crate) async fn deadlocks(url: &str) -> anyhow::Result<u64> {
    const DEADLOCKS: &str = "select deadlocks::text from pg_stat_database where datname = current_database()";
    Ok(text(url, DEADLOCKS).await?.parse()?)
}

/// Waits until the replica has all that the primary has now.
pub(crate) async fn replayed(primary: &str, replica: &str) -> anyhow::Result<()> {
    let written = text(primary, "select pg_current_wal_flush_lsn()::text").await?;
    let has = format!("select (pg_last_wal_replay_lsn() >= '{written}')::text");
    let begun = Instant::now();
    while text(replica, &has).await? != "true" {
        if begun.elapsed() > REPLAY {
            bail!("the replica has not replayed {written} within {REPLAY:?}");
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}
