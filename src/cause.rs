//! The error of a library, as the source of an error whose sentence already contains it.

use std::error::Error;
use std::fmt;
use std::sync::Arc;

/// The error of a library, kept as the source of an error whose sentence already contains it. It is for
/// programs: nothing prints it after that sentence.
#[derive(Clone)]
pub struct Cause(Arc<dyn Error + Send + Sync>);

impl Cause {
    /// Keeps an error.
    pub(crate) fn new(error: impl Error + Send + Sync + 'static) -> Self {
        Self(Arc::new(error))
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The same as `Display`: the debug output of a driver can quote rows, as the details of Postgres do.
impl fmt::Debug for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Error for Cause {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&*self.0)
    }
}

/// Two are equal only if they are the same error: the errors of libraries cannot be compared.
impl PartialEq for Cause {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Cause {}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("a row is refused")]
    struct Refused {
        row: &'static str,
    }

    #[test]
    fn it_leads_to_the_error_and_shows_no_more_than_its_sentence() {
        let cause = Cause::new(Refused { row: "alice" });
        assert_eq!(format!("{cause}, {cause:?}"), "a row is refused, a row is refused");
        assert!(cause.source().is_some_and(<dyn Error>::is::<Refused>));
        assert_eq!(cause, cause.clone());
        assert_ne!(cause, Cause::new(Refused { row: "alice" }));
    }
}
