//! What a service asks of its clients: a token, and TLS.

use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use http::HeaderValue;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// The value of the header `Authorization`. It is not printed.
#[derive(Clone)]
pub(crate) struct Token(pub(crate) HeaderValue);

impl FromStr for Token {
    type Err = &'static str;

    fn from_str(token: &str) -> Result<Self, Self::Err> {
        let mut value = HeaderValue::try_from(format!("Bearer {token}")).map_err(|_| "not a token")?;
        value.set_sensitive(true);
        Ok(Self(value))
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

/// The authorities whose certificates a service may show.
#[derive(Clone)]
pub(crate) struct Authorities(Arc<RootCertStore>);

impl FromStr for Authorities {
    type Err = String;

    /// Reads the file with this path.
    fn from_str(path: &str) -> Result<Self, String> {
        let mut roots = RootCertStore::empty();
        let read = CertificateDer::pem_file_iter(Path::new(path)).map_err(|error| error.to_string())?;
        for certificate in read {
            let certificate = certificate.map_err(|error| error.to_string())?;
            roots.add(certificate).map_err(|error| error.to_string())?;
        }
        if roots.is_empty() { Err("no certificate in it".into()) } else { Ok(Self(roots.into())) }
    }
}

impl fmt::Debug for Authorities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} authorities", self.0.len())
    }
}

impl Authorities {
    /// Speaks TLS with `host`, and this protocol of HTTP inside of it.
    pub(crate) async fn connect(
        &self,
        host: &str,
        protocol: &[u8],
        stream: TcpStream,
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the provider has them");
        let mut config = builder.with_root_certificates(Arc::clone(&self.0)).with_no_client_auth();
        config.alpn_protocols = vec![protocol.to_vec()];
        let name = ServerName::try_from(host.to_owned()).map_err(std::io::Error::other)?;
        TlsConnector::from(Arc::new(config)).connect(name, stream).await
    }
}
