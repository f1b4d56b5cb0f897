//! One domain: `GET /domains/{domain}`.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use serde::Serialize;
use utoipa::{IntoResponses, ToSchema};

use super::lookup::{Lookups, look_up};
use crate::counters::{Counters, Status};
use crate::domain_name::{DomainName, DomainSpelling};
use crate::excerpt::excerpt;
use crate::http::{self, Problem, ProblemType};

/// What the handlers of one thread share.
#[derive(Clone, Debug)]
pub(super) struct Domains {
    pub(super) lookups: Arc<Lookups>,
    /// Delivered events that a domain without a bounce must exceed to be a catch-all.
    pub(super) threshold: u64,
}

/// What is known of a domain.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct DomainReport {
    domain: DomainName,
    status: Status,
    /// Messages that were delivered.
    delivered: u64,
    /// Messages that bounced.
    bounced: u64,
}

/// The problems of a question, for the API's document.
struct QuestionProblems;

impl IntoResponses for QuestionProblems {
    fn responses() -> http::Responses {
        use ProblemType::{InvalidDomain, MethodNotAllowed, NotFound, Unavailable};
        http::problem_responses(&[InvalidDomain, NotFound, MethodNotAllowed, Unavailable])
    }
}

/// `GET /domains/{domain}`. A domain that was never seen has had no events, which is a normal response.
#[utoipa::path(
    get,
    path = "/domains/{domain}",
    summary = "Ask about a domain",
    description = "Tells what is known of a domain. One that was never seen is `unknown`, which is an answer \
        and not an error. A status only moves from `unknown` to `catch-all`, and from either to \
        `not catch-all`.",
    tag = "Domains",
    params(("domain" = inline(DomainSpelling), Path, description = "The domain.")),
    responses(
        (status = 200, description = "What is known of the domain.", body = DomainReport, example = json!(
            {"domain": "example.com", "status": "catch-all", "delivered": 1234, "bounced": 0}
        )),
        QuestionProblems
    ),
    security((), ("token" = ["read"]))
)]
pub(super) async fn get_domain(
    State(Domains { lookups, threshold }): State<Domains>,
    path: Result<Path<String>, PathRejection>,
) -> Result<Json<DomainReport>, Problem> {
    let domain = domain(path)?;
    let counters = look_up(&lookups, &domain).await?;
    let Counters { delivered, bounced } = counters;
    Ok(Json(DomainReport { domain, status: counters.status(threshold), delivered, bounced }))
}

/// The domain of a path. This call consumes what the domain is parsed from, so a waiting request holds
/// nothing else in memory.
fn domain(path: Result<Path<String>, PathRejection>) -> Result<DomainName, Problem> {
    let Path(domain) =
        path.map_err(|error| Problem::new(ProblemType::InvalidDomain, excerpt(error.body_text())))?;
    http::domain(&domain)
}
