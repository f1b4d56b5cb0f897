//! The files that the page loads: its style, its script and its icon.

use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use utoipa::IntoResponses;

use crate::http::{self, ProblemType};
use crate::query::answer::NO_CACHE;
use crate::query::domain::matches;

/// The problems of the page's paths, for the API's document.
pub(super) struct PageProblems;

impl IntoResponses for PageProblems {
    fn responses() -> http::Responses {
        http::problem_responses(&[ProblemType::MethodNotAllowed])
    }
}

/// `GET /page/style.css`
#[utoipa::path(
    get,
    path = "/page/style.css",
    operation_id = "page_style",
    summary = "The style of the page",
    tag = "Page",
    responses(
        (status = 200, description = "The style.", body = String, content_type = "text/css; charset=utf-8"),
        PageProblems
    ),
    security((), ("token" = ["read"]))
)]
pub(super) async fn style(headers: HeaderMap) -> Response {
    file(&headers, "text/css; charset=utf-8", include_str!("style.css"))
}

/// `GET /page/script.js`
#[utoipa::path(
    get,
    path = "/page/script.js",
    operation_id = "page_script",
    summary = "The script of the page",
    description = "It keeps the page up to date. The page is complete without it.",
    tag = "Page",
    responses(
        (status = 200, description = "The script.", body = String,
            content_type = "text/javascript; charset=utf-8"),
        PageProblems
    ),
    security((), ("token" = ["read"]))
)]
pub(super) async fn script(headers: HeaderMap) -> Response {
    file(&headers, "text/javascript; charset=utf-8", include_str!("script.js"))
}

/// `GET /page/icon.svg`
#[utoipa::path(
    get,
    path = "/page/icon.svg",
    operation_id = "page_icon",
    summary = "The icon of the page",
    tag = "Page",
    responses(
        (status = 200, description = "The icon.", body = String, content_type = "image/svg+xml"),
        PageProblems
    ),
    security((), ("token" = ["read"]))
)]
pub(super) async fn icon(headers: HeaderMap) -> Response {
    file(&headers, "image/svg+xml", include_str!("icon.svg"))
}

/// A file, unless the browser already has it. The browser checks each time, so that no page gets a file of
/// another version.
fn file(headers: &HeaderMap, kind: &'static str, text: &'static str) -> Response {
    let etag = format!("\"{:08x}\"", crc32fast::hash(text.as_bytes()));
    let etag = HeaderValue::try_from(etag).expect("digits are visible characters");
    let validators = [(header::ETAG, etag.clone()), (header::CACHE_CONTROL, NO_CACHE)];
    if headers.get(header::IF_NONE_MATCH).is_some_and(|asked| matches(asked, &etag)) {
        return (StatusCode::NOT_MODIFIED, validators).into_response();
    }
    (validators, [(header::CONTENT_TYPE, kind)], text).into_response()
}
