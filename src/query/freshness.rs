//! How long an answer may be kept.

use axum::http::HeaderValue;

/// All of it, if it is asked for again before it is used. An answer is as fresh as what it was read from, and
/// no older by any cache.
pub(super) const NO_CACHE: HeaderValue = HeaderValue::from_static("no-cache");
