//! HTTP requests that may fail.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Request, StatusCode};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;

/// Status and body, or why there is none.
pub(crate) type Answered = Result<(StatusCode, String), String>;

/// Who asks.
pub(crate) struct Asker(Client<HttpConnector, Full<Bytes>>);

impl Asker {
    /// Every request opens a connection.
    pub(crate) fn anew() -> Self {
        Self(Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build_http())
    }

    /// A request uses the connection of the last one, if it is still there.
    pub(crate) fn over_one_connection() -> Self {
        Self(Client::builder(TokioExecutor::new()).build_http())
    }

    /// Sends a request and reads the whole answer.
    pub(crate) async fn ask(&self, request: Request<Full<Bytes>>, patience: Duration) -> Answered {
        let asking = async {
            let answer = self.0.request(request).await.map_err(|error| chain(&error))?;
            let status = answer.status();
            let body = answer.into_body().collect().await.map_err(|error| chain(&error))?.to_bytes();
            Ok((status, String::from_utf8_lossy(&body).into_owned()))
        };
        let answered = tokio::time::timeout(patience, asking).await;
        answered.unwrap_or_else(|_| Err(format!("no answer within {patience:?}")))
    }

    /// Asks for what is at `url`.
    pub(crate) async fn get(&self, url: &str, patience: Duration) -> Answered {
        self.ask(Request::get(url).body(Full::default()).unwrap(), patience).await
    }
}

/// An error with its causes: the first alone says nothing.
fn chain(error: &dyn std::error::Error) -> String {
    let mut words = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        words = format!("{words}: {inner}");
        cause = inner.source();
    }
    words
}
