//! Answers in JSON: how long they may be kept, and the memory they hold until they are written.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use serde::Serialize;

use crate::http::{self, BodyRules, Budget, Problem, ProblemType};

/// A cache may keep an answer, but must check it before each use: so a cached answer is never older than its
/// source.
pub(super) const NO_CACHE: HeaderValue = HeaderValue::from_static("no-cache");

/// The limits for look-ups in a document: 10,000 names of the longest kind.
pub(super) const BODY: BodyRules =
    BodyRules { max: 4 * 1024 * 1024, refused: ProblemType::Unavailable, then: "" };

/// A large answer. Many clients that read slowly could fill the memory with such answers, so it takes its
/// memory from a budget.
pub(super) async fn held(budget: &Budget, value: &impl Serialize) -> Result<Response, Problem> {
    let mut answer = http::json(StatusCode::OK, value);
    answer.headers_mut().insert(header::CACHE_CONTROL, NO_CACHE);
    hold(budget, answer).await
}

/// The same for an answer that has already been made.
pub(super) async fn hold(budget: &Budget, answer: Response<Vec<u8>>) -> Result<Response, Problem> {
    let mut share = budget.share();
    let takes = http::REQUEST + answer.body().len();
    share.hold(takes).await.map_err(|error| BODY.exhausted(error))?;
    Ok(http::hold(answer, share))
}
