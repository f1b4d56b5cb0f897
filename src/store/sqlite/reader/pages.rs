//! Lists, a page at a time.

use sqlx::sqlite::SqliteConnection;

use super::row::{Row, rows};
use crate::classified::DomainReport;
use crate::counters::Status;
use crate::domain_name::DomainName;
use crate::store::{Page, PageRequest};

/// Everything, by the counters' own key.
const ALL: &str = "\
-- catchall: list domains
select (select threshold from classification), coalesce(group_concat(c.domain
    || ' ' || delivered || ' ' || bounced || ' ' || coalesce(status, 0) || ' ' || coalesce(since, 0)), '')
from (select domain, delivered, bounced from domain_counters
    where domain > ? and domain >= ? and domain < ? order by domain limit ?) as c
left join domain_statuses as s on s.domain = c.domain";

/// What has a status, by the index of statuses. A domain that was reset has no counters.
const OF_STATUS: &str = "\
-- catchall: list domains of a status
select (select threshold from classification), coalesce(group_concat(s.domain
    || ' ' || coalesce(delivered, 0) || ' ' || coalesce(bounced, 0) || ' ' || status || ' ' || since), '')
from (select domain, status, since from domain_statuses
    where domain > ?1 and domain >= ?2 and domain < ?3 and status = ?5 order by domain limit ?4) as s
left join domain_counters as c on c.domain = s.domain";

/// A page of a selection.
pub(super) async fn read(
    connection: &mut SqliteConnection,
    request: &PageRequest,
) -> Result<Page, sqlx::Error> {
    let PageRequest { status, prefix, after, .. } = request;
    let mut after = after.as_ref().map(DomainName::to_string).unwrap_or_default();
    let indexed = status.filter(|status| *status != Status::Unknown);
    loop {
        let query = sqlx::query_as(if indexed.is_some() { OF_STATUS } else { ALL })
            .bind(&after)
            .bind(prefix)
            .bind(request.end())
            .bind(request.rows());
        let query = match indexed {
            Some(status) => query.bind(status.number()),
            None => query,
        };
        let (threshold, answer): (i64, String) = query.fetch_one(&mut *connection).await?;
        let reports = rows(&answer).map(|row| {
            let (name, numbers) = row.split_once(' ').unwrap_or((row, ""));
            let known = Row::read(&mut numbers.split(' ')).map(|known| known.classified(threshold));
            (
                name,
                DomainName::parse(name).ok().zip(known).map(|(name, known)| DomainReport::new(name, known)),
            )
        });
        match Page::of(request, reports, request.rows()) {
            Ok(page) => return Ok(page),
            Err(through) if through > after => after = through,
            // A name with a comma, which catchall has not written.
            Err(_) => return Ok(Page::default()),
        }
    }
}
