//! Connecting to the broker.

use std::io::ErrorKind as IoErrorKind;
use std::net::Shutdown;
use std::sync::{Arc, OnceLock};

use futures::{Stream, StreamExt, future};
use lapin::uri::{AMQPScheme, AMQPUri, SASLMechanism};
use lapin::{AsyncTcpStream, Connection, ConnectionProperties, ErrorKind, Event};
use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_util::compat::TokioAsyncReadCompatExt;
use tokio_util::either::Either;

use super::error::BrokerError;
use super::filter::{Filtered, FrameFilter, runtime};
use super::url::{AmqpUrl, BrokerConfig, FRAME_MAX};
use crate::network::tls_fault;

/// Opens a connection under `name`, which the broker's management pages show.
pub(super) async fn connect(config: &BrokerConfig, name: &str) -> Result<Connection, BrokerError> {
    // Publishers do not read the bodies of returned messages.
    connect_limited(config, name, 0).await
}

/// The same for a connection that reads message bodies of up to `largest_body` bytes.
///
/// Lapin runs the attempt on its own thread, which goes on when the future is dropped. A peer that accepts
/// connections and never answers would pile up threads. So a handle of the socket is kept, to shut it down at
/// the timeout.
pub(super) async fn connect_limited(
    config: &BrokerConfig,
    name: &str,
    largest_body: u32,
) -> Result<Connection, BrokerError> {
    let url = &config.amqp_url;
    let mut uri = url.uri.clone();
    if config.tls.has_certificate() && !url.names_user {
        uri.query.auth_mechanism = Some(SASLMechanism::External);
    }
    let properties = ConnectionProperties::default().with_connection_name(name.into());
    let socket = Arc::new(OnceLock::new());
    let opened = Arc::clone(&socket);
    let tls = config.tls.clone();
    let attempt = Connection::connector(
        uri,
        runtime(),
        async move |uri, _| {
            let AMQPUri { scheme, authority, query, .. } = uri;
            let stream = TcpStream::connect((authority.host.clone(), authority.port)).await?;
            stream.set_nodelay(true)?;
            // It is set only once, because there is one attempt.
            let _ = opened.set(SockRef::from(&stream).try_clone()?);
            let wire = match scheme {
                AMQPScheme::AMQP => Either::Left(stream),
                AMQPScheme::AMQPS => Either::Right(tls.connect(&authority.host, stream).await?),
            };
            let frame_max = query.frame_max.unwrap_or(FRAME_MAX);
            let filter = FrameFilter::new(largest_body.into(), frame_max as usize);
            // Plain to the library, because any TLS is inside the wire.
            Ok(AsyncTcpStream::Plain(Filtered::new(wire.compat(), filter)))
        },
        properties,
    );
    let limit = url.connect_timeout();
    match timeout(limit, attempt).await {
        Ok(Ok(connection)) => Ok(connection),
        Ok(Err(error)) => Err(BrokerError::of(url, describe_attempt(&error, url), &error)),
        Err(_) => {
            if let Some(socket) = socket.get() {
                // The socket may already be shut down.
                let _ = socket.shutdown(Shutdown::Both);
            }
            Err(BrokerError::connection(url, format!("no answer within {limit:?}")))
        }
    }
}

/// Why an attempt to connect failed, in words an operator can act on; the likely causes come first.
fn describe_attempt(error: &lapin::Error, url: &AmqpUrl) -> String {
    let is_cut = matches!(error.kind(), ErrorKind::IOError(io) if tls_fault(&**io).is_none()
        && matches!(io.kind(), IoErrorKind::ConnectionAborted | IoErrorKind::ConnectionReset));
    if !is_cut {
        return describe(error);
    }
    let mut likely =
        "the connection was closed during the handshake: a load balancer chose a broker that is down, or the \
         broker is starting or stopping"
            .to_owned();
    if url.uri.scheme == AMQPScheme::AMQP {
        likely += ", or the port expects TLS (amqps) or another protocol";
    }
    likely
}

/// What went wrong, in words an operator can act on; lapin's own words where there are no better ones.
pub(super) fn describe(error: &lapin::Error) -> String {
    match error.kind() {
        ErrorKind::IOError(io) if let Some(fault) = tls_fault(&**io) => fault,
        ErrorKind::IOError(io) => match io.kind() {
            IoErrorKind::ConnectionRefused => "connection refused".into(),
            IoErrorKind::ConnectionAborted => "the broker closed the connection".into(),
            IoErrorKind::ConnectionReset => "the connection to the broker was cut".into(),
            _ => io.to_string(),
        },
        ErrorKind::ProtocolError(amqp) => amqp.get_message().to_string(),
        _ => error.to_string(),
    }
}

/// The next event of a connection. The stream does not end with the connection, because both ends of its
/// queue outlive the connection.
pub(super) async fn next_event(events: &mut (impl Stream<Item = Event> + Unpin)) -> Event {
    match events.next().await {
        Some(event) => event,
        None => future::pending().await,
    }
}
