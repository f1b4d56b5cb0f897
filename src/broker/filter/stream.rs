//! The stream that the client library reads: a connection whose frames have passed the filter.

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use async_rs::traits::Reactor;
use async_rs::util::RuntimeParts;
use async_rs::{Runtime, Tokio};
use futures::Stream;
use futures::io::{AsyncRead, AsyncWrite, IoSlice};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tokio_util::compat::Compat;
use tokio_util::either::Either;

use super::frames::FrameFilter;

/// Most bytes per read.
const CHUNK: usize = 64 << 10;

/// A connection, with or without TLS.
pub(in crate::broker) type Wire = Compat<Either<TcpStream, TlsStream<TcpStream>>>;

/// A wire whose frames pass through a filter on their way in.
pub(in crate::broker) struct Filtered {
    wire: Wire,
    filter: FrameFilter,
    chunk: Box<[u8]>,
    /// Bytes that have passed the filter.
    passed: Vec<u8>,
    /// How many of these bytes have been handed on.
    handed_on: usize,
}

impl Filtered {
    pub(in crate::broker) fn new(wire: Wire, filter: FrameFilter) -> Self {
        Self { wire, filter, chunk: vec![0; CHUNK].into(), passed: Vec::new(), handed_on: 0 }
    }
}

impl AsyncRead for Filtered {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let Self { wire, filter, chunk, passed, handed_on } = self.get_mut();
        loop {
            let waiting = &passed[*handed_on..];
            if !waiting.is_empty() {
                let size = waiting.len().min(buffer.len());
                buffer[..size].copy_from_slice(&waiting[..size]);
                *handed_on += size;
                return Poll::Ready(Ok(size));
            }
            passed.clear();
            *handed_on = 0;
            let size = ready!(Pin::new(&mut *wire).poll_read(context, chunk))?;
            if size == 0 {
                return Poll::Ready(Ok(0));
            }
            filter.push(&chunk[..size], passed);
        }
    }
}

impl AsyncWrite for Filtered {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.wire).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.wire).poll_write_vectored(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.wire).poll_flush(context)
    }

    fn poll_close(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.wire).poll_close(context)
    }
}

/// The runtime given to the library: tokio with [`Filtered`] connections.
pub(in crate::broker) fn runtime() -> Runtime<RuntimeParts<Tokio, FilteredTokio>> {
    Runtime::new(RuntimeParts::new(Tokio::current(), FilteredTokio(Tokio::current())))
}

/// Tokio's reactor with the stream type that the library reads.
#[derive(Clone, Debug)]
pub(in crate::broker) struct FilteredTokio(Tokio);

impl Reactor for FilteredTokio {
    type TcpStream = Filtered;
    type Sleep = <Tokio as Reactor>::Sleep;

    fn register<H: Read + Write + Send + 'static>(
        &self,
        _: H,
    ) -> io::Result<impl AsyncRead + AsyncWrite + Send + Unpin + 'static> {
        // The library does not call this.
        Err::<Filtered, _>(io::ErrorKind::Unsupported.into())
    }

    fn sleep(&self, duration: Duration) -> Self::Sleep {
        self.0.sleep(duration)
    }

    fn interval(&self, duration: Duration) -> impl Stream<Item = Instant> + Send + 'static {
        self.0.interval(duration)
    }

    fn tcp_connect_addr(&self, _: SocketAddr) -> impl Future<Output = io::Result<Filtered>> + Send + 'static {
        // `connect_limited` opens the connection, because it knows the limits.
        std::future::ready(Err(io::ErrorKind::Unsupported.into()))
    }
}
