//! Problem documents (RFC 9457): the body of every error response.

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use serde::{Serialize, Serializer};
use utoipa::ToSchema;

use crate::domain_name::DomainName;
use crate::excerpt::excerpt;

/// `Retry-After` of a 503, in seconds: short enough to lose little time, long enough for a broker to recover.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("1");

/// The prefix of the `type` of every problem.
pub(super) const PREFIX: &str = "urn:catchall:problem:";

/// The media type of a [`Problem`].
const PROBLEM_JSON: HeaderValue = HeaderValue::from_static("application/problem+json");

/// The kind of a problem, for programs: its `type` is `urn:catchall:problem:` and the name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProblemType {
    /// Nothing was counted: retry.
    NotCounted,
    /// The events may have been counted: retry with the same key.
    MaybeCounted,
    /// The queue is at its limit: retry later with the same key.
    QueueFull,
    /// A domain name is invalid.
    InvalidDomain,
    /// An event of a bulk request is invalid.
    InvalidEvent,
    /// A key is empty, too long, or given twice.
    InvalidKey,
    /// A parameter of the query string is unknown or invalid.
    InvalidParameter,
    /// A position is of another feed.
    UnknownPosition,
    /// A body cannot be read as its content type and encoding declare.
    InvalidBody,
    /// None of the events of a bulk request could be read.
    NothingReadable,
    /// The request exceeds a limit.
    TooLarge,
    /// The body did not arrive in time: nothing was counted.
    Timeout,
    /// The content type or encoding is not supported.
    UnsupportedMediaType,
    /// There is no such resource.
    NotFound,
    /// The resource does not support the method.
    MethodNotAllowed,
    /// The counters cannot be read now: retry.
    Unavailable,
    /// A valid token is missing.
    Unauthorized,
    /// The token does not allow it.
    Forbidden,
    /// The client has used up its limit per second: retry later. Nothing was counted.
    TooManyRequests,
}

impl ProblemType {
    /// All problem types, as documented.
    pub const ALL: [Self; 19] = [
        Self::NotCounted,
        Self::MaybeCounted,
        Self::QueueFull,
        Self::InvalidDomain,
        Self::InvalidEvent,
        Self::InvalidKey,
        Self::InvalidParameter,
        Self::UnknownPosition,
        Self::InvalidBody,
        Self::NothingReadable,
        Self::TooLarge,
        Self::Timeout,
        Self::UnsupportedMediaType,
        Self::NotFound,
        Self::MethodNotAllowed,
        Self::Unavailable,
        Self::Unauthorized,
        Self::Forbidden,
        Self::TooManyRequests,
    ];

    /// The problem's URN, its `type` in JSON.
    #[must_use]
    pub fn urn(self) -> &'static str {
        match self {
            Self::NotCounted => "urn:catchall:problem:not-counted",
            Self::MaybeCounted => "urn:catchall:problem:maybe-counted",
            Self::QueueFull => "urn:catchall:problem:queue-full",
            Self::InvalidDomain => "urn:catchall:problem:invalid-domain",
            Self::InvalidEvent => "urn:catchall:problem:invalid-event",
            Self::InvalidKey => "urn:catchall:problem:invalid-key",
            Self::InvalidParameter => "urn:catchall:problem:invalid-parameter",
            Self::UnknownPosition => "urn:catchall:problem:unknown-position",
            Self::InvalidBody => "urn:catchall:problem:invalid-body",
            Self::NothingReadable => "urn:catchall:problem:nothing-readable",
            Self::TooLarge => "urn:catchall:problem:too-large",
            Self::Timeout => "urn:catchall:problem:timeout",
            Self::UnsupportedMediaType => "urn:catchall:problem:unsupported-media-type",
            Self::NotFound => "urn:catchall:problem:not-found",
            Self::MethodNotAllowed => "urn:catchall:problem:method-not-allowed",
            Self::Unavailable => "urn:catchall:problem:unavailable",
            Self::Unauthorized => "urn:catchall:problem:unauthorized",
            Self::Forbidden => "urn:catchall:problem:forbidden",
            Self::TooManyRequests => "urn:catchall:problem:too-many-requests",
        }
    }

    /// The HTTP status of a response with this problem.
    #[must_use]
    pub fn status(self) -> StatusCode {
        match self {
            Self::NotCounted | Self::MaybeCounted | Self::QueueFull | Self::Unavailable => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Self::InvalidDomain
            | Self::InvalidEvent
            | Self::InvalidKey
            | Self::InvalidParameter
            | Self::InvalidBody
            | Self::NothingReadable => StatusCode::BAD_REQUEST,
            Self::UnknownPosition => StatusCode::GONE,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Timeout => StatusCode::REQUEST_TIMEOUT,
            Self::UnsupportedMediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::Forbidden => StatusCode::FORBIDDEN,
            Self::TooManyRequests => StatusCode::TOO_MANY_REQUESTS,
        }
    }

    /// The problem's title, the same for each occurrence.
    pub(super) fn title(self) -> &'static str {
        match self {
            Self::NotCounted => "Nothing was counted",
            Self::MaybeCounted => "The request may have been counted",
            Self::QueueFull => "The queue is full",
            Self::InvalidDomain => "Invalid domain",
            Self::InvalidEvent => "Invalid event",
            Self::InvalidKey => "Invalid key",
            Self::InvalidParameter => "Invalid parameter",
            Self::UnknownPosition => "Unknown position",
            Self::InvalidBody => "Invalid body",
            Self::NothingReadable => "No event could be read",
            Self::TooLarge => "Too large",
            Self::Timeout => "Too slow",
            Self::UnsupportedMediaType => "Unsupported media type",
            Self::NotFound => "Not found",
            Self::MethodNotAllowed => "Method not allowed",
            Self::Unavailable => "Unavailable",
            Self::Unauthorized => "Unauthorized",
            Self::Forbidden => "Forbidden",
            Self::TooManyRequests => "Too many requests",
        }
    }
}

impl Serialize for ProblemType {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.urn())
    }
}

/// An error response. Internal causes are logged where they occur and are not sent to the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The kind of problem.
    pub kind: ProblemType,
    /// What is wrong with this request, for people.
    pub detail: String,
    /// The rejected events of a bulk request.
    pub rejected: Vec<Rejected>,
    /// Headers that belong to the response.
    pub headers: Vec<(HeaderName, HeaderValue)>,
}

/// A rejected event of a bulk request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Rejected {
    /// Its index among the events of the request, from 0.
    pub index: usize,
    /// The kind of problem.
    #[serde(rename = "type")]
    pub kind: ProblemType,
    /// What is wrong with the event.
    pub detail: String,
}

/// A problem document (RFC 9457).
#[derive(Serialize, ToSchema)]
#[schema(as = Problem)]
pub struct ProblemDocument<'a> {
    #[serde(rename = "type")]
    kind: ProblemType,
    /// What kind of problem it is, for people.
    title: &'static str,
    /// The status of the answer.
    status: u16,
    /// What is wrong with this request, for people. It may change.
    detail: &'a str,
    /// The rejected events of a bulk request.
    #[schema(value_type = Vec<Rejected>, required = false)]
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    rejected: &'a [Rejected],
}

impl Problem {
    /// A problem without rejected events.
    #[must_use]
    pub fn new(kind: ProblemType, detail: impl Into<String>) -> Self {
        Self { kind, detail: detail.into(), rejected: Vec::new(), headers: Vec::new() }
    }

    /// The same problem with one more header.
    #[must_use]
    pub fn with_header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }

    /// The response with the problem document.
    #[must_use]
    pub fn to_json(&self) -> Response<Vec<u8>> {
        let Self { kind, detail, rejected, headers } = self;
        let status = kind.status();
        let document =
            ProblemDocument { kind: *kind, title: kind.title(), status: status.as_u16(), detail, rejected };
        let mut response = json(status, &document);
        response.headers_mut().insert(header::CONTENT_TYPE, PROBLEM_JSON);
        if status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(header::RETRY_AFTER, RETRY_AFTER);
        }
        for (name, value) in headers {
            response.headers_mut().append(name, value.clone());
        }
        response
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        self.to_json().map(Body::from)
    }
}

/// The domain name in a request.
///
/// # Errors
///
/// A problem that says why the name is invalid.
pub fn domain(name: &str) -> Result<DomainName, Problem> {
    DomainName::parse(name).map_err(|error| {
        let name = excerpt(format_args!("{name:?}"));
        Problem::new(ProblemType::InvalidDomain, format!("the domain {name} is not valid: {error}"))
    })
}

/// A response in JSON.
///
/// # Panics
///
/// When the value has no JSON form, such as a map whose keys are not strings.
#[must_use]
pub fn json(status: StatusCode, value: &impl Serialize) -> Response<Vec<u8>> {
    let mut body = serde_json::to_vec(value).expect("responses are made of strings and numbers");
    // The body may wait in memory for a slow client.
    body.shrink_to_fit();
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// Adds problem documents for unknown paths and methods.
pub(super) fn with_problems<S: Clone + Send + Sync + 'static>(routes: Router<S>) -> Router<S> {
    routes.fallback(not_found).method_not_allowed_fallback(method_not_allowed)
}

async fn not_found(method: Method, uri: Uri) -> Response {
    // `OPTIONS *` asks whether the server answers at all, so an empty answer is enough.
    if method == Method::OPTIONS && uri.path() == "*" {
        return StatusCode::NO_CONTENT.into_response();
    }
    let detail = format!("there is nothing at {}", excerpt(uri.path()));
    Problem::new(ProblemType::NotFound, detail).into_response()
}

/// The router adds the header `Allow`. (It answers `HEAD` itself, like `GET`.)
async fn method_not_allowed(method: Method, uri: Uri) -> Response {
    if method == Method::OPTIONS {
        return StatusCode::NO_CONTENT.into_response();
    }
    let detail = excerpt(format_args!("{method} is not allowed at {}", uri.path()));
    Problem::new(ProblemType::MethodNotAllowed, detail).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_problem_has_a_name_of_its_own() {
        let mut urns = ProblemType::ALL.map(ProblemType::urn);
        urns.sort_unstable();
        assert!(urns.windows(2).all(|pair| pair[0] != pair[1]));
        for kind in ProblemType::ALL {
            assert!(kind.status().is_client_error() || kind.status() == StatusCode::SERVICE_UNAVAILABLE);
        }
    }

    #[test]
    fn a_document_has_the_members_of_the_standard_and_its_events() {
        let mut problem = Problem::new(ProblemType::NothingReadable, "no event could be read");
        let read = |problem: &Problem| serde_json::from_slice::<serde_json::Value>(problem.to_json().body());
        let mut expected = serde_json::json!({
            "type": "urn:catchall:problem:nothing-readable",
            "title": "No event could be read",
            "status": 400,
            "detail": "no event could be read",
        });
        assert_eq!(read(&problem).unwrap(), expected);
        problem.rejected =
            vec![Rejected { index: 7, kind: ProblemType::InvalidDomain, detail: "it is an address".into() }];
        expected["rejected"] = serde_json::json!([
            {"index": 7, "type": "urn:catchall:problem:invalid-domain", "detail": "it is an address"}
        ]);
        assert_eq!(read(&problem).unwrap(), expected);
    }
}
