//! SQL statements of a superuser, or on a data file, each on its own connection.

use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use catchall_load::counts::Counts;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{AssertSqlSafe, Connection, PgConnection};

/// How long a statement of [`column`] may take: milliseconds, unless its server is unavailable.
const STATEMENT: Duration = Duration::from_mins(1);

/// How long the primary may take for the counters of some thousand domains.
const READ: Duration = Duration::from_secs(30);

/// How long a replica may take to catch up with the primary: it may be minutes behind.
const REPLAY: Duration = Duration::from_mins(10);

async fn connected<T>(
    url: &str,
    work: impl AsyncFnOnce(&mut PgConnection) -> sqlx::Result<T>,
) -> sqlx::Result<T> {
    let mut connection = PgConnection::connect(url).await?;
    let done = work(&mut connection).await?;
    connection.close().await?;
    Ok(done)
}

/// Runs statements and ignores what they return.
///
/// # Errors
///
/// When they fail.
pub async fn execute(url: &str, statements: &str) -> anyhow::Result<()> {
    let executed = connected(url, async |connection| {
        sqlx::raw_sql(AssertSqlSafe(statements)).execute(connection).await.map(drop)
    });
    executed.await.with_context(|| format!("cannot execute {statements:?}"))
}

async fn rows(url: &str, query: &str) -> anyhow::Result<Vec<Option<String>>> {
    let rows = connected(url, async |connection| {
        sqlx::query_scalar(AssertSqlSafe(query)).fetch_all(connection).await
    });
    rows.await.with_context(|| format!("cannot query {query:?}"))
}

/// The text that a query returns.
///
/// # Errors
///
/// When it fails or returns none.
pub async fn text(url: &str, query: &str) -> anyhow::Result<String> {
    let first = rows(url, query).await?.into_iter().next().flatten();
    first.with_context(|| format!("no text is returned by {query:?}"))
}

/// The number that a query returns.
///
/// # Errors
///
/// When it fails or returns none.
pub async fn number(url: &str, query: &str) -> anyhow::Result<i64> {
    let number = connected(url, async |connection| {
        sqlx::query_scalar(AssertSqlSafe(query)).fetch_one(connection).await
    });
    number.await.with_context(|| format!("cannot query {query:?}"))
}

/// The first column of the rows of a query, which has to be text.
///
/// # Errors
///
/// When it fails, or takes longer than any such query should.
pub async fn column(url: &str, query: &str) -> anyhow::Result<Vec<Option<String>>> {
    let rows = tokio::time::timeout(STATEMENT, rows(url, query)).await;
    rows.with_context(|| format!("no answer to {query:?} within {STATEMENT:?}"))?
}

/// Waits until a query returns a row.
///
/// # Errors
///
/// When it returns none within `timeout`.
pub async fn until_row(url: &str, query: &str, timeout: Duration) -> anyhow::Result<()> {
    let begun = Instant::now();
    loop {
        let answer = column(url, query).await;
        if answer.as_ref().is_ok_and(|rows| !rows.is_empty()) {
            return Ok(());
        }
        if begun.elapsed() > timeout {
            bail!("waited {timeout:?} in vain: {query}: {answer:?}");
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The counters of the domains that have any.
///
/// # Errors
///
/// When they cannot be read.
pub async fn counts(url: &str, domains: &[String]) -> anyhow::Result<HashMap<String, Counts>> {
    const COUNTS: &str =
        "select domain, delivered, bounced from domain_counters where domain = any($1::text[])";
    let reading = connected(url, async |connection| {
        sqlx::query_as::<_, (String, i64, i64)>(COUNTS).bind(domains).fetch_all(connection).await
    });
    let rows = tokio::time::timeout(READ, reading).await;
    let rows = rows.with_context(|| format!("the counters cannot be read within {READ:?}"))?;
    let rows = rows.context("the counters cannot be read")?.into_iter();
    let counts = |delivered, bounced| Counts { delivered: count(delivered), bounced: count(bounced) };
    Ok(rows.map(|(name, delivered, bounced)| (name, counts(delivered, bounced))).collect())
}

/// A counter, which is never negative.
fn count(bigint: i64) -> u64 {
    u64::try_from(bigint).unwrap_or_default()
}

/// The sum of all counters.
///
/// # Errors
///
/// When it cannot be read.
pub async fn sums(url: &str) -> anyhow::Result<Counts> {
    const SUMS: &str =
        "select concat(coalesce(sum(delivered), 0), ' ', coalesce(sum(bounced), 0)) from domain_counters";
    let sums = text(url, SUMS).await?;
    let (delivered, bounced) = sums.split_once(' ').context("two sums")?;
    Ok(Counts { delivered: delivered.parse()?, bounced: bounced.parse()? })
}

/// How many deadlocks there have been in the database.
///
/// # Errors
///
/// When it cannot be read.
pub async fn deadlocks(url: &str) -> anyhow::Result<u64> {
    const DEADLOCKS: &str = "select deadlocks from pg_stat_database where datname = current_database()";
    Ok(count(number(url, DEADLOCKS).await?))
}

/// Waits until the replica has everything that is on the primary now.
///
/// # Errors
///
/// When that takes longer than ten minutes.
pub async fn replayed(primary: &str, replica: &str) -> anyhow::Result<()> {
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

async fn opened<T>(
    file: &Path,
    work: impl AsyncFnOnce(&mut SqliteConnection) -> sqlx::Result<T>,
) -> sqlx::Result<T> {
    let options = SqliteConnectOptions::new().filename(file).busy_timeout(STATEMENT);
    let mut connection = SqliteConnection::connect_with(&options).await?;
    let done = work(&mut connection).await?;
    connection.close().await?;
    Ok(done)
}

/// Runs statements on a data file, which a process may serve meanwhile, and ignores what they return.
///
/// # Errors
///
/// When they fail.
pub async fn execute_in(file: &Path, statements: &str) -> anyhow::Result<()> {
    let executed = opened(file, async |connection| {
        sqlx::raw_sql(AssertSqlSafe(statements)).execute(connection).await.map(drop)
    });
    executed.await.with_context(|| format!("cannot execute {statements:?} in {}", file.display()))
}

/// The number that a query of a data file returns, which a process may serve meanwhile.
///
/// # Errors
///
/// When it fails or returns none.
pub async fn number_in(file: &Path, query: &str) -> anyhow::Result<i64> {
    let number =
        opened(file, async |connection| sqlx::query_scalar(AssertSqlSafe(query)).fetch_one(connection).await);
    number.await.with_context(|| format!("cannot query {query:?} in {}", file.display()))
}

/// The text that a query of a data file returns, which a process may serve meanwhile.
///
/// # Errors
///
/// When it fails or returns none.
pub async fn text_in(file: &Path, query: &str) -> anyhow::Result<String> {
    let text =
        opened(file, async |connection| sqlx::query_scalar(AssertSqlSafe(query)).fetch_one(connection).await);
    text.await.with_context(|| format!("cannot query {query:?} in {}", file.display()))
}
