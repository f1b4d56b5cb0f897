//! An import: a file of history is counted, step by step, and once by its content.

use serde_json::json;
use sqlx::PgPool;
use uuid::Uuid;

use super::audit;
use super::count::{begin, count_old, rule};
use crate::domain_name::DomainName;
use crate::store::maintenance::{FileDigest, HistoryFile, ImportPosition, ImportStep, Signature};
use crate::store::postgres::Steps;
use crate::tally::Tally;

const FIND: &str = "\
-- catchall: look how far an import is
select bytes_through, finished_at is not null from imports where digest = $1";

const BEGIN: &str = "\
-- catchall: begin an import
insert into imports (digest, name, bytes) values ($1, $2, $3) on conflict do nothing returning bytes_through";

/// Begins to import a file, or returns how far its import is.
pub(super) async fn begin_import(
    pool: &PgPool,
    file: &HistoryFile,
    signature: &Signature,
) -> Result<ImportPosition, sqlx::Error> {
    let HistoryFile { digest, name, bytes, rows, skipped } = file;
    let mut transaction = pool.begin().await?;
    let begun: Option<i64> = sqlx::query_scalar(BEGIN)
        .bind(&digest[..])
        .bind(name)
        .bind(i64::try_from(*bytes).unwrap_or(i64::MAX))
        .fetch_optional(&mut *transaction)
        .await?;
    if begun.is_none() {
        transaction.rollback().await?;
        return position(pool, digest).await;
    }
    let details = json!({ "sha256": file.hex(), "bytes": bytes, "rows": rows, "skipped": skipped });
    audit::write(&mut transaction, "import", name, signature, details).await?;
    transaction.commit().await?;
    Ok(ImportPosition { bytes_through: 0, is_finished: false, is_new: true })
}

async fn position(pool: &PgPool, digest: &FileDigest) -> Result<ImportPosition, sqlx::Error> {
    let (bytes_through, is_finished): (i64, bool) =
        sqlx::query_as(FIND).bind(&digest[..]).fetch_one(pool).await?;
    Ok(ImportPosition { bytes_through: bytes_through.unsigned_abs(), is_finished, is_new: false })
}

/// First, and only from where the import is: another run may have come between.
const ADVANCE: &str = "\
-- catchall: note how far an import is
update imports set bytes_through = $3, rows = rows + $4, delivered = delivered + $5::text::numeric,
    bounced = bounced + $6::text::numeric, finished_at = case when $3 >= bytes then now() end
where digest = $1 and bytes_through = $2 and finished_at is null";

/// Counts some rows, if the import has come exactly to their beginning, and returns how far it is now.
pub(super) async fn import(
    pool: &PgPool,
    steps: &Steps,
    writer: Uuid,
    digest: &FileDigest,
    step: &ImportStep,
) -> Result<ImportPosition, sqlx::Error> {
    let bigint = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    let (mut delivered, mut bounced) = (0_u128, 0_u128);
    for (_, counters) in step.tally.iter() {
        delivered += u128::from(counters.delivered);
        bounced += u128::from(counters.bounced);
    }
    let mut transaction = begin(pool).await?;
    let advanced = sqlx::query(ADVANCE)
        .bind(&digest[..])
        .bind(bigint(step.from))
        .bind(bigint(step.to))
        .bind(bigint(step.rows))
        .bind(delivered.to_string())
        .bind(bounced.to_string())
        .execute(&mut *transaction)
        .await?;
    if advanced.rows_affected() == 0 {
        transaction.rollback().await?;
        return position(pool, digest).await;
    }
    if !step.tally.is_empty() {
        let borrowed: Tally<&DomainName> =
            step.tally.iter().map(|(domain, counters)| (domain, *counters)).collect();
        let rule = rule(&mut transaction).await?;
        count_old(&mut transaction, steps, writer, rule, &borrowed).await?;
    }
    transaction.commit().await?;
    position(pool, digest).await
}
