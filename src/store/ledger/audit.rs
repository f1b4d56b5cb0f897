//! The audit log: what operators did.

use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use crate::store::maintenance::{AuditEntry, AuditRow, Signature};

const WRITE: &str = "\
-- catchall: note what an operator did
insert into audit_log (id, action, subject, by_whom, reason, details)
values ($1, $2, $3, $4, $5, $6::text::jsonb)";

/// Records an action in the transaction that does it. The details are numbers and short texts.
pub(super) async fn write(
    connection: &mut PgConnection,
    action: &str,
    subject: &str,
    signature: &Signature,
    details: serde_json::Value,
) -> Result<(), sqlx::Error> {
    sqlx::query(WRITE)
        .bind(Uuid::now_v7())
        .bind(action)
        .bind(subject)
        .bind(&signature.by)
        .bind(&signature.reason)
        .bind(details.to_string())
        .execute(connection)
        .await
        .map(drop)
}

const READ: &str = "\
-- catchall: read what operators did
select (date_part('epoch', at) * 1000)::bigint, action, subject, by_whom, reason, details::text
from audit_log order by at desc, id desc limit $1";

/// The latest entries, the latest first.
pub(super) async fn read(pool: &PgPool, limit: u32) -> Result<Vec<AuditEntry>, sqlx::Error> {
    let rows: Vec<AuditRow> = sqlx::query_as(READ).bind(i64::from(limit)).fetch_all(pool).await?;
    Ok(rows.into_iter().map(AuditEntry::from).collect())
}
