//! One request and its answer, over either version of HTTP.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use serde::Deserialize;
use tokio::time::{Instant, Sleep, sleep};

/// The header with the key under which a request counts once.
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// The problems of a request that was not counted at all and may be accepted later.
pub(crate) const NOTHING_COUNTED: [&str; 3] = [
    "urn:catchall:problem:not-counted",
    "urn:catchall:problem:timeout",
    "urn:catchall:problem:too-many-requests",
];

/// An HTTP request.
#[derive(Clone, Debug)]
pub(crate) struct HttpRequest {
    /// The method.
    pub(crate) method: Method,
    /// The path. It needs no escaping.
    pub(crate) path: Bytes,
    /// The value of the header `Idempotency-Key`.
    pub(crate) idempotency_key: Option<HeaderValue>,
    /// The body; empty if there is none.
    pub(crate) body: Bytes,
    /// The media type of the body.
    pub(crate) content_type: Option<HeaderValue>,
}

impl HttpRequest {
    /// A request with only a method and a path.
    #[must_use]
    pub(crate) fn new(method: Method, path: Bytes) -> Self {
        Self { method, path, idempotency_key: None, body: Bytes::new(), content_type: None }
    }
}

/// Sets the headers that are given.
pub(crate) fn insert_headers(
    headers: &mut HeaderMap,
    content_type: Option<HeaderValue>,
    idempotency_key: Option<HeaderValue>,
    authorization: Option<HeaderValue>,
) {
    let named = [
        (header::CONTENT_TYPE, content_type),
        (IDEMPOTENCY_KEY, idempotency_key),
        (header::AUTHORIZATION, authorization),
    ];
    for (name, value) in named {
        if let Some(value) = value {
            headers.insert(name, value);
        }
    }
}

/// An HTTP response.
#[derive(Clone, Debug)]
pub(crate) struct HttpResponse {
    /// The status.
    pub(crate) status: StatusCode,
    /// The whole body.
    pub(crate) body: Bytes,
}

/// The members of a problem document that are used here.
#[derive(Default, Deserialize)]
struct Problem {
    #[serde(rename = "type")]
    kind: Option<String>,
    detail: Option<String>,
}

impl HttpResponse {
    /// The body, if it is a problem document.
    fn problem(&self) -> Problem {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// Whether it says that nothing was counted, and that the request is to be sent again.
    pub(crate) fn says_send_again(&self) -> bool {
        self.problem().kind.is_some_and(|kind| NOTHING_COUNTED.contains(&&*kind))
    }

    /// The status and the server's reason, on one line.
    #[must_use]
    pub(crate) fn reason(&self) -> String {
        let detail = self.problem().detail;
        let detail = detail.unwrap_or_else(|| String::from_utf8_lossy(&self.body).into_owned());
        let line: String = detail.chars().filter(|c| !c.is_control()).take(200).collect();
        if line.is_empty() { self.status.to_string() } else { format!("{}: {line}", self.status) }
    }
}

/// Why there is no response.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Failure {
    /// The server cannot have acted on the request: it is safe to send it again.
    #[error("{0}")]
    Unsent(String),
    /// The server may have acted on the request.
    #[error("{0}")]
    Unanswered(String),
}

/// Sends one request at a time, over its own connection or a shared one. It reconnects when the connection is
/// lost.
pub(crate) trait Client {
    /// Sends a request and waits for the whole answer.
    ///
    /// # Errors
    ///
    /// When there is no response; the error tells whether the request may have arrived. The next call
    /// reconnects.
    async fn exchange(&mut self, call: HttpRequest) -> Result<HttpResponse, Failure>;
}

/// Limits how long a response may take. The timer is not reset for each request: if it fires after its
/// request was answered, it is set for the present one.
#[derive(Debug)]
pub(crate) struct RequestTimeout {
    limit: Duration,
    timer: Pin<Box<Sleep>>,
}

impl RequestTimeout {
    pub(crate) fn new(limit: Duration) -> Self {
        Self { limit, timer: Box::pin(sleep(limit)) }
    }

    /// The output of the future, unless it takes too long. The future is pinned by the caller: it is large,
    /// and moving it for every request costs time.
    pub(crate) async fn wait<F: Future>(&mut self, mut future: Pin<&mut F>) -> Result<F::Output, Failure> {
        let deadline = Instant::now() + self.limit;
        poll_fn(|context| {
            if let Poll::Ready(output) = future.as_mut().poll(context) {
                return Poll::Ready(Ok(output));
            }
            while self.timer.as_mut().poll(context).is_ready() {
                if Instant::now() >= deadline {
                    let reason = format!("no answer within {} s", self.limit.as_secs());
                    return Poll::Ready(Err(Failure::Unanswered(reason)));
                }
                self.timer.as_mut().reset(deadline);
            }
            Poll::Pending
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use super::*;

    #[test]
    fn the_reason_is_the_problems_detail_or_the_body() {
        for (body, reason) in [
            (
                &br#"{"type":"about:blank","detail":"the domain \"a\" is not valid"}"#[..],
                r#"400 Bad Request: the domain "a" is not valid"#,
            ),
            (b"bad\r\nluck", "400 Bad Request: badluck"),
            (b"", "400 Bad Request"),
        ] {
            let answer = HttpResponse { status: StatusCode::BAD_REQUEST, body: Bytes::from_static(body) };
            assert_eq!(answer.reason(), reason);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn each_request_has_the_whole_timeout() {
        let mut timeout = RequestTimeout::new(Duration::from_secs(10));
        for _ in 0..5 {
            assert!(timeout.wait(pin!(sleep(Duration::from_secs(9)))).await.is_ok());
        }
        let begun = Instant::now();
        assert!(timeout.wait(pin!(std::future::pending::<()>())).await.is_err());
        assert_eq!(begun.elapsed().as_secs(), 10);
        assert!(timeout.wait(pin!(sleep(Duration::from_secs(9)))).await.is_ok());
    }
}
