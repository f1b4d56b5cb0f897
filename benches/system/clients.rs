//! Many requests over a few connections, sent by this program itself. They load and compare; what they cost
//! is not part of a row.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use anyhow::Context;
use bytes::Bytes;
use futures::future::try_join_all;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// A request with its whole body.
pub(crate) type Call = Request<Full<Bytes>>;

/// An answer.
pub(crate) struct TimedAnswer {
    /// The index of its request.
    pub(crate) request: usize,
    pub(crate) status: StatusCode,
    pub(crate) body: Bytes,
    pub(crate) took: Duration,
}

/// Sends all `requests` to `address` over so many connections, each of which has one in flight. They are
/// begun in their order; `tell` gets the answers as they come.
pub(crate) async fn send_all(
    address: &str,
    connections: usize,
    requests: impl Iterator<Item = Call>,
    tell: impl FnMut(TimedAnswer) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let (requests, tell) = (RefCell::new(requests.enumerate()), RefCell::new(tell));
    let sending = (0..connections).map(async |_| {
        let mut connection = connect(address).await?;
        loop {
            let Some((request, call)) = requests.borrow_mut().next() else { return anyhow::Ok(()) };
            connection.ready().await?;
            let begun = Instant::now();
            let (head, body) = connection.send_request(call).await?.into_parts();
            let body = body.collect().await?.to_bytes();
            let answer = TimedAnswer { request, status: head.status, body, took: begun.elapsed() };
            (tell.borrow_mut())(answer)?;
        }
    });
    try_join_all(sending).await?;
    Ok(())
}

async fn connect(address: &str) -> anyhow::Result<SendRequest<Full<Bytes>>> {
    let stream = TcpStream::connect(address).await.with_context(|| format!("cannot connect to {address}"))?;
    stream.set_nodelay(true)?;
    let (requests, connection) = handshake(TokioIo::new(stream)).await?;
    // Its errors are reported to the request in flight.
    tokio::spawn(connection);
    Ok(requests)
}
