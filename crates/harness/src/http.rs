//! HTTP clients for tests. An answer may fail to come; [`send`] is for where it may not.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{HeaderMap, Request, StatusCode};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;

/// The status and body of the answer, or the reason why there is none.
pub type HttpResult = Result<(StatusCode, String), String>;

/// Sends requests.
pub struct HttpClient(Client<HttpConnector, Full<Bytes>>);

impl HttpClient {
    /// Every request opens a connection.
    #[must_use]
    pub fn without_keep_alive() -> Self {
        Self(Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build_http())
    }

    /// A request uses the connection of the one before, if it is still open.
    #[must_use]
    pub fn with_keep_alive() -> Self {
        Self(Client::builder(TokioExecutor::new()).build_http())
    }

    /// Sends a request and reads the whole answer.
    ///
    /// # Errors
    ///
    /// Says why there is no answer within `timeout`.
    pub async fn send(&self, request: Request<Full<Bytes>>, timeout: Duration) -> HttpResult {
        let answer = tokio::time::timeout(timeout, self.exchange(request)).await;
        let answer = answer.unwrap_or_else(|_| Err(format!("no answer within {timeout:?}")));
        answer.map(|(status, _, body)| (status, String::from_utf8_lossy(&body).into_owned()))
    }

    /// Asks for what is at `url`.
    ///
    /// # Errors
    ///
    /// Says why there is no answer within `timeout`.
    ///
    /// # Panics
    ///
    /// When `url` is not valid.
    pub async fn get(&self, url: &str, timeout: Duration) -> HttpResult {
        self.send(Request::get(url).body(Full::default()).unwrap(), timeout).await
    }

    async fn exchange(
        &self,
        request: Request<Full<Bytes>>,
    ) -> Result<(StatusCode, HeaderMap, Bytes), String> {
        let answer = self.0.request(request).await.map_err(|error| chain(&error))?;
        let (head, body) = answer.into_parts();
        let body = body.collect().await.map_err(|error| chain(&error))?.to_bytes();
        Ok((head.status, head.headers, body))
    }
}

/// Sends a request on a connection of its own and reads the whole answer.
///
/// # Panics
///
/// When there is no answer, or it is not text.
pub async fn send(request: Request<Full<Bytes>>) -> (StatusCode, HeaderMap, String) {
    let (status, headers, body) = HttpClient::without_keep_alive().exchange(request).await.unwrap();
    (status, headers, String::from_utf8(body.to_vec()).unwrap())
}

/// The error followed by its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut words = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        words = format!("{words}: {inner}");
        cause = inner.source();
    }
    words
}
