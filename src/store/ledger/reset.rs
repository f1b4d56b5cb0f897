//! A reset: all events of one domain are forgotten. Claims stay, so what was counted is not counted again.

use serde_json::json;
use sqlx::PgPool;
use uuid::Uuid;

use super::count::{begin, rule};
use super::totals::{self, Delta};
use super::{audit, statuses};
use crate::counters::{Counters, Status};
use crate::store::maintenance::{ResetDomain, Signature};

/// A step of a reclassification could otherwise record a status of counters that it read before they were
/// removed.
const NO_STEP: &str = "\
-- catchall: keep reclassifications away
select from classification for share";

const REMOVE: &str = "\
-- catchall: remove the counters of a domain
delete from domain_counters where domain = $1 returning delivered, bounced";

const WAS: &str = "\
-- catchall: look at a status
select status from domain_statuses where domain = $1";

/// Forgets the events of a domain. `None`: it had none.
pub(super) async fn reset(
    pool: &PgPool,
    writer: Uuid,
    domain: &str,
    signature: &Signature,
) -> Result<Option<ResetDomain>, sqlx::Error> {
    let mut transaction = begin(pool).await?;
    let rule = rule(&mut transaction).await?;
    sqlx::query(NO_STEP).execute(&mut *transaction).await?;
    let row: Option<(i64, i64)> =
        sqlx::query_as(REMOVE).bind(domain).fetch_optional(&mut *transaction).await?;
    let counters = row.map(|(delivered, bounced)| Counters {
        delivered: delivered.unsigned_abs(),
        bounced: bounced.unsigned_abs(),
    });
    let Some(counters) = counters.filter(|counters| *counters != Counters::default()) else {
        transaction.rollback().await?;
        return Ok(None);
    };
    let was: Option<i16> = sqlx::query_scalar(WAS).bind(domain).fetch_optional(&mut *transaction).await?;
    let status = was.map(Status::from_number).unwrap_or_default();
    let mut delta = Delta::default();
    delta.domains = -1;
    delta.subtract(counters);
    if status != Status::Unknown {
        let nothing = [(domain.to_owned(), Counters::default())];
        delta.changes = statuses::note(&mut transaction, rule, &nothing).await?;
    }
    totals::add_old(&mut transaction, writer, &delta).await?;
    let Counters { delivered, bounced } = counters;
    let details = json!({ "delivered": delivered, "bounced": bounced, "status": status });
    audit::write(&mut transaction, "reset", domain, signature, details).await?;
    transaction.commit().await?;
    Ok(Some(ResetDomain { counters, status }))
}
