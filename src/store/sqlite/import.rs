//! An import: a file of history is counted, step by step, and once by its content.

use serde_json::json;
use sqlx::sqlite::SqliteConnection;

use super::audit;
use super::count::count_old;
use crate::domain_name::DomainName;
use crate::store::maintenance::{FileDigest, HistoryFile, ImportPosition, ImportStep, Signature};
use crate::tally::Tally;

const FIND: &str = "\
-- catchall: look how far an import is
select bytes_through, finished_at is not null from imports where digest = ?";

const BEGIN: &str = "\
-- catchall: begin an import
insert into imports (digest, name, bytes, begun_at) values (?, ?, ?, ?)";

/// Begins to import a file, or returns how far its import is; in a transaction that has begun.
pub(super) async fn begin_import(
    connection: &mut SqliteConnection,
    file: &HistoryFile,
    signature: &Signature,
) -> Result<ImportPosition, sqlx::Error> {
    let HistoryFile { digest, name, bytes, rows, skipped } = file;
    if let Some(position) = position(connection, digest).await? {
        return Ok(position);
    }
    sqlx::query(BEGIN)
        .bind(&digest[..])
        .bind(name)
        .bind(integer(*bytes))
        .bind(audit::now())
        .execute(&mut *connection)
        .await?;
    let details = json!({ "sha256": file.hex(), "bytes": bytes, "rows": rows, "skipped": skipped });
    audit::write(connection, "import", name, signature, details).await?;
    Ok(ImportPosition { bytes_through: 0, is_finished: false, is_new: true })
}

async fn position(
    connection: &mut SqliteConnection,
    digest: &FileDigest,
) -> Result<Option<ImportPosition>, sqlx::Error> {
    let row: Option<(i64, bool)> = sqlx::query_as(FIND).bind(&digest[..]).fetch_optional(connection).await?;
    Ok(row.map(|(bytes_through, is_finished)| ImportPosition {
        bytes_through: bytes_through.unsigned_abs(),
        is_finished,
        is_new: false,
    }))
}

const ADVANCE: &str = "\
-- catchall: note how far an import is
update imports set bytes_through = ?1, rows = rows + ?2,
    delivered = delivered + min(?3, 9223372036854775807 - delivered),
    bounced = bounced + min(?4, 9223372036854775807 - bounced), finished_at = iif(?1 >= bytes, ?5, null)
where digest = ?6 and bytes_through = ?7 and finished_at is null";

/// Counts some rows, if the import has come exactly to their beginning, and returns how far it is now; in a
/// transaction that has begun.
pub(super) async fn import(
    connection: &mut SqliteConnection,
    digest: &FileDigest,
    step: &ImportStep,
) -> Result<ImportPosition, sqlx::Error> {
    let (mut delivered, mut bounced) = (0_u64, 0_u64);
    for (_, counters) in step.tally.iter() {
        delivered = delivered.saturating_add(counters.delivered);
        bounced = bounced.saturating_add(counters.bounced);
    }
    let advanced = sqlx::query(ADVANCE)
        .bind(integer(step.to))
        .bind(integer(step.rows))
        .bind(integer(delivered))
        .bind(integer(bounced))
        .bind(audit::now())
        .bind(&digest[..])
        .bind(integer(step.from))
        .execute(&mut *connection)
        .await?;
    if advanced.rows_affected() > 0 {
        let borrowed: Tally<&DomainName> =
            step.tally.iter().map(|(domain, counters)| (domain, *counters)).collect();
        count_old(connection, &borrowed).await?;
    }
    position(connection, digest).await?.ok_or(sqlx::Error::RowNotFound)
}

fn integer(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
