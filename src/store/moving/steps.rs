//! The statements of one step of a move.

use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use crate::counters::Counters;
use crate::store::maintenance::AuditEntry;
use crate::store::sqlite::{Imported, Noted};

/// A claim that is also in the ledger keeps the later of both times.
const ADD_CLAIMS: &str = "\
-- catchall: move claims
insert into event_claims as c (id, claimed_at)
select id, to_timestamp(used_at) from unnest($1::uuid[], $2::float8[]) as moved (id, used_at)
on conflict (id) do update set claimed_at = greatest(c.claimed_at, excluded.claimed_at)";

/// Adds claims and records the progress. `false`: the ledger is not where the step would begin.
pub(super) async fn add_claims(
    pool: &PgPool,
    id: Uuid,
    from: Option<Uuid>,
    claims: Vec<(Uuid, i64)>,
) -> Result<bool, sqlx::Error> {
    let mut transaction = pool.begin().await?;
    let count = i64::try_from(claims.len()).unwrap_or(i64::MAX);
    let through = claims.last().map(|(id, _)| *id);
    // First, and only from where the ledger is: a step of a move that was killed may have come between.
    let moved = sqlx::query(
        "-- catchall: note how far the claims are moved
        update moves set claims_through = $3, claims = claims + $4
        where file_id = $1 and claims_through is not distinct from $2 and finished_at is null",
    );
    let moved = moved.bind(id).bind(from).bind(through).bind(count).execute(&mut *transaction).await?;
    if moved.rows_affected() == 0 {
        return Ok(false);
    }
    #[expect(clippy::cast_precision_loss, reason = "seconds since 1970 have few digits")]
    let (ids, used_at): (Vec<Uuid>, Vec<f64>) = claims.into_iter().map(|(id, at)| (id, at as f64)).unzip();
    sqlx::query(ADD_CLAIMS).bind(ids).bind(used_at).execute(&mut *transaction).await?;
    transaction.commit().await.map(|()| true)
}

/// The domains of the file reached their statuses earlier: a status that was reached in this transaction gets
/// the time from the file.
const DATE_BACK: &str = "\
-- catchall: note since when moved statuses are
update domain_statuses as s set since = to_timestamp(moved.since)
from unnest($2::text[], $3::smallint[], $4::float8[]) as moved (domain, status, since)
where s.domain = moved.domain and s.status = moved.status and s.changed_in = $1
    and s.since > to_timestamp(moved.since)";

/// Dates back the statuses that a transaction has recorded, to the time at which the file recorded the same.
pub(super) async fn date_back(
    connection: &mut PgConnection,
    transaction: i64,
    noted: &[Noted],
) -> Result<(), sqlx::Error> {
    if noted.is_empty() {
        return Ok(());
    }
    let domains: Vec<&str> = noted.iter().map(|noted| noted.domain.as_str()).collect();
    let statuses: Vec<i16> = noted.iter().map(|noted| noted.status.number()).collect();
    #[expect(clippy::cast_precision_loss, reason = "milliseconds since 1970 are exact")]
    let since: Vec<f64> = noted.iter().map(|noted| noted.since.0 as f64 / 1000.0).collect();
    sqlx::query(DATE_BACK)
        .bind(transaction)
        .bind(domains)
        .bind(statuses)
        .bind(since)
        .execute(connection)
        .await
        .map(drop)
}

/// A file that both have imported already counts twice; it must not be imported once more.
const ADD_IMPORT: &str = "\
-- catchall: move the note of an import
insert into imports (digest, name, bytes, bytes_through, rows, delivered, bounced, begun_at, finished_at)
values ($1, $2, $3, $4, $5, $6, $7, to_timestamp($8), to_timestamp($9)) on conflict do nothing";

const ADD_ENTRY: &str = "\
-- catchall: move an entry of the audit log
insert into audit_log (id, at, action, subject, by_whom, reason, details)
values ($1, to_timestamp($2), $3, $4, $5, $6, $7::text::jsonb) on conflict do nothing";

/// Adds the audit log of the file, in one transaction. It may be repeated: an entry has the same id each
/// time.
#[expect(clippy::cast_precision_loss, reason = "milliseconds since 1970 are exact")]
pub(super) async fn add_records(
    pool: &PgPool,
    file: Uuid,
    imports: &[Imported],
    audit: &[AuditEntry],
) -> Result<(), sqlx::Error> {
    let mut transaction = pool.begin().await?;
    for import in imports {
        let [bytes, bytes_through, rows, delivered, bounced] = import.numbers;
        sqlx::query(ADD_IMPORT)
            .bind(&import.digest)
            .bind(&import.name)
            .bind(bytes)
            .bind(bytes_through)
            .bind(rows)
            .bind(delivered)
            .bind(bounced)
            .bind(import.begun_at as f64 / 1000.0)
            .bind(import.finished_at.map(|at| at as f64 / 1000.0))
            .execute(&mut *transaction)
            .await?;
    }
    for (number, entry) in audit.iter().enumerate() {
        let id = Uuid::new_v5(&file, format!("audit {number}").as_bytes());
        sqlx::query(ADD_ENTRY)
            .bind(id)
            .bind(entry.at.0 as f64 / 1000.0)
            .bind(&entry.action)
            .bind(&entry.subject)
            .bind(&entry.signature.by)
            .bind(&entry.signature.reason)
            .bind(&entry.details)
            .execute(&mut *transaction)
            .await?;
    }
    transaction.commit().await
}

/// The first of these domains that has fewer events in the ledger.
pub(super) async fn find_missing(
    pool: &PgPool,
    rows: &[(String, Counters)],
) -> Result<Option<String>, sqlx::Error> {
    let bigint = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
    let domains: Vec<&str> = rows.iter().map(|(domain, _)| domain.as_str()).collect();
    let delivered: Vec<i64> = rows.iter().map(|(_, counters)| bigint(counters.delivered)).collect();
    let bounced: Vec<i64> = rows.iter().map(|(_, counters)| bigint(counters.bounced)).collect();
    sqlx::query_scalar(
        "-- catchall: find a domain that was not moved
        select domain from unnest($1::text[], $2::bigint[], $3::bigint[]) as moved (domain, delivered, bounced)
        left join domain_counters as c using (domain)
        where c.domain is null or c.delivered < moved.delivered or c.bounced < moved.bounced
        order by domain limit 1",
    )
    .bind(domains)
    .bind(delivered)
    .bind(bounced)
    .fetch_optional(pool)
    .await
}
