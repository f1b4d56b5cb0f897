//! One domain: `GET /domains/{domain}`.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use utoipa::{IntoParams, IntoResponses};

use super::answer::NO_CACHE;
use super::lookup::{Lookups, look_up};
use crate::classified::{Classified, DomainReport};
use crate::counters::Counters;
use crate::domain_name::{DomainName, DomainSpelling};
use crate::excerpt::excerpt;
use crate::http::{self, Problem, ProblemType};
use crate::utc_time::UtcTime;

/// Shared by the handlers of one thread.
#[derive(Clone, Debug)]
pub(super) struct Domains {
    pub(super) lookups: Arc<Lookups>,
    /// The threshold for answers, if it is not the store's.
    pub(super) threshold: Option<u64>,
}

/// The header with the tag of the client's copy, for the API's document.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
#[expect(dead_code, reason = "it only describes")]
pub(super) struct AtHand {
    /// The `ETag` of an earlier answer.
    #[param(rename = "If-None-Match", value_type = String, required = false)]
    etag: Option<String>,
}

/// The problems of a question, for the API's document.
struct QuestionProblems;

impl IntoResponses for QuestionProblems {
    fn responses() -> http::Responses {
        use ProblemType::{InvalidDomain, MethodNotAllowed, NotFound, Unavailable};
        http::problem_responses(&[InvalidDomain, NotFound, MethodNotAllowed, Unavailable])
    }
}

/// `GET /domains/{domain}`. A domain that was never seen gets a normal answer, without events.
#[utoipa::path(
    get,
    path = "/domains/{domain}",
    summary = "Ask about a domain",
    description = "Returns what is known about a domain. A domain without any event is `unknown`, which is \
        an answer and not an error. A status only moves from `unknown` to `catch-all`, and from either to \
        `not catch-all`, unless an operator changes the threshold or resets the domain. The answer may be \
        kept, but has to be asked for again with `If-None-Match` before it is used: it is as fresh as the \
        database it was read from.",
    tag = "Domains",
    params(
        ("domain" = inline(DomainSpelling), Path, description = "The domain."),
        AtHand
    ),
    responses(
        (status = 200, description = "What is known about the domain.", body = DomainReport,
            headers(("ETag" = String, description = "Changes whenever the answer does.")), example = json!({
                "domain": "example.com", "status": "catch-all", "delivered": 1234, "bounced": 0,
                "since": "2026-11-28T10:47:04.125Z"
            })
        ),
        (status = 304, description = "The answer has not changed."),
        QuestionProblems
    ),
    security((), ("token" = ["read"]))
)]
pub(super) async fn get_domain(
    State(Domains { lookups, threshold }): State<Domains>,
    path: Result<Path<String>, PathRejection>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let domain = domain(path)?;
    let asked = headers.get(header::IF_NONE_MATCH).cloned();
    // A waiting request holds as little memory as possible.
    drop(headers);
    let known = look_up(&lookups, &domain).await?.by(threshold);
    let etag = etag(known);
    let validators = [(header::ETAG, etag.clone()), (header::CACHE_CONTROL, NO_CACHE)];
    if asked.is_some_and(|asked| matches(&asked, &etag)) {
        return Ok((StatusCode::NOT_MODIFIED, validators).into_response());
    }
    Ok((validators, Json(DomainReport::new(domain, known))).into_response())
}

/// Everything that the answer for one domain depends on.
fn etag(Classified { counters, status, since }: Classified) -> HeaderValue {
    let Counters { delivered, bounced } = counters;
    let since = since.map_or(0, |UtcTime(since)| since);
    let etag = format!("\"{delivered}-{bounced}-{}-{since}\"", status.number());
    HeaderValue::try_from(etag).expect("digits and hyphens are visible characters")
}

/// Whether the header `If-None-Match` names an answer (RFC 9110, 13.1.2): tags are compared weakly.
pub(super) fn matches(asked: &HeaderValue, etag: &HeaderValue) -> bool {
    let (Ok(asked), Ok(etag)) = (asked.to_str(), etag.to_str()) else { return false };
    let etag = etag.trim_start_matches("W/");
    asked.split(',').map(str::trim).any(|tag| tag == "*" || tag.trim_start_matches("W/") == etag)
}

/// The domain of a path. This call consumes what the domain is parsed from, so a waiting request holds
/// nothing else in memory.
fn domain(path: Result<Path<String>, PathRejection>) -> Result<DomainName, Problem> {
    let Path(domain) =
        path.map_err(|error| Problem::new(ProblemType::InvalidDomain, excerpt(error.body_text())))?;
    http::domain(&domain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_at_hand_is_found_among_others() {
        let known = Classified::new(Counters { delivered: 1, bounced: 0 }, 0, None);
        let etag = etag(known);
        assert_eq!(etag, "\"1-0-1-0\"");
        for (asked, found) in [
            ("\"1-0-1-0\"", true),
            ("W/\"1-0-1-0\"", true),
            ("\"x\", \"1-0-1-0\"", true),
            ("*", true),
            ("\"1-0-1-1\"", false),
            ("", false),
        ] {
            assert_eq!(matches(&HeaderValue::from_static(asked), &etag), found, "{asked}");
            let weak = HeaderValue::try_from(format!("W/{}", etag.to_str().unwrap())).unwrap();
            assert_eq!(matches(&HeaderValue::from_static(asked), &weak), found, "{asked}");
        }
    }
}
