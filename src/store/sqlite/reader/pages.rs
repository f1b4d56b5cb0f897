//! Lists, a page at a time.

use sqlx::sqlite::SqliteConnection;

use super::row::{Row, rows};
use crate::classified::DomainReport;
use crate::counters::Status;
use crate::domain_name::DomainName;
use crate::store::{Page, PageRequest, ROWS_OF_A_PAGE};

/// Everything, by the counters' own key.
const ALL: &str = "\
-- catchall: list domains
select (select threshold from classification), coalesce(group_concat(c.domain || ' ' || delivered || ' ' || bounced
    || ' ' || coalesce(status, 0) || ' ' || coalesce(since, 0)), '')
from (select domain, delivered, bounced from domain_counters
    where domain > ? and domain >= ? and domain < ? order by domain limit ?) as c
left join domain_statuses as s on s.domain = c.domain";

/// What has a status, by the index of statuses. A domain that was reset has no counters.
const OF_STATUS: &str = "\
-- catchall: list domains of a status
select (select threshold from classification), coalesce(group_concat(s.domain || ' ' || coalesce(delivered, 0) || ' '
    || coalesce(bounced, 0) || ' ' || status || ' ' || since), '')
from (select domain, status, since from domain_statuses
    where domain > ?1 and domain >= ?2 and domain < ?3 and status = ?5 order by domain limit ?4) as s
left join domain_counters as c on c.domain = s.domain";

/// A page of a selection.
pub(super) async fn read(
    connection: &mut SqliteConnection,
    request: &PageRequest,
) -> Result<Page, sqlx::Error> {
    let PageRequest { status, prefix, after, limit } = request;
    // Most domains may be something else than unknown, so a page of these looks at some more.
    let unknown = *status == Some(Status::Unknown);
    let limit_of_rows = if unknown { ROWS_OF_A_PAGE.max(*limit) } else { *limit };
    let statement = if status.is_none() || unknown { ALL } else { OF_STATUS };
    let query = sqlx::query_as(statement)
        .bind(after.as_ref().map(DomainName::as_str).unwrap_or_default())
        .bind(prefix)
        // Every name that begins with the prefix is before the prefix with a character that no name has.
        .bind(format!("{prefix}\u{7f}"))
        .bind(limit_of_rows);
    let query = match status {
        Some(status) if !unknown => query.bind(status.number()),
        _ => query,
    };
    let (threshold, answer): (i64, String) = query.fetch_one(connection).await?;
    let (mut page, mut seen, mut last) = (Page::default(), 0, None);
    for row in rows(&answer) {
        let mut words = row.split(' ');
        let domain = words.next().and_then(|name| DomainName::parse(name).ok());
        let (Some(domain), Some(row)) = (domain, Row::read(&mut words)) else { continue };
        (seen, last) = (seen + 1, Some(domain.clone()));
        let report = DomainReport::new(domain, row.classified(threshold));
        if status.is_none_or(|status| status == report.status) {
            page.domains.push(report);
            if page.domains.len() == *limit as usize {
                seen = limit_of_rows;
                break;
            }
        }
    }
    page.next = last.filter(|_| seen == limit_of_rows);
    Ok(page)
}
