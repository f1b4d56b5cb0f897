//! Clients that speak TLS.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::{http1, http2};
use hyper::{Request, StatusCode, Version};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::authority::Certificate;

/// The status, the version of HTTP and the body of an answer.
pub type TlsAnswer = (StatusCode, Version, String);

/// A client that trusts one authority.
#[derive(Clone)]
pub struct TlsClient(Arc<ClientConfig>);

impl TlsClient {
    /// A client that trusts the authority with this certificate in PEM, and shows a certificate of its own if
    /// it has one. It offers these protocols.
    #[must_use]
    pub fn new(authority: &str, own: Option<&Certificate>, protocols: &[&str]) -> Self {
        let mut roots = RootCertStore::empty();
        let authority = CertificateDer::from_pem_slice(authority.as_bytes()).expect("a certificate");
        roots.add(authority).expect("an authority");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the provider has them")
            .with_root_certificates(roots);
        let mut config = match own {
            None => builder.with_no_client_auth(),
            Some(Certificate { cert, key }) => {
                let cert = CertificateDer::from_pem_slice(cert.as_bytes()).expect("a certificate");
                let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("a key");
                builder.with_client_auth_cert(vec![cert], key).expect("they belong together")
            }
        };
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        Self(Arc::new(config))
    }

    /// Connects to a server that is to be `name`.
    ///
    /// # Errors
    ///
    /// When there is no connection, or it is not that server.
    pub async fn connect(&self, address: &str, name: &str) -> io::Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect(address).await?;
        let name = ServerName::try_from(name.to_owned()).expect("a name");
        TlsConnector::from(Arc::clone(&self.0)).connect(name, stream).await
    }

    /// Sends one request on a connection of its own, by the protocol that both have agreed on.
    ///
    /// # Errors
    ///
    /// When there is no connection or no answer.
    pub async fn send(&self, address: &str, request: Request<Full<Bytes>>) -> io::Result<TlsAnswer> {
        let mut connection = HttpsConnection::open(self, address).await?;
        connection.send(request).await
    }
}

/// An open connection to a server at `localhost`.
pub enum HttpsConnection {
    /// HTTP/1.1.
    Http1(http1::SendRequest<Full<Bytes>>),
    /// HTTP/2.
    Http2(http2::SendRequest<Full<Bytes>>),
}

impl HttpsConnection {
    /// Opens a connection.
    ///
    /// # Errors
    ///
    /// When there is none.
    pub async fn open(client: &TlsClient, address: &str) -> io::Result<Self> {
        let stream = client.connect(address, "localhost").await?;
        let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        let stream = TokioIo::new(stream);
        if is_http2 {
            let (sender, connection) =
                http2::handshake(TokioExecutor::new(), stream).await.map_err(io::Error::other)?;
            tokio::spawn(connection);
            return Ok(Self::Http2(sender));
        }
        let (sender, connection) = http1::handshake(stream).await.map_err(io::Error::other)?;
        tokio::spawn(connection);
        Ok(Self::Http1(sender))
    }

    /// Sends a request and reads the whole answer.
    ///
    /// # Errors
    ///
    /// When there is no answer.
    pub async fn send(&mut self, request: Request<Full<Bytes>>) -> io::Result<TlsAnswer> {
        let answer = match self {
            Self::Http1(sender) => sender.send_request(request).await,
            Self::Http2(sender) => sender.send_request(request).await,
        };
        let (head, body) = answer.map_err(io::Error::other)?.into_parts();
        let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
        Ok((head.status, head.version, String::from_utf8_lossy(&body).into_owned()))
    }
}
