//! Maps: the names of all domains with one status, for Rspamd.

use axum::extract::rejection::PathRejection;
use axum::extract::{Extension, Path, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use utoipa::IntoResponses;

use super::answer::NO_CACHE;
use super::domain::{AtHand, matches};
use super::list::{Lists, stream};
use crate::counters::Status;
use crate::http::{self, Caller, Problem, ProblemType};
use crate::position::Position;
use crate::row_format::RowFormat;
use crate::store::PageRequest;

/// The problems of a map, for the API's document.
struct MapProblems;

impl IntoResponses for MapProblems {
    fn responses() -> http::Responses {
        use ProblemType::{MethodNotAllowed, NotFound, Unavailable};
        http::problem_responses(&[NotFound, MethodNotAllowed, Unavailable])
    }
}

/// `GET /maps/rspamd/{status}`
#[utoipa::path(
    get,
    path = "/maps/rspamd/{status}",
    summary = "Get a map for a mail server",
    description = "The names of all domains with one status, one per line, in the order of their names: a \
        map for Rspamd. It is streamed as fast as it is read, and is not a snapshot. Its `ETag` changes when \
        the status of a domain has changed, so most requests with `If-None-Match` need no body.",
    tag = "Domains",
    params(
        ("status" = inline(MapStatus), Path, description = "The status of the domains."),
        AtHand
    ),
    responses(
        (status = 200, description = "The names.", body = String, content_type = "text/plain; charset=utf-8",
            headers(("ETag" = String, description = "Changes when a status has changed.")),
            example = "example.com\nexample.org\n"),
        (status = 304, description = "The map has not changed."),
        MapProblems
    ),
    security((), ("token" = ["read"]))
)]
pub(super) async fn get_map(
    State(lists): State<Lists>,
    Extension(caller): Extension<Caller>,
    path: Result<Path<String>, PathRejection>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let status = path.ok().and_then(|Path(status)| status_of(&status));
    let status = status.ok_or_else(|| {
        let detail = "there are two maps: catch-all and not-catch-all";
        Problem::new(ProblemType::NotFound, detail)
    })?;
    // Before the map: changes that happen while the map is read change the next tag.
    let waiting = lists.source.wait(&caller)?;
    let etag = etag(&lists.source.last_change(waiting).await?);
    let asked = headers.get(header::IF_NONE_MATCH);
    let mut response = if asked.is_some_and(|asked| matches(asked, &etag)) {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        let all = PageRequest { status: Some(status), prefix: String::new(), after: None, limit: u32::MAX };
        stream(&lists.source, &lists.maps, &caller, all, RowFormat::Names).await?
    };
    response.headers_mut().insert(header::ETAG, etag);
    response.headers_mut().insert(header::CACHE_CONTROL, NO_CACHE);
    Ok(response)
}

/// The statuses that have a map, for the API's document.
#[derive(utoipa::ToSchema)]
#[schema(rename_all = "kebab-case")]
#[expect(dead_code, reason = "it only describes")]
enum MapStatus {
    CatchAll,
    NotCatchAll,
}

/// The status of a path. There is no map of the unknown domains.
fn status_of(slug: &str) -> Option<Status> {
    [Status::CatchAll, Status::NotCatchAll].into_iter().find(|status| status.slug() == slug)
}

/// The tag of the maps. It is weak: a change that happens while a map is read may already be in the map.
fn etag(last_change: &Position) -> HeaderValue {
    let feed = last_change.feed.map(|feed| feed.to_string()).unwrap_or_default();
    let etag = format!("W/\"{}.{feed}\"", last_change.place.transaction);
    HeaderValue::try_from(etag).expect("digits and quotes are visible characters")
}
