//! Totals.

use sqlx::PgPool;

use super::row::{READ_TIMEOUT, count, timestamp};
use crate::store::postgres::{Database, DatabaseError};
use crate::totals::{DomainTotals, EventTotals, MinuteTotals, RecentEvents, Totals};

/// Reads a few hundred rows for each worker, whatever the number of domains. A sum that is too large is cut
/// to the largest `bigint`. Rows dated up to a minute ahead count as recent, because a primary's clock may
/// differ; later dates come from a clock that was wrong.
const READ: &str = "\
-- catchall: read the totals
with recent as (
    select counted_at, delivered, bounced from totals
    where counted_at > now() - interval '1 hour' and counted_at <= now() + interval '1 minute'
), minutes as (
    select date_part('epoch', date_trunc('minute', counted_at)) as minute,
        sum(delivered) as delivered, sum(bounced) as bounced
    from recent where counted_at >= date_trunc('minute', now()) - make_interval(mins => $1 - 1)
    group by minute order by minute
)
select least(coalesce(sum(delivered), 0), 9223372036854775807)::bigint,
    least(coalesce(sum(bounced), 0), 9223372036854775807)::bigint,
    coalesce(sum(domains), 0)::bigint,
    coalesce(sum(catch_all), 0)::bigint, coalesce(sum(not_catch_all), 0)::bigint,
    (select least(coalesce(sum(delivered + bounced), 0), 9223372036854775807)::bigint from recent
        where counted_at > now() - interval '1 minute'),
    (select least(coalesce(sum(delivered + bounced), 0), 9223372036854775807)::bigint from recent),
    (select coalesce(array_agg(minute), '{}') from minutes),
    (select coalesce(array_agg(least(delivered, 9223372036854775807)::bigint), '{}') from minutes),
    (select coalesce(array_agg(least(bounced, 9223372036854775807)::bigint), '{}') from minutes)
from totals";

type TotalsRow = (i64, i64, i64, i64, i64, i64, i64, Vec<f64>, Vec<i64>, Vec<i64>);

/// The totals, with the last minutes.
pub(super) async fn read(database: &Database, minutes: u32) -> Result<Totals, DatabaseError> {
    let minutes = i32::try_from(minutes).unwrap_or(i32::MAX);
    let read =
        async move |pool: PgPool| sqlx::query_as::<_, TotalsRow>(READ).bind(minutes).fetch_one(&pool).await;
    let (delivered, bounced, all, catch_all, not_catch_all, minute, hour, at, delivered_then, bounced_then) =
        database.run(READ_TIMEOUT, read).await?;
    let minutes = at.into_iter().zip(delivered_then).zip(bounced_then).map(|((at, delivered), bounced)| {
        MinuteTotals { at: timestamp(at), delivered: count(delivered), bounced: count(bounced) }
    });
    Ok(Totals {
        domains: DomainTotals::new(count(all), count(catch_all), count(not_catch_all)),
        events: EventTotals { delivered: count(delivered), bounced: count(bounced) },
        recent: RecentEvents { minute: count(minute), hour: count(hour) },
        minutes: minutes.collect(),
    })
}
