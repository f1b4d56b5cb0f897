//! The parameters of a query string. One that is unknown, given twice or invalid is a problem that names it.

use std::fmt::Display;
use std::str::FromStr;
use std::time::Duration;

use axum::extract::FromRequestParts;
use axum::extract::Query;
use axum::http::request::Parts;
use utoipa::openapi::Object;
use utoipa::openapi::schema::{ObjectBuilder, Type};

use crate::excerpt::excerpt;
use crate::http::{Problem, ProblemType};

/// The parameters of a request, each of which is taken once.
#[derive(Debug, Default)]
pub(super) struct Parameters(Vec<(String, String)>);

impl<S: Send + Sync> FromRequestParts<S> for Parameters {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        match Query::try_from_uri(&parts.uri) {
            Ok(Query(pairs)) => Ok(Self(pairs)),
            Err(error) => Err(Problem::new(ProblemType::InvalidParameter, excerpt(error.body_text()))),
        }
    }
}

impl Parameters {
    /// The value of a parameter.
    pub(super) fn take<T>(&mut self, name: &'static str) -> Result<Option<T>, Problem>
    where
        T: FromStr,
        T::Err: Display,
    {
        let Some(place) = self.0.iter().position(|(given, _)| given == name) else { return Ok(None) };
        let (_, value) = self.0.swap_remove(place);
        if self.0.iter().any(|(given, _)| given == name) {
            return Err(invalid(name, "it is given more than once"));
        }
        value.parse().map(Some).map_err(|error| invalid(name, error))
    }

    /// Refuses parameters that have not been taken.
    pub(super) fn end(self) -> Result<(), Problem> {
        match self.0.first() {
            None => Ok(()),
            Some((name, _)) => {
                let detail = excerpt(format_args!("there is no parameter {name:?} here"));
                Err(Problem::new(ProblemType::InvalidParameter, detail))
            }
        }
    }
}

/// The problem of a parameter.
pub(super) fn invalid(name: &str, reason: impl Display) -> Problem {
    let detail = excerpt(format_args!("the parameter {name} is not valid: {reason}"));
    Problem::new(ProblemType::InvalidParameter, detail)
}

/// The requested number of rows, within these bounds.
pub(super) fn limit(parameters: &mut Parameters, usual: u32, most: u32) -> Result<u32, Problem> {
    let limit = parameters.take::<Limit>("limit")?;
    Ok(limit.map_or(usual, |Limit(limit)| limit.clamp(1, most)))
}

/// How many seconds to wait.
pub(super) fn wait(parameters: &mut Parameters) -> Result<Duration, Problem> {
    let wait = parameters.take::<Limit>("wait")?;
    Ok(Duration::from_secs(wait.map_or(0, |Limit(seconds)| seconds.into())))
}

/// The schema of a number that is limited to its bounds, so that none is too large.
pub(super) fn any_number() -> Object {
    ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(0)).build()
}

/// A number that may be larger than the type.
struct Limit(u32);

impl FromStr for Limit {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err("it is not a whole number");
        }
        Ok(Self(text.parse().unwrap_or(u32::MAX)))
    }
}
