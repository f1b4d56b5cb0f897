//! Where the broker is, and how to connect to it.

use std::net::Shutdown;
use std::sync::{Arc, OnceLock};

use futures::{Stream, StreamExt, future};
use lapin::tcp::TLSConfig;
use lapin::uri::{AMQPScheme, AMQPUri};
use lapin::{AsyncTcpStream, Connection, ConnectionProperties, ErrorKind, Event};
use socket2::SockRef;
use tokio::time::timeout;

use super::error::Error;
use super::filter::{Filtered, FrameFilter, Wire, reactor, runtime};
use super::url::{Config, FRAME_MAX, Url};

/// Opens a connection under `name`, which the broker's management pages show.
pub(super) async fn connect(config: &Config, name: &str) -> Result<Connection, Error> {
    // What is returned to a publisher is not looked at.
    connect_limited(config, name, 0).await
}

/// The same, where bodies of messages are read that are no larger than this.
///
/// Lapin runs the attempt on a thread of its own and goes on with it when it is dropped: a peer that takes
/// connections and then says nothing would collect threads. So the socket is kept at hand, to be shut when the
/// attempt is given up.
pub(super) async fn connect_limited(
    config: &Config,
    name: &str,
    largest_body: u32,
) -> Result<Connection, Error> {
    let url = &config.amqp_url;
    let properties = ConnectionProperties::default().with_connection_name(name.into());
    let socket = Arc::new(OnceLock::new());
    let opened = Arc::clone(&socket);
    let attempt = Connection::connector(
        url.0.clone(),
        runtime(),
        async move |uri, runtime| {
            let AMQPUri { scheme, authority, query, .. } = uri;
            let address = runtime.to_socket_addrs((authority.host.clone(), authority.port));
            let wire = Wire::connect(&reactor(), address).await?;
            if let AsyncTcpStream::Plain(wire) = &wire {
                // Set once: there is one attempt.
                let _ = opened.set(SockRef::from(wire.get_ref()).try_clone()?);
            }
            let wire = match scheme {
                AMQPScheme::AMQP => wire,
                AMQPScheme::AMQPS => wire.into_tls(&authority.host, TLSConfig::default()).await?,
            };
            let frame_max = query.frame_max.unwrap_or(FRAME_MAX);
            let filter = FrameFilter::new(largest_body.into(), frame_max as usize);
            // Without TLS as far as the library is concerned: it is inside.
            Ok(AsyncTcpStream::Plain(Filtered::new(wire, filter)))
        },
        properties,
    );
    let limit = url.connect_timeout();
    match timeout(limit, attempt).await {
        Ok(Ok(connection)) => Ok(connection),
        Ok(Err(error)) => Err(Error::connection(url, describe(&error, url))),
        Err(_) => {
            if let Some(socket) = socket.get() {
                // It may be shut already.
                let _ = socket.shutdown(Shutdown::Both);
            }
            Err(Error::connection(url, format!("no answer within {limit:?}")))
        }
    }
}

/// What went wrong in words an operator can act on; lapin's own where there are no better ones.
pub(super) fn describe(error: &lapin::Error, url: &Url) -> String {
    match error.kind() {
        ErrorKind::IOError(io) => match io.kind() {
            std::io::ErrorKind::ConnectionRefused => "connection refused".into(),
            std::io::ErrorKind::ConnectionAborted => {
                let mut likely =
                    "the connection was closed during the handshake: behind a balancer the broker it \
                                  chose is down, or the broker is starting or stopping"
                        .to_owned();
                if url.0.scheme == AMQPScheme::AMQP {
                    likely += ", or the port expects TLS (amqps) or another protocol";
                }
                likely
            }
            _ => io.to_string(),
        },
        ErrorKind::ProtocolError(amqp) => amqp.get_message().to_string(),
        _ => error.to_string(),
    }
}

/// The next event of a connection. The stream does not end with the connection: both ends of its queue outlive
/// it.
pub(super) async fn next_event(events: &mut (impl Stream<Item = Event> + Unpin)) -> Event {
    match events.next().await {
        Some(event) => event,
        None => future::pending().await,
    }
}
