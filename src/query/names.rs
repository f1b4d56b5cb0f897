//! Look-ups of many names: `POST /domains/lookup`.

use std::borrow::Cow;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::{Extension, Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::map_request;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::yield_now;
use utoipa::{IntoResponses, ToSchema};
use utoipa_axum::router::{UtoipaMethodRouter, UtoipaMethodRouterExt};
use utoipa_axum::routes;

use super::answer::{BODY, NO_CACHE};
use super::source::Source;
use crate::bulk::{BodyError, MAX_EVENTS, MediaType, elements};
use crate::classified::DomainReport;
use crate::domain_name::DomainName;
use crate::excerpt::excerpt;
use crate::http::{self, Budget, Caller, FairPermit, FairSemaphore, Problem, ProblemType};

/// Memory for look-ups and large answers of all threads: some twenty look-ups of the largest documents, and
/// hundreds of usual ones.
pub(super) const BUDGET: usize = 256 * 1024 * 1024;

/// Memory that a name takes while it is looked up: the name, its data or problem, and its part of the answer.
const NAME: usize = 768;

/// How many more copies of a long name are in memory: parsed, twice in the query, as it was sent, and in the
/// answer.
const COPIES: usize = 5;

/// Names of a stream that are looked up in one read, and names of a document that are parsed before other
/// tasks have their turn.
const NAMES_AT_A_TIME: usize = 1000;

/// Documents with more names than that which one thread looks up at a time. Such a read takes a tenth of a
/// second and one of the two connections that it shares with all other look-ups.
const LARGE_READS: usize = 1;

/// Streams of one thread at a time. Each takes half a megabyte, and at most 2 MB: if it has short lines that
/// are not names.
const STREAMS: usize = 32;

/// The longest line of a stream in bytes: the longest spelling of a name, in JSON.
const MAX_LINE: usize = 8 * 1024;

/// Shared by look-ups.
#[derive(Clone)]
pub(super) struct Names {
    source: Source,
    threshold: Option<u64>,
    budget: Budget,
    streams: FairSemaphore,
    large_reads: Arc<Semaphore>,
}

/// The route.
pub(super) fn route(source: Source, threshold: Option<u64>, budget: Budget) -> UtoipaMethodRouter {
    let (streams, large_reads) = (FairSemaphore::new(STREAMS), Arc::new(Semaphore::new(LARGE_READS)));
    let names = Names { source, threshold, budget, streams, large_reads };
    routes!(look_up_domains).layer(map_request(http::observe)).with_state(names)
}

/// Names to look up, for the API's document.
#[derive(ToSchema)]
#[schema(as = NameArray, value_type = Vec<String>, max_items = 10_000, description = "The names.")]
struct Asked(#[expect(dead_code, reason = "it only describes")] Vec<String>);

/// A line of a stream, for the API's document.
#[derive(ToSchema)]
#[schema(value_type = String, description = "A name on each line, in quotes.")]
struct NameLine(#[expect(dead_code, reason = "it only describes")] String);

/// A name in an object. Its value is not parsed here, so that no error repeats it.
#[derive(Deserialize)]
struct InObject<'a> {
    #[serde(borrow, alias = "name", alias = "names", alias = "domains")]
    domain: &'a RawValue,
}

/// What is known about a name, or why it is not valid.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
enum Found {
    /// What is known.
    Domain(DomainReport),
    /// Why it is not valid.
    NoName(NoName),
}

/// A name that is not a domain name.
#[derive(Serialize, ToSchema)]
struct NoName {
    /// The name, cut if it is long.
    name: String,
    /// What is wrong with it.
    #[schema(value_type = http::ProblemDocument<'static>)]
    problem: Box<RawValue>,
}

/// What is known about the names of a document, in the same order.
#[derive(Serialize, ToSchema)]
struct NamesAnswer {
    /// One for each name that was asked for.
    domains: Vec<Found>,
}

/// The problems of a look-up, for the API's document.
struct NamesProblems;

impl IntoResponses for NamesProblems {
    fn responses() -> http::Responses {
        use ProblemType::{
            InvalidBody, MethodNotAllowed, Timeout, TooLarge, Unavailable, UnsupportedMediaType,
        };
        http::problem_responses(&[
            InvalidBody,
            MethodNotAllowed,
            Timeout,
            TooLarge,
            UnsupportedMediaType,
            Unavailable,
        ])
    }
}

/// `POST /domains/lookup`
#[utoipa::path(
    post,
    path = "/domains/lookup",
    summary = "Ask about many domains",
    description = "Returns what is known about each name, in the same order. A document has up to 10,000 \
        names, all of which are read at the same moment. In a stream (NDJSON), any number of names are \
        answered while they arrive: read the answer while you send. A stream that fails, or arrives too \
        slowly, is cut off.",
    tag = "Domains",
    request_body(
        description = "The names, in any spelling.",
        content(
            (Asked = "application/json", example = json!(["example.com", "localhost"])),
            (NameLine = "application/x-ndjson")
        )
    ),
    responses(
        (status = 200, description = "What is known about each name; for an invalid name, the reason.",
            content(
                (NamesAnswer = "application/json", example = json!({"domains": [
                    {"domain": "example.com", "status": "catch-all", "delivered": 1234, "bounced": 0,
                        "since": "2026-11-28T10:47:04.125Z"},
                    {"name": "localhost", "problem": {"type": "urn:catchall:problem:invalid-domain",
                        "title": "Invalid domain", "status": 400, "detail": "the domain \"localhost\" is not \
                        valid: a domain name has at least two labels, as in example.com"}}
                ]})),
                (Found = "application/x-ndjson")
            )
        ),
        NamesProblems
    ),
    security((), ("token" = ["read"]))
)]
async fn look_up_domains(
    State(names): State<Names>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Response, Problem> {
    match http::media_type(request.headers())? {
        MediaType::JsonArray => document(&names, &caller, request).await,
        MediaType::NdJson => stream(names, &caller, request),
    }
}

async fn document(names: &Names, caller: &Caller, request: Request) -> Result<Response, Problem> {
    let mut share = names.budget.share();
    let body = http::read(request, BODY, &mut share).await?;
    let unreadable = |error| {
        let detail = excerpt(format_args!("the body cannot be read: {error}"));
        Problem::new(ProblemType::InvalidBody, detail)
    };
    let array = match body.trim_ascii_start().first() {
        Some(b'{') => serde_json::from_slice::<InObject>(&body).map_err(unreadable)?.domain.get().as_bytes(),
        _ => &*body,
    };
    let asked = elements(array).map_err(|error| match error {
        BodyError::Unreadable(error) => unreadable(error),
        BodyError::TooMany | BodyError::Empty => {
            let detail =
                format!("a document has at most {MAX_EVENTS} names; a stream (NDJSON) has any number");
            Problem::new(ProblemType::TooLarge, detail)
        }
    })?;
    let takes = http::REQUEST + body.capacity() + asked.len() * NAME + array.len() * COPIES;
    share.hold(takes).await.map_err(|error| BODY.exhausted(error))?;
    let mut parsed = Vec::with_capacity(asked.len());
    for asked in asked.chunks(NAMES_AT_A_TIME) {
        parsed.extend(asked.iter().map(|json| name(json)));
        yield_now().await;
    }
    let waiting = names.source.wait(caller)?;
    let is_large = asked.len() > NAMES_AT_A_TIME;
    let turn = if is_large { Arc::clone(&names.large_reads).acquire_owned().await.ok() } else { None };
    // The memory too is in use for as long as the read goes on.
    let (domains, (mut share, ..)) = look_up(names, parsed, (share, waiting, turn)).await?;
    let mut answer = http::json(StatusCode::OK, &NamesAnswer { domains });
    answer.headers_mut().insert(header::CACHE_CONTROL, NO_CACHE);
    share.shrink_to(http::REQUEST + answer.body().len());
    Ok(http::hold(answer, share))
}

/// Looks up the valid names in one read, so that the whole answer is from one moment. An invalid name already
/// has its problem.
async fn look_up<H: Send + 'static>(
    names: &Names,
    parsed: Vec<Result<DomainName, Found>>,
    held: H,
) -> Result<(Vec<Found>, H), Problem> {
    let domains: Vec<DomainName> = parsed.iter().filter_map(|name| name.as_ref().ok()).cloned().collect();
    let (known, held) = names.source.look_up(domains, held).await?;
    let mut known = known.into_iter();
    let found = parsed.into_iter().map(|name| match name {
        Ok(domain) => {
            let known = known.next().unwrap_or_default().by(names.threshold);
            Found::Domain(DomainReport::new(domain, known))
        }
        Err(found) => found,
    });
    Ok((found.collect(), held))
}

/// The name in a string, or in an object.
fn name(json: &[u8]) -> Result<DomainName, Found> {
    let text = match json.trim_ascii_start().first() {
        Some(b'{') => serde_json::from_slice::<InObject>(json).map(|object| object.domain.get().as_bytes()),
        _ => Ok(json),
    };
    let text = text.and_then(|text| match text.trim_ascii_start().first() {
        Some(b'"') => serde_json::from_slice::<Cow<str>>(text),
        _ => Err(serde::de::Error::custom("a name is a string in quotes, or in an object with a \"domain\"")),
    });
    let problem = match &text {
        Ok(name) => match http::domain(name) {
            Ok(domain) => return Ok(domain),
            Err(problem) => problem,
        },
        Err(error) => Problem::new(ProblemType::InvalidDomain, excerpt(error)),
    };
    let name = text.map_or_else(|_| excerpt(String::from_utf8_lossy(json)), excerpt);
    let document = String::from_utf8(problem.to_json().into_body()).unwrap_or_default();
    let problem = RawValue::from_string(document).expect("a problem is JSON");
    Err(Found::NoName(NoName { name, problem }))
}

/// Answers line by line, in reads of as many lines as have arrived.
fn stream(names: Names, caller: &Caller, request: Request) -> Result<Response, Problem> {
    let Some(permit) = names.streams.try_acquire(caller) else {
        return Err(Problem::new(ProblemType::Unavailable, "too many streams are being answered"));
    };
    let lines = http::Lines::of(request, MAX_LINE)?;
    let (parts, sent) = mpsc::channel(1);
    tokio::spawn(async move {
        if let Err(problem) = answer(&names, lines, &parts, permit).await {
            // The reader has gone, or gets the error now.
            let _ = parts.send(Err(problem)).await;
        }
    });
    let body = futures::stream::unfold(sent, async |mut sent| {
        let part: Result<Bytes, Problem> = sent.recv().await?;
        Some((part.map_err(|problem| std::io::Error::other(problem.detail)), sent))
    });
    let mut response = Response::new(Body::from_stream(body));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
    headers.insert(header::CACHE_CONTROL, NO_CACHE);
    Ok(response)
}

async fn answer(
    names: &Names,
    mut lines: http::Lines,
    parts: &mpsc::Sender<Result<Bytes, Problem>>,
    permit: FairPermit,
) -> Result<(), Problem> {
    loop {
        // Before anything is read for it: a slow reader then holds only what is on its way.
        let Ok(room) = parts.reserve().await else { return Ok(()) };
        let Some(read) = lines.next(NAMES_AT_A_TIME).await? else { return Ok(()) };
        let parsed = read.iter().map(|line| name(line)).collect();
        let mut rows = Vec::new();
        for found in look_up(names, parsed, permit.clone()).await?.0 {
            serde_json::to_writer(&mut rows, &found).expect("rows are made of strings and numbers");
            rows.push(b'\n');
        }
        rows.shrink_to_fit();
        room.send(Ok(rows.into()));
    }
}
