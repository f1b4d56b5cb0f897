//! Lists, a page at a time.
//!
//! A page comes as one row of arrays: each row of an answer costs more than what is in it.

use sqlx::PgPool;

use super::row::{READ_TIMEOUT, report};
use crate::counters::Status;
use crate::domain_name::DomainName;
use crate::store::postgres::{Database, DatabaseError};
use crate::store::{Page, PageRequest};

/// The columns of a page, and how far it got.
macro_rules! page {
    ($name:literal, $found:literal) => {
        concat!(
            "-- catchall: ",
            $name,
            "
with found as (",
            $found,
            ")
select coalesce(array_agg(domain), '{}'), coalesce(array_agg(delivered), '{}'),
    coalesce(array_agg(bounced), '{}'), coalesce(array_agg(status), '{}'),
    coalesce(array_agg(date_part('epoch', since)), '{}'), (select threshold from classification)
from found"
        )
    };
}

/// Everything, by the counters' own key.
const ALL: &str = page!(
    "list domains",
    "select domain, delivered, bounced, status, since
    from (select domain, delivered, bounced from domain_counters
        where domain > $1 and domain >= $2 and domain < $3 order by domain limit $4) as c
    left join domain_statuses as s using (domain)
    order by domain"
);

/// What has a status, by the index of statuses. A domain that was reset has no counters.
const OF_STATUS: &str = page!(
    "list domains of a status",
    "select domain, coalesce(delivered, 0) as delivered, coalesce(bounced, 0) as bounced, status, since
    from (select domain, status, since from domain_statuses
        where status = $5 and domain > $1 and domain >= $2 and domain < $3 order by domain limit $4) as s
    left join domain_counters as c using (domain)
    order by domain"
);

type Rows = (Vec<String>, Vec<i64>, Vec<i64>, Vec<Option<i16>>, Vec<Option<f64>>, i64);

/// A page of a selection.
pub(super) async fn read(database: &Database, request: &PageRequest) -> Result<Page, DatabaseError> {
    let mut after = request.after.as_ref().map(DomainName::to_string).unwrap_or_default();
    loop {
        match look(database, request, after).await? {
            Ok(page) => return Ok(page),
            Err(through) => after = through,
        }
    }
}

/// The page, or after what to look on: see [`Page::of`].
async fn look(
    database: &Database,
    request: &PageRequest,
    after: String,
) -> Result<Result<Page, String>, DatabaseError> {
    let PageRequest { status, prefix, .. } = request.clone();
    let (most, end) = (request.rows(), request.end());
    let read = async move |pool: PgPool| {
        let indexed = status.filter(|status| *status != Status::Unknown);
        let statement = if indexed.is_some() { OF_STATUS } else { ALL };
        let query =
            sqlx::query_as::<_, Rows>(statement).bind(after).bind(prefix).bind(end).bind(i64::from(most));
        let query = match indexed {
            Some(status) => query.bind(status.number()),
            None => query,
        };
        query.fetch_one(&pool).await
    };
    let (domains, delivered, bounced, statuses, since, threshold) = database.run(READ_TIMEOUT, read).await?;
    let columns = domains.iter().zip(delivered).zip(bounced).zip(statuses).zip(since);
    let reports = columns.map(|((((domain, delivered), bounced), noted), since)| {
        (&**domain, report(domain, (delivered, bounced, noted, since, threshold)))
    });
    Ok(Page::of(request, reports, most))
}
