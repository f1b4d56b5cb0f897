//! A reset: all events of one domain are forgotten. Claims stay, so what was counted is not counted again.

use serde_json::json;
use sqlx::sqlite::SqliteConnection;

use super::totals::{self, Delta};
use super::{audit, statuses};
use crate::counters::{Counters, Status};
use crate::store::maintenance::{ResetDomain, Signature};

const REMOVE: &str = "\
-- catchall: remove the counters of a domain
delete from domain_counters where domain = ? returning delivered, bounced";

const WAS: &str = "\
-- catchall: look at a status
select status from domain_statuses where domain = ?";

/// Forgets the events of a domain, in a transaction that has begun. `None`: it had none.
pub(super) async fn reset(
    connection: &mut SqliteConnection,
    domain: &str,
    signature: &Signature,
) -> Result<Option<ResetDomain>, sqlx::Error> {
    let row: Option<(i64, i64)> =
        sqlx::query_as(REMOVE).bind(domain).fetch_optional(&mut *connection).await?;
    let counters = row.map(|(delivered, bounced)| Counters {
        delivered: delivered.unsigned_abs(),
        bounced: bounced.unsigned_abs(),
    });
    let Some(counters) = counters.filter(|counters| *counters != Counters::default()) else {
        return Ok(None);
    };
    let was: Option<i16> = sqlx::query_scalar(WAS).bind(domain).fetch_optional(&mut *connection).await?;
    let status = was.map(Status::from_number).unwrap_or_default();
    let mut delta = Delta::default();
    delta.subtract(counters);
    delta.domains = -1;
    if status != Status::Unknown {
        statuses::change(connection, &[(domain, status, Status::Unknown)], &mut delta).await?;
    }
    totals::add_old(connection, &delta).await?;
    let Counters { delivered, bounced } = counters;
    let details = json!({ "delivered": delivered, "bounced": bounced, "status": status });
    audit::write(connection, "reset", domain, signature, details).await?;
    Ok(Some(ResetDomain { counters, status }))
}
