//! A connection of HTTP/1.1, with one request at a time.

use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{HeaderValue, Request, Response, Uri, header};
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Incoming};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;

use crate::exchange::{Client, Failure, HttpRequest, HttpResponse, RequestTimeout, insert_headers};
use crate::target::Target;

/// A keep-alive connection that is reopened when it is lost.
#[derive(Debug)]
pub(crate) struct Http1 {
    timeout: RequestTimeout,
    connection: Connection,
    /// Whether each request opens a connection.
    reconnecting: bool,
}

#[derive(Debug)]
struct Connection {
    target: Target,
    host: HeaderValue,
    requests: Option<http1::SendRequest<Full<Bytes>>>,
}

impl Http1 {
    /// Opens a connection to `target`, or one for each request. A response may take as long as `timeout`.
    ///
    /// # Errors
    ///
    /// When the server cannot be reached.
    pub(crate) async fn connect(
        target: Target,
        timeout: Duration,
        reconnecting: bool,
    ) -> Result<Self, Failure> {
        let host = HeaderValue::from_str(target.authority().as_str()).expect("an authority is visible ASCII");
        let mut connection = Connection { target, host, requests: None };
        connection.open().await?;
        Ok(Self { timeout: RequestTimeout::new(timeout), connection, reconnecting })
    }
}

impl Connection {
    async fn open(&mut self) -> Result<(), Failure> {
        let unsent = |reason: &dyn std::fmt::Display| Failure::Unsent(reason.to_string());
        let stream = self.target.connect(b"http/1.1").await.map_err(|error| unsent(&error))?;
        let (requests, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| unsent(&error))?;
        // Its errors are reported to the request in flight.
        tokio::task::spawn_local(connection);
        self.requests = Some(requests);
        Ok(())
    }

    async fn send(&mut self, call: HttpRequest) -> Result<HttpResponse, Failure> {
        let requests = match &mut self.requests {
            Some(requests) if !requests.is_closed() => requests,
            lost => {
                *lost = None;
                self.open().await?;
                self.requests.as_mut().expect("it was just opened")
            }
        };
        requests.ready().await.map_err(|error| Failure::Unsent(describe(&error)))?;
        let sent = requests.try_send_request(request(call, &self.host, self.target.authorization())).await;
        let response = sent.map_err(|mut error| {
            // A message that is handed back was not written at all: the server had closed the idle
            // connection.
            let unsent = error.take_message().is_some();
            let reason = describe(error.error());
            if unsent { Failure::Unsent(reason) } else { Failure::Unanswered(reason) }
        })?;
        answer(response).await
    }
}

impl Client for Http1 {
    async fn exchange(&mut self, call: HttpRequest) -> Result<HttpResponse, Failure> {
        let Self { timeout, connection, reconnecting } = self;
        let answer = timeout.wait(pin!(connection.send(call))).await.flatten();
        if answer.is_err() || *reconnecting {
            connection.requests = None;
        }
        answer
    }
}

fn request(
    call: HttpRequest,
    host: &HeaderValue,
    authorization: Option<HeaderValue>,
) -> Request<Full<Bytes>> {
    let path =
        PathAndQuery::from_maybe_shared(call.path).expect("paths are made of letters, dots and slashes");
    let mut request = Request::new(Full::new(call.body));
    *request.method_mut() = call.method;
    *request.uri_mut() = Uri::from(path);
    let headers = request.headers_mut();
    headers.insert(header::HOST, host.clone());
    insert_headers(headers, call.content_type, call.idempotency_key, authorization);
    request
}

async fn answer(response: Response<Incoming>) -> Result<HttpResponse, Failure> {
    let (head, body) = response.into_parts();
    let body = if body.is_end_stream() {
        Bytes::new()
    } else {
        let body = body.collect().await;
        body.map_err(|error| Failure::Unanswered(describe(&error)))?.to_bytes()
    };
    Ok(HttpResponse { status: head.status, body })
}

/// The error with its cause, if there is one.
fn describe(error: &hyper::Error) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}
