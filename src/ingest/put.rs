//! One event: `PUT /events/{domain}/delivered|bounced`.

use std::sync::Arc;

use axum::Extension;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use utoipa::IntoResponses;

use super::accept::{Intake, submit};
use super::key::RequestKey;
use crate::domain_name::DomainSpelling;
use crate::event::{Event, Outcome, UnknownOutcome};
use crate::excerpt::excerpt;
use crate::http::{self, Caller, Problem, ProblemType};

/// The problems of an event, for the API's document.
struct EventProblems;

impl IntoResponses for EventProblems {
    fn responses() -> http::Responses {
        use ProblemType::{
            InvalidDomain, InvalidKey, MaybeCounted, MethodNotAllowed, NotCounted, NotFound, QueueFull,
        };
        http::problem_responses(&[
            InvalidDomain,
            InvalidKey,
            NotFound,
            MethodNotAllowed,
            NotCounted,
            MaybeCounted,
            QueueFull,
        ])
    }
}

/// `PUT /events/{domain}/delivered|bounced`
#[utoipa::path(
    put,
    path = "/events/{domain}/{outcome}",
    summary = "Send one event",
    description = "Counts one message that was delivered or bounced. The answer comes when the event is on \
        disk.",
    tag = "Events",
    params(
        ("domain" = inline(DomainSpelling), Path, description = "The recipient's domain."),
        ("outcome" = Outcome, Path, description = "What happened to the message."),
        RequestKey,
    ),
    responses(
        (status = 202, description = "The event is on disk, and will be counted exactly once."),
        EventProblems
    ),
    security((), ("token" = ["write"]))
)]
pub(super) async fn put_event(
    State(intake): State<Arc<Intake>>,
    Extension(caller): Extension<Caller>,
    path: Result<Path<(String, String)>, PathRejection>,
    key: Result<RequestKey, Problem>,
) -> Result<StatusCode, Problem> {
    let event = event(path, key)?;
    caller.take_events(1)?;
    drop(caller);
    submit(&intake, 1, |batch| batch.record(event)).await?;
    Ok(StatusCode::ACCEPTED)
}

/// The event of a path. This call consumes what the event is parsed from, so a waiting request holds nothing
/// else in memory.
fn event(
    path: Result<Path<(String, String)>, PathRejection>,
    key: Result<RequestKey, Problem>,
) -> Result<Event, Problem> {
    let Path((domain, outcome)) =
        path.map_err(|error| Problem::new(ProblemType::InvalidDomain, excerpt(error.body_text())))?;
    let outcome: Outcome = outcome
        .parse()
        .map_err(|error: UnknownOutcome| Problem::new(ProblemType::NotFound, error.to_string()))?;
    let domain = http::domain(&domain)?;
    Ok(Event { domain, outcome, count: 1, key: key?.0 })
}
