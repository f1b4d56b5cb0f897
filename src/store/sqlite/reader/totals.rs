//! Totals.

use sqlx::sqlite::SqliteConnection;

use super::row::rows;
use crate::totals::{DomainTotals, EventTotals, MinuteTotals, RecentEvents, Totals};
use crate::utc_time::UtcTime;

/// A few hundred rows, whatever the number of domains. A sum that does not fit a number is the largest that
/// does. What is further ahead than a minute is of a clock that was wrong.
const READ: &str = "\
-- catchall: read the totals
with recent as (
    select * from totals where counted_at > unixepoch() - 3600 and counted_at <= unixepoch() + 60
),
minutes as (
    select counted_at / 60 * 60 as minute, cast(min(total(delivered), 9e18) as integer) as delivered,
        cast(min(total(bounced), 9e18) as integer) as bounced
    from recent where counted_at >= unixepoch() / 60 * 60 - (? - 1) * 60 group by minute order by minute
)
select cast(min(total(delivered), 9e18) as integer), cast(min(total(bounced), 9e18) as integer),
    coalesce(sum(domains), 0), coalesce(sum(catch_all), 0), coalesce(sum(not_catch_all), 0),
    (select cast(min(total(delivered) + total(bounced), 9e18) as integer) from recent
        where counted_at > unixepoch() - 60),
    (select cast(min(total(delivered) + total(bounced), 9e18) as integer) from recent),
    (select coalesce(group_concat(minute || ' ' || delivered || ' ' || bounced), '') from minutes)
from totals";

/// The totals, with the last minutes.
pub(super) async fn read(connection: &mut SqliteConnection, minutes: u32) -> Result<Totals, sqlx::Error> {
    type Numbers = (i64, i64, i64, i64, i64, i64, i64, String);
    let (delivered, bounced, all, catch_all, not_catch_all, minute, hour, minutes): Numbers =
        sqlx::query_as(READ).bind(minutes).fetch_one(connection).await?;
    let count = |integer: i64| u64::try_from(integer).unwrap_or(0);
    let minutes = rows(&minutes).filter_map(|row| {
        let mut numbers = row.split(' ').map_while(|number| number.parse::<i64>().ok());
        let at = UtcTime(numbers.next()? * 1000);
        Some(MinuteTotals { at, delivered: count(numbers.next()?), bounced: count(numbers.next()?) })
    });
    Ok(Totals {
        domains: DomainTotals::new(count(all), count(catch_all), count(not_catch_all)),
        events: EventTotals { delivered: count(delivered), bounced: count(bounced) },
        recent: RecentEvents { minute: count(minute), hour: count(hour) },
        minutes: minutes.collect(),
    })
}
