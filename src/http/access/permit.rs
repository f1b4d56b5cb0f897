//! Permits: proof that a request was let in, and how long its answer may go on.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use axum::body::{Body, Bytes};
use axum::response::Response;
use hyper::body::{Body as _, Frame, SizeHint};

use super::need::Need;
use super::token_set::{Holder, TokenSet};
use crate::grant::Scope;
use crate::reload::Reloaded;
use crate::token::TokenDigest;

/// Proof that a request was let in.
#[derive(Debug)]
pub(in crate::http) struct Permit {
    is_stranger: bool,
    lease: Option<Lease>,
}

impl Permit {
    /// No token is needed, or none for this request.
    pub(super) fn without_token(is_stranger: bool) -> Self {
        Self { is_stranger, lease: None }
    }

    /// Of the holder of a token.
    pub(super) fn of(holder: &Holder, need: Need, tokens: &Arc<Reloaded<TokenSet>>) -> Self {
        let lease = match need {
            // The answer to an event is short.
            Need::Nothing | Need::Token | Need::Scope(Scope::Write) => None,
            Need::Scope(scope) => Some(Lease { tokens: Arc::clone(tokens), digest: holder.digest(), scope }),
        };
        Self { is_stranger: false, lease }
    }

    /// Whether tokens are required, and this request has no valid one.
    pub(in crate::http) fn is_stranger(&self) -> bool {
        self.is_stranger
    }

    /// Makes a streamed answer break off when the token is no longer valid. Such an answer may have no end.
    pub(in crate::http) fn cover(self, response: Response) -> Response {
        match self.lease {
            Some(lease) if response.body().size_hint().exact().is_none() => {
                response.map(|body| Body::new(Leased { body, lease }))
            }
            _ => response,
        }
    }
}

/// A token, and what it was needed for.
#[derive(Debug)]
struct Lease {
    tokens: Arc<Reloaded<TokenSet>>,
    digest: TokenDigest,
    scope: Scope,
}

impl Lease {
    fn holds(&self) -> bool {
        self.tokens.get().may(self.digest, self.scope)
    }
}

/// A body that goes on as long as a token is valid; this is checked for each part.
#[derive(Debug)]
struct Leased {
    body: Body,
    lease: Lease,
}

impl hyper::body::Body for Leased {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        if frame.is_some() && !self.lease.holds() {
            // The client sees that the answer is not complete.
            return Poll::Ready(Some(Err(axum::Error::new("the token is no longer valid"))));
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::super::Rates;
    use super::*;
    use crate::grant::grants;
    use crate::token::Token;

    const HOLDER: [u8; 32] = [1; 32];

    /// The tokens of a file with one line.
    fn tokens(line: &str) -> TokenSet {
        TokenSet::new(grants(line).unwrap(), Rates::default(), &TokenSet::default()).unwrap()
    }

    /// The parts of an answer that is made while it is sent, to who had a token that may read.
    async fn parts(line: String) -> Vec<bool> {
        let digest = Token::from_digits(HOLDER).digest();
        let before = tokens(&format!("holder read,write {digest} never"));
        let holder = before.holder(Token::from_digits(HOLDER).expose()).unwrap();
        let now = Reloaded::load(Vec::new(), move |_, _| Ok(tokens(&line))).unwrap();
        let permit = Permit::of(&holder, Need::Scope(Scope::Read), &Arc::new(now));
        let steps = ["one", "two"].map(|step| Ok::<_, axum::Error>(Bytes::from_static(step.as_bytes())));
        let response = Response::new(Body::from_stream(futures::stream::iter(steps)));
        let mut body = permit.cover(response).into_body();
        let mut parts = Vec::new();
        while let Some(part) = body.frame().await {
            parts.push(part.is_ok());
            if part.is_err() {
                break;
            }
        }
        parts
    }

    #[tokio::test]
    async fn an_answer_goes_on_as_long_as_the_token_is_valid() {
        let digest = Token::from_digits(HOLDER).digest();
        for (line, expected) in [
            (format!("holder read,write {digest} never"), &[true, true][..]),
            (format!("renamed read {digest} 2999-01-01"), &[true, true]),
            (format!("holder write {digest} never"), &[false]),
            (format!("holder read {digest} 2020-01-01"), &[false]),
            (String::new(), &[false]),
        ] {
            assert_eq!(parts(line.clone()).await, expected, "{line}");
        }
    }
}
