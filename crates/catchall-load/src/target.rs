//! The address of a service, and connecting to it.

use std::fmt;
use std::io::{self, ErrorKind};
use std::str::FromStr;
use std::time::Duration;

use http::Uri;
use http::uri::{Authority, Scheme};
use tokio::net::TcpStream;

/// A connection attempt that takes longer has failed.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A service's address: `http://HOST:PORT`, without a path and without TLS.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Target {
    authority: Authority,
}

impl FromStr for Target {
    type Err = String;

    fn from_str(url: &str) -> Result<Self, Self::Err> {
        let example = "not an address as in http://localhost:8080";
        let uri: Uri = url.parse().map_err(|_| example.to_owned())?;
        match uri.scheme() {
            Some(scheme) if *scheme == Scheme::HTTP => {}
            Some(scheme) if *scheme == Scheme::HTTPS => {
                return Err("TLS is not spoken here, use http://".into());
            }
            _ => return Err(example.into()),
        }
        if uri.path() != "/" || uri.query().is_some() {
            return Err(format!("{example}: the paths below it are known"));
        }
        let authority = uri.into_parts().authority.ok_or(example)?;
        Ok(Self { authority })
    }
}

impl Target {
    /// Host and port.
    #[must_use]
    pub(crate) fn authority(&self) -> &Authority {
        &self.authority
    }

    /// Opens a connection with `TCP_NODELAY`.
    ///
    /// # Errors
    ///
    /// Says why the server cannot be reached.
    pub(crate) async fn connect(&self) -> Result<TcpStream, String> {
        let opened = tokio::time::timeout(CONNECT_TIMEOUT, self.open()).await;
        match opened.unwrap_or_else(|_| Err(ErrorKind::TimedOut.into())) {
            Ok(stream) => Ok(stream),
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => Err("connection refused".into()),
            Err(error) if error.kind() == ErrorKind::TimedOut => Err("no answer".into()),
            Err(error) => Err(error.to_string()),
        }
    }

    async fn open(&self) -> io::Result<TcpStream> {
        let host = self.authority.host().trim_start_matches('[').trim_end_matches(']');
        let address = (host, self.authority.port_u16().unwrap_or(80));
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}", self.authority)
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
        for url in ["http://127.0.0.1:8080", "http://localhost", "http://[::1]:8080"] {
            assert_eq!(url.parse::<Target>().unwrap().to_string(), url);
        }
        assert_eq!("http://a:1/".parse::<Target>(), "http://a:1".parse());
        for url in ["", "localhost:8080", "https://a", "ftp://a", "http://", "http://a/events", "http://a/?b"]
        {
            assert!(url.parse::<Target>().is_err(), "{url}");
        }
    }
}
