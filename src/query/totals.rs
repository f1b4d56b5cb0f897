//! Totals: `GET /totals`.

use axum::Json;
use axum::extract::{Extension, State};
use axum::http::header;
use axum::response::IntoResponse;
use utoipa::IntoResponses;

use super::answer::NO_CACHE;
use super::source::Source;
use crate::http::{self, Caller, Problem, ProblemType};
use crate::totals::Totals;

/// Minutes that are listed one by one.
pub(super) const MINUTES: u32 = 30;

/// The problems of totals, for the API's document.
struct TotalsProblems;

impl IntoResponses for TotalsProblems {
    fn responses() -> http::Responses {
        use ProblemType::{MethodNotAllowed, Unavailable};
        http::problem_responses(&[MethodNotAllowed, Unavailable])
    }
}

/// `GET /totals`
#[utoipa::path(
    get,
    path = "/totals",
    summary = "Read the totals",
    description = "The number of domains with each status, and the number of events counted in all, \
        recently, and in each of the last 30 minutes. The totals are precomputed, so the cost does not \
        depend on the number of domains.",
    tag = "Totals",
    responses(
        (status = 200, description = "The totals.", body = Totals, example = json!({
            "domains": {"catch-all": 12, "not catch-all": 70, "unknown": 918},
            "events": {"delivered": 90210, "bounced": 70},
            "recent": {"minute": 40, "hour": 2400},
            "minutes": [{"at": "2026-11-28T10:47:00.000Z", "delivered": 39, "bounced": 1}]
        })),
        TotalsProblems
    ),
    security((), ("token" = ["read"]))
)]
pub(super) async fn get_totals(
    State(source): State<Source>,
    Extension(caller): Extension<Caller>,
) -> Result<impl IntoResponse, Problem> {
    let waiting = source.wait(&caller)?;
    let totals = source.totals(MINUTES, waiting).await?;
    Ok(([(header::CACHE_CONTROL, NO_CACHE)], Json(totals)))
}
