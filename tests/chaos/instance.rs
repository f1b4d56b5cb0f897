//! The servers as processes and from above: `./dev` on this run's instance, and statements of a superuser.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use sqlx::{AssertSqlSafe, Connection, PgConnection};

use crate::round::Result;

/// A statement here takes milliseconds, unless its server is away.
const STATEMENT: Duration = Duration::from_secs(5);

/// Where the instance has its data.
pub(crate) fn data(name: &str) -> PathBuf {
    let instance = std::env::var("CATCHALL_DEV").expect("./dev chaos says which instance is its own");
    PathBuf::from(instance).join("data").join(name)
}

/// Runs `./dev` on the instance and returns what it printed.
pub(crate) async fn dev(arguments: &[&str]) -> Result<String> {
    let mut command = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/dev"));
    command.args(arguments);
    let output = tokio::task::spawn_blocking(move || command.output()).await.expect("it does not panic");
    let output = output.map_err(|error| format!("./dev: {error}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() {
        Ok(text(&output.stdout))
    } else {
        Err(format!("./dev {}: {}{}", arguments.join(" "), text(&output.stdout), text(&output.stderr)))
    }
}

/// Runs the broker's own tool.
pub(crate) async fn rabbitmqctl(arguments: &[&str]) -> Result<String> {
    dev(&[&["rabbitmqctl", "--quiet"], arguments].concat()).await
}

/// Runs a statement and returns the first column of its rows, which has to be text.
pub(crate) async fn sql(url: &str, statement: &str) -> Result<Vec<Option<String>>> {
    let asking = async {
        let mut connection = PgConnection::connect(url).await?;
        let rows = sqlx::query_scalar(AssertSqlSafe(statement)).fetch_all(&mut connection).await?;
        connection.close().await?;
        Ok(rows)
    };
    let failed = |reason: String| format!("{statement}: {reason}");
    match tokio::time::timeout(STATEMENT, asking).await {
        Ok(done) => done.map_err(|error: sqlx::Error| failed(error.to_string())),
        Err(_) => Err(failed(format!("no answer within {STATEMENT:?}"))),
    }
}

/// Waits until a statement returns a row.
pub(crate) async fn sql_until(url: &str, statement: &str, patience: Duration) -> Result<()> {
    let begun = Instant::now();
    loop {
        let answer = sql(url, statement).await;
        if answer.as_ref().is_ok_and(|rows| !rows.is_empty()) {
            return Ok(());
        }
        if begun.elapsed() > patience {
            return Err(format!("waited {patience:?} in vain: {statement}: {answer:?}"));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
