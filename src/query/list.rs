//! Lists: `GET /domains`.

use axum::body::{Body, Bytes};
use axum::extract::{Extension, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::response::Response;
use serde::Serialize;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use utoipa::{IntoParams, IntoResponses, ToSchema};

use super::answer::{NO_CACHE, held};
use super::parameters::{Parameters, any_number, invalid, limit};
use super::rows::{Format, content_type};
use super::source::Source;
use crate::classified::DomainReport;
use crate::counters::Status;
use crate::domain_name::{DomainName, DomainSpelling};
use crate::http::{self, Budget, Caller, FairPermit, FairSemaphore, Problem, ProblemType};
use crate::row_format::RowFormat;
use crate::store::{Page, PageRequest};

/// Domains on a page: the default, and the most.
const LIMIT: u32 = 100;
const MAX_LIMIT: u32 = 1000;

/// Domains of a stream that are read at a time: some 300 kB, and as rows some 600 kB.
const STREAM_PAGE: u32 = 5_000;

/// Lists that one thread streams at a time. Each holds up to four pages in memory, for as long as its reader
/// takes: as rows, one being sent and one in the channel; as domains, one to be written next and one just
/// read.
const STREAMS: usize = 32;

/// Maps that one thread streams at a time. They have separate permits, so that slow readers of lists do not
/// keep a mail server from its maps. A page of a map takes less memory, because it has only names.
const MAPS: usize = 16;

/// Says that a stream is not a snapshot: each page shows the domains as they are when it is read.
const SNAPSHOT: HeaderName = HeaderName::from_static("catchall-snapshot");
const NONE: HeaderValue = HeaderValue::from_static("none");

/// What lists share.
#[derive(Clone)]
pub(super) struct Lists {
    pub(super) source: Source,
    budget: Budget,
    streams: FairSemaphore,
    pub(super) maps: FairSemaphore,
}

impl Lists {
    pub(super) fn new(source: Source, budget: Budget) -> Self {
        let [streams, maps] = [STREAMS, MAPS].map(FairSemaphore::new);
        Self { source, budget, streams, maps }
    }
}

/// The parameters of a list, for the API's document.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "it only describes")]
struct ListParameters {
    /// Only domains with this status.
    status: Option<Status>,
    /// Only names that begin with this: letters without accents, digits, dots and hyphens.
    #[param(max_length = 253, pattern = r"^[A-Za-z0-9.-]*$")]
    prefix: Option<String>,
    /// Only names after this one: the `next` of the previous page.
    #[param(inline)]
    after: Option<DomainSpelling>,
    /// The most domains on a page. Default 100. Values are limited to 1 to 1,000. A stream ends after this
    /// many domains; without a limit it has all of them.
    #[param(schema_with = any_number)]
    limit: Option<u32>,
}

/// A page of a list.
#[derive(Debug, Serialize, ToSchema)]
struct ListAnswer {
    /// The domains, in the order of their names (by bytes). There can be a next page even if these are fewer
    /// than were asked for, or none.
    domains: Vec<DomainReport>,
    /// The `after` of the next page; null on the last one.
    #[schema(required)]
    next: Option<DomainName>,
}

/// The problems of a list, for the API's document.
struct ListProblems;

impl IntoResponses for ListProblems {
    fn responses() -> http::Responses {
        use ProblemType::{InvalidParameter, MethodNotAllowed, Unavailable};
        http::problem_responses(&[InvalidParameter, MethodNotAllowed, Unavailable])
    }
}

/// `GET /domains`
#[utoipa::path(
    get,
    path = "/domains",
    summary = "List domains",
    description = "Lists domains in the order of their names, a page at a time. With \
        `Accept: application/x-ndjson` or `text/csv` it streams all of them, as fast as they are read. The \
        stream is not a snapshot, as its header `Catchall-Snapshot: none` says: each part of it shows the \
        domains as they were when that part was read. A stream that breaks off (a broken connection, in \
        HTTP/1.1 a missing last chunk) is not complete: continue after the last name.",
    tag = "Domains",
    params(ListParameters),
    responses(
        (status = 200, description = "The domains. If there is a next page, the header `Link` has it with \
            `rel=\"next\"`.",
            content(
                (ListAnswer = "application/json", example = json!({
                    "domains": [{"domain": "example.com", "status": "catch-all", "delivered": 1234,
                        "bounced": 0, "since": "2026-11-28T10:47:04.125Z"}],
                    "next": null
                })),
                (String = "application/x-ndjson"),
                (String = "text/csv")
            )
        ),
        ListProblems
    ),
    security((), ("token" = ["read"]))
)]
pub(super) async fn list_domains(
    State(lists): State<Lists>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    parameters: Parameters,
) -> Result<Response, Problem> {
    let format = Format::of(&headers);
    match format {
        Format::Json => page(&lists, &caller, selection(parameters, LIMIT, MAX_LIMIT)?).await,
        Format::Rows(format) => {
            let selection = selection(parameters, u32::MAX, u32::MAX)?;
            stream(&lists.source, &lists.streams, &caller, selection, format).await
        }
    }
}

/// Reads the parameters.
fn selection(mut parameters: Parameters, usual: u32, most: u32) -> Result<PageRequest, Problem> {
    let status = parameters.take("status")?;
    let prefix: Option<String> = parameters.take("prefix")?;
    let mut prefix = prefix.unwrap_or_default();
    prefix.make_ascii_lowercase();
    if prefix.len() > 253 || !prefix.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-".contains(&byte))
    {
        let rule = "a prefix is the beginning of a name as it is listed: letters without accents, digits, \
            dots and hyphens";
        return Err(invalid("prefix", rule));
    }
    let after = parameters.take::<String>("after")?;
    let after = after.map(|after| DomainName::parse(&after).map_err(|error| invalid("after", error)));
    let limit = limit(&mut parameters, usual, most)?;
    parameters.end()?;
    Ok(PageRequest { status, prefix, after: after.transpose()?, limit })
}

async fn page(lists: &Lists, caller: &Caller, request: PageRequest) -> Result<Response, Problem> {
    let waiting = lists.source.wait(caller)?;
    let Page { domains, next } = lists.source.list(request.clone(), waiting).await?;
    let link = next.as_ref().map(|next| {
        let PageRequest { status, prefix, limit, .. } = &request;
        let status = status.map(|status| format!("&status={}", status.slug())).unwrap_or_default();
        let prefix = if prefix.is_empty() { String::new() } else { format!("&prefix={prefix}") };
        let link = format!("</domains?after={next}{status}{prefix}&limit={limit}>; rel=\"next\"");
        HeaderValue::try_from(link).expect("names and numbers are visible characters")
    });
    let mut response = held(&lists.budget, &ListAnswer { domains, next }).await?;
    if let Some(link) = link {
        response.headers_mut().insert(header::LINK, link);
    }
    Ok(response)
}

/// Streams a selection, if there is a permit. The first page is read before the answer begins, so that the
/// answer can still be a problem.
pub(super) async fn stream(
    source: &Source,
    streams: &FairSemaphore,
    caller: &Caller,
    mut request: PageRequest,
    format: RowFormat,
) -> Result<Response, Problem> {
    let Some(permit) = streams.try_acquire(caller) else {
        return Err(Problem::new(ProblemType::Unavailable, "too many lists are being streamed"));
    };
    let left = request.limit;
    request.limit = left.min(STREAM_PAGE);
    let first = source.list(request.clone(), permit.clone()).await?;
    let (parts, sent) = mpsc::channel(1);
    tokio::spawn(send(source.clone(), request, left, first, format, parts, permit));
    let body = futures::stream::unfold(sent, async |mut sent| sent.recv().await.map(|part| (part, sent)));
    let mut response = Response::new(Body::from_stream(body));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, content_type(format));
    headers.insert(header::CACHE_CONTROL, NO_CACHE);
    headers.insert(SNAPSHOT, NONE);
    Ok(response)
}

/// A stream that cannot continue breaks off, so that nobody takes it for complete.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct BrokenOff(String);

/// Sends page after page. While one is being written and sent, the next one is read. Rows are written only
/// when there is room for them, so a slow reader takes no more memory than it must.
async fn send(
    source: Source,
    mut request: PageRequest,
    mut left: u32,
    mut page: Page,
    format: RowFormat,
    parts: mpsc::Sender<Result<Bytes, BrokenOff>>,
    permit: FairPermit,
) {
    let mut rows = format.head().as_bytes().to_vec();
    let mut has_rows = false;
    // When the reader goes away, this is dropped, and with it a read that nobody waits for any more, if the
    // store gives it up.
    let mut reads = JoinSet::new();
    loop {
        left = left.saturating_sub(u32::try_from(page.domains.len()).unwrap_or(u32::MAX));
        request.limit = left.min(STREAM_PAGE);
        if let Some(next) = page.next.take().filter(|_| left > 0) {
            request.after = Some(next);
            let (source, request, permit) = (source.clone(), request.clone(), permit.clone());
            reads.spawn(async move { source.list(request, permit).await });
        }
        // The read begins now, not after the rows are written.
        tokio::task::yield_now().await;
        let Ok(room) = parts.reserve().await else { return };
        has_rows |= !page.domains.is_empty();
        for report in std::mem::take(&mut page.domains) {
            format.write(&mut rows, &report);
        }
        if reads.is_empty() && !has_rows {
            rows.extend_from_slice(format.of_none().as_bytes());
        }
        if rows.is_empty() {
            drop(room);
        } else {
            rows.shrink_to_fit();
            room.send(Ok(std::mem::take(&mut rows).into()));
        }
        let Some(next) = reads.join_next().await else { return };
        page = match next.expect("a read does not panic") {
            Ok(page) => page,
            Err(problem) => {
                // The reader has gone away, or learns of it now.
                let _ = parts.send(Err(BrokenOff(problem.detail))).await;
                return;
            }
        };
    }
}
