//! The audit log: what operators did.

use std::time::{SystemTime, UNIX_EPOCH};

use sqlx::sqlite::SqliteConnection;

use crate::store::maintenance::{AuditEntry, AuditRow, Signature};

const WRITE: &str = "\
-- catchall: note what an operator did
insert into audit_log (at, action, subject, by_whom, reason, details) values (?, ?, ?, ?, ?, ?)";

/// Notes something in the transaction that does it. The details are numbers and short texts.
pub(super) async fn write(
    connection: &mut SqliteConnection,
    action: &str,
    subject: &str,
    signature: &Signature,
    details: serde_json::Value,
) -> Result<(), sqlx::Error> {
    sqlx::query(WRITE)
        .bind(now())
        .bind(action)
        .bind(subject)
        .bind(&signature.by)
        .bind(&signature.reason)
        .bind(details.to_string())
        .execute(connection)
        .await
        .map(drop)
}

/// Milliseconds since 1970.
pub(super) fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

const READ: &str = "\
-- catchall: read what operators did
select at, action, subject, by_whom, reason, details from audit_log order by id desc limit ?";

/// The latest entries, the last one first.
pub(super) async fn read(
    connection: &mut SqliteConnection,
    limit: u32,
) -> Result<Vec<AuditEntry>, sqlx::Error> {
    let rows: Vec<AuditRow> = sqlx::query_as(READ).bind(limit).fetch_all(connection).await?;
    Ok(rows.into_iter().map(AuditEntry::from).collect())
}
