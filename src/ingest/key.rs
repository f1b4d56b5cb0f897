//! The key of a request: the header `Idempotency-Key`.

use axum::extract::FromRequestParts;
use axum::http::HeaderMap;
use axum::http::request::Parts;
use utoipa::openapi::Required;
use utoipa::openapi::path::{Parameter, ParameterBuilder, ParameterIn};
use utoipa::{IntoParams, PartialSchema};

use crate::http::{Problem, ProblemType};
use crate::idempotency_key::{IdempotencyKey, IdempotencyKeyError, KeySpelling};

/// The header with the key under which a request counts once (draft-ietf-httpapi-idempotency-key-header).
const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// The key of a request, if it has one. (Extracting all headers would copy them.)
pub(super) struct RequestKey(pub(super) Option<IdempotencyKey>);

impl IntoParams for RequestKey {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        let parameter = ParameterBuilder::new()
            .name("Idempotency-Key")
            .parameter_in(ParameterIn::Header)
            .required(Required::False)
            .description(Some("Under one key a request counts once, however often it is sent."))
            .schema(Some(KeySpelling::schema()));
        vec![parameter.build()]
    }
}

impl<S: Sync> FromRequestParts<S> for RequestKey {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        idempotency_key(&parts.headers).map(Self)
    }
}

pub(super) fn idempotency_key(headers: &HeaderMap) -> Result<Option<IdempotencyKey>, Problem> {
    let invalid = |reason: &dyn std::fmt::Display| {
        Problem::new(ProblemType::InvalidKey, format!("the header Idempotency-Key is not valid: {reason}"))
    };
    let mut values = headers.get_all(IDEMPOTENCY_KEY).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(invalid(&"it is given more than once"));
    }
    let key = std::str::from_utf8(value.as_bytes()).map_err(|error| invalid(&error))?;
    key.parse().map(Some).map_err(|error: IdempotencyKeyError| invalid(&error))
}
