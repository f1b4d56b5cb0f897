//! A client of a socketmap that does as it is told, right or wrong.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

/// How long a reply may take on a busy machine.
const MOMENT: Duration = Duration::from_mins(1);

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// A connection to a socketmap.
pub struct SocketmapClient(Box<dyn Stream>);

/// A request, or a reply, as it is sent.
#[must_use]
pub fn netstring(text: &str) -> String {
    format!("{}:{text},", text.len())
}

impl SocketmapClient {
    /// Connects to `unix:/PATH` or `ADDRESS:PORT`.
    ///
    /// # Errors
    ///
    /// When nobody listens there.
    pub async fn connect(address: &str) -> std::io::Result<Self> {
        Ok(Self(match address.strip_prefix("unix:") {
            Some(path) => Box::new(UnixStream::connect(path).await?),
            None => Box::new(TcpStream::connect(address).await?),
        }))
    }

    /// Sends these bytes. A server that has closed the connection is no error.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = self.0.write_all(bytes.as_ref()).await;
    }

    /// The next reply; `None` when the connection has been closed.
    pub async fn reply(&mut self) -> Option<String> {
        timeout(MOMENT, self.next()).await.expect("a reply or the end of the connection")
    }

    async fn next(&mut self) -> Option<String> {
        let mut length = 0;
        loop {
            match self.0.read_u8().await.ok()? {
                digit @ b'0'..=b'9' => length = length * 10 + usize::from(digit - b'0'),
                b':' => break,
                other => panic!("{other} in a length"),
            }
        }
        let mut reply = vec![0; length + 1];
        self.0.read_exact(&mut reply).await.ok()?;
        assert_eq!(reply.pop(), Some(b','));
        Some(String::from_utf8(reply).expect("UTF-8"))
    }

    /// What a request is answered.
    pub async fn ask(&mut self, request: &str) -> Option<String> {
        self.send(netstring(request)).await;
        self.reply().await
    }
}
