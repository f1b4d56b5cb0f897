//! The address of a service, and connecting to it.

use std::fmt;
use std::io::{self, ErrorKind};
use std::str::FromStr;
use std::time::Duration;

use http::uri::{Authority, Scheme};
use http::{HeaderValue, Uri};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tokio_util::either::Either;

use crate::access::{Authorities, Token};

/// A connection attempt that takes longer has failed.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A service's address, `http://HOST:PORT` or `https://HOST:PORT`, and what it asks of its clients.
#[derive(Clone)]
pub(crate) struct Target {
    scheme: Scheme,
    authority: Authority,
    token: Option<Token>,
    authorities: Option<Authorities>,
}

/// A connection to a service.
pub(crate) type Stream = Either<TcpStream, TlsStream<TcpStream>>;

impl FromStr for Target {
    type Err = String;

    fn from_str(url: &str) -> Result<Self, Self::Err> {
        let example = "not an address as in http://localhost:8080";
        let uri: Uri = url.parse().map_err(|_| example.to_owned())?;
        let known = |scheme: &&Scheme| [Scheme::HTTP, Scheme::HTTPS].contains(scheme);
        let scheme = uri.scheme().filter(known).ok_or(example)?.clone();
        if uri.path() != "/" || uri.query().is_some() {
            return Err(format!("{example}: leave out the path and the query"));
        }
        let authority = uri.into_parts().authority.ok_or(example)?;
        Ok(Self { scheme, authority, token: None, authorities: None })
    }
}

impl Target {
    /// The same service, which asks for a token, or shows a certificate of one of these authorities.
    #[must_use]
    pub(crate) fn asking(self, token: Option<Token>, authorities: Option<Authorities>) -> Self {
        Self { token, authorities, ..self }
    }

    /// `http` or `https`.
    #[must_use]
    pub(crate) fn scheme(&self) -> &Scheme {
        &self.scheme
    }

    /// The value of the header `Authorization`, if there is to be one.
    #[must_use]
    pub(crate) fn authorization(&self) -> Option<HeaderValue> {
        self.token.as_ref().map(|token| token.0.clone())
    }

    /// Host and port.
    #[must_use]
    pub(crate) fn authority(&self) -> &Authority {
        &self.authority
    }

    /// Opens a connection with `TCP_NODELAY`, on which `protocol` is spoken, as it is named in TLS.
    ///
    /// # Errors
    ///
    /// Says why the server cannot be reached.
    pub(crate) async fn connect(&self, protocol: &[u8]) -> Result<Stream, String> {
        let opened = tokio::time::timeout(CONNECT_TIMEOUT, self.open(protocol)).await;
        match opened.unwrap_or_else(|_| Err(ErrorKind::TimedOut.into())) {
            Ok(stream) => Ok(stream),
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => Err("connection refused".into()),
            Err(error) if error.kind() == ErrorKind::TimedOut => Err("no answer".into()),
            Err(error) => Err(error.to_string()),
        }
    }

    async fn open(&self, protocol: &[u8]) -> io::Result<Stream> {
        let secure = self.scheme == Scheme::HTTPS;
        let host = self.authority.host().trim_start_matches('[').trim_end_matches(']');
        let address = (host, self.authority.port_u16().unwrap_or(if secure { 443 } else { 80 }));
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        match &self.authorities {
            Some(authorities) if secure => {
                authorities.connect(host, protocol, stream).await.map(Either::Right)
            }
            None if secure => Err(io::Error::other("https needs --ca, the authority of its certificate")),
            _ => Ok(Either::Left(stream)),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.scheme, self.authority)
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_scheme_host_and_port() {
        for url in ["http://127.0.0.1:8080", "http://localhost", "http://[::1]:8080", "https://a"] {
            assert_eq!(url.parse::<Target>().unwrap().to_string(), url);
        }
        assert_eq!("http://a:1/".parse::<Target>().unwrap().to_string(), "http://a:1");
        for url in ["", "localhost:8080", "ftp://a", "http://", "http://a/events", "http://a/?b"] {
            assert!(url.parse::<Target>().is_err(), "{url}");
        }
    }
}
