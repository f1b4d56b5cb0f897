//! The problems in the document of an operation: a response for each status, with an example of each problem.

use std::collections::BTreeMap;

use axum::http::StatusCode;
use serde_json::{Value, json};
use utoipa::openapi::content::ContentBuilder;
use utoipa::openapi::example::{Example, ExampleBuilder};
use utoipa::openapi::header::{Header, HeaderBuilder};
use utoipa::openapi::response::{Response, ResponseBuilder};
use utoipa::openapi::schema::{ObjectBuilder, Type};
use utoipa::openapi::{Ref, RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

use super::problem::{PREFIX, ProblemDocument, ProblemType};

/// The responses of an operation, by their status.
pub type Responses = BTreeMap<String, RefOr<Response>>;

/// The problems that any request can get if the service uses tokens or limits.
const ACCESS: [ProblemType; 3] =
    [ProblemType::Unauthorized, ProblemType::Forbidden, ProblemType::TooManyRequests];

fn name(kind: ProblemType) -> &'static str {
    kind.urn().trim_start_matches(PREFIX)
}

fn example(kind: ProblemType) -> (&'static str, RefOr<Example>) {
    let (_, detail) = describe(kind);
    let value = json!({
        "type": kind.urn(), "title": kind.title(), "status": kind.status().as_u16(), "detail": detail,
    });
    (name(kind), ExampleBuilder::new().summary(kind.title()).value(Some(value)).into())
}

impl PartialSchema for ProblemType {
    fn schema() -> RefOr<Schema> {
        let urns = Self::ALL.map(|kind| kind.urn().to_owned());
        let schema = ObjectBuilder::new().schema_type(Type::String).enum_values(Some(urns));
        schema.description(Some("The kind of problem, for programs.")).into()
    }
}

impl ToSchema for ProblemType {}

/// When a problem occurs, and an example of its detail.
fn describe(kind: ProblemType) -> (&'static str, &'static str) {
    use ProblemType as Kind;
    match kind {
        Kind::NotCounted => (
            "events cannot be accepted now, and nothing of the request was counted",
            "too many events are waiting, nothing was counted",
        ),
        Kind::MaybeCounted => (
            "the request may have been counted: repeat it under the same key",
            "it was not confirmed: the request may or may not have been counted",
        ),
        Kind::QueueFull => (
            "the queue is at its limit, and part of the request may have been counted",
            "the queue is at its limit: the request may or may not have been counted",
        ),
        Kind::InvalidDomain => (
            "the domain is not a valid domain name",
            "the domain \"localhost\" is not valid: a domain name has at least two labels, as in example.com",
        ),
        Kind::InvalidEvent => ("an event of a bulk request is not valid", "missing field `event`"),
        Kind::InvalidKey => (
            "the key is empty or too long, or is given twice",
            "the header Idempotency-Key is not valid: it is given more than once",
        ),
        Kind::InvalidParameter => (
            "a parameter is unknown, given twice or has an invalid value",
            "the parameter status is not valid: a status is \"catch-all\", \"not catch-all\" or \"unknown\"",
        ),
        Kind::UnknownPosition => (
            "the position is of another feed, from before the database was moved or restored: begin anew, \
             without `since`",
            "the position is of another feed, from before the database was moved or restored: begin at the \
             beginning, without since",
        ),
        Kind::InvalidBody => {
            ("the body cannot be read as its content type and encoding declare", "the body has no event")
        }
        Kind::NothingReadable => {
            ("no event is valid; `rejected` gives the reason for each", "no event could be read")
        }
        Kind::TooLarge => ("the body has too many events or bytes", "a request has at most 10000 events"),
        Kind::Timeout => (
            "the body arrives too slowly; nothing was counted",
            "the body arrived too slowly, or not within 30s: nothing was counted",
        ),
        Kind::UnsupportedMediaType => (
            "the content type or encoding is not supported",
            "the content type \"text/csv\" is not supported: send application/x-ndjson or application/json",
        ),
        Kind::NotFound => ("the path does not exist", "there is nothing at /events/example.com/opened"),
        Kind::MethodNotAllowed => {
            ("the path does not take this method", "DELETE is not allowed at /domains/example.com")
        }
        Kind::Unavailable => ("the counters cannot be read now: try again", "the database cannot be read"),
        Kind::Unauthorized => (
            "the service uses tokens, and the request has no valid one",
            "this request needs a token: send it in the header Authorization: Bearer TOKEN",
        ),
        Kind::Forbidden => (
            "the token does not allow this request",
            "this request needs the scope write, which your token lacks",
        ),
        Kind::TooManyRequests => (
            "the token or the address has sent too much in a second, and nothing was counted",
            "more requests than are allowed in a second",
        ),
    }
}

/// The responses of an operation that can have these problems, and those for access.
#[must_use]
pub fn problem_responses(kinds: &[ProblemType]) -> Responses {
    let mut by_status: BTreeMap<StatusCode, Vec<ProblemType>> = BTreeMap::new();
    for kind in kinds.iter().copied().chain(ACCESS) {
        by_status.entry(kind.status()).or_default().push(kind);
    }
    by_status
        .into_iter()
        .map(|(status, problems)| (status.as_str().into(), response(status, &problems)))
        .collect()
}

fn response(status: StatusCode, problems: &[ProblemType]) -> RefOr<Response> {
    let said = problems.iter().map(|kind| format!("`{}`: {}.", name(*kind), describe(*kind).0));
    let content = ContentBuilder::new()
        .schema(Some(Ref::from_schema_name(ProblemDocument::name())))
        .examples_from_iter(problems.iter().map(|kind| example(*kind)));
    let mut response = ResponseBuilder::new()
        .description(said.collect::<Vec<_>>().join(" "))
        .content("application/problem+json", content.build());
    if let Some((name, header)) = header(status) {
        response = response.header(name, header);
    }
    response.into()
}

/// The header that goes with a status.
fn header(status: StatusCode) -> Option<(&'static str, Header)> {
    let described = |kind, description: &str, example: Value| {
        let schema = ObjectBuilder::new().schema_type(kind).examples([example]);
        HeaderBuilder::new().schema(Some(schema)).description(Some(description)).build()
    };
    let header = match status {
        StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS => {
            ("Retry-After", described(Type::Integer, "Seconds to wait before the next attempt.", json!(1)))
        }
        StatusCode::METHOD_NOT_ALLOWED => {
            ("Allow", described(Type::String, "The methods that the path takes.", json!("GET,HEAD")))
        }
        StatusCode::UNAUTHORIZED => {
            ("WWW-Authenticate", described(Type::String, "How to authenticate.", json!("Bearer")))
        }
        _ => return None,
    };
    Some(header)
}
