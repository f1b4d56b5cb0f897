//! TLS to the broker.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{fs, io};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::network;

/// Whom to trust, and who this process is.
#[derive(Clone, Debug, Default, clap::Args)]
#[group(skip)]
pub struct BrokerTlsConfig {
    /// Certificates in PEM of the only authorities that may have signed the broker's certificate; without it,
    /// those of the system. The files of --amqp-ca, --amqp-cert and --amqp-key are read again for each
    /// connection
    #[arg(id = "amqp_ca", long = "amqp-ca", env = "CATCHALL_AMQP_CA", value_name = "FILE")]
    ca: Option<PathBuf>,

    /// Certificate chain in PEM that this process shows to the broker. If the URL names no user, the broker
    /// takes the user from it (EXTERNAL)
    #[arg(
        id = "amqp_cert",
        long = "amqp-cert",
        env = "CATCHALL_AMQP_CERT",
        value_name = "FILE",
        requires = "amqp_key"
    )]
    cert: Option<PathBuf>,

    /// Private key of that certificate, in PEM
    #[arg(
        id = "amqp_key",
        long = "amqp-key",
        env = "CATCHALL_AMQP_KEY",
        value_name = "FILE",
        requires = "amqp_cert"
    )]
    key: Option<PathBuf>,
}

impl BrokerTlsConfig {
    /// Whether anything is set that only matters with TLS.
    pub(super) fn is_set(&self) -> bool {
        self.ca.is_some() || self.cert.is_some()
    }

    /// Whether this process shows a certificate.
    pub(super) fn has_certificate(&self) -> bool {
        self.cert.is_some()
    }

    /// Speaks TLS with the broker `host`.
    pub(super) async fn connect(&self, host: &str, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
        TlsConnector::from(Arc::new(self.client_config()?)).connect(name, stream).await
    }

    fn client_config(&self) -> io::Result<ClientConfig> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?
            .with_root_certificates(self.authorities()?);
        match (&self.cert, &self.key) {
            (Some(cert), Some(key)) => {
                let secret = PrivateKeyDer::from_pem_file(key).map_err(|error| unusable(key, &error))?;
                let config = builder.with_client_auth_cert(certificates(cert)?, secret);
                config.map_err(|error| unusable(cert, &error))
            }
            _ => Ok(builder.with_no_client_auth()),
        }
    }

    fn authorities(&self) -> io::Result<RootCertStore> {
        let mut roots = RootCertStore::empty();
        match &self.ca {
            Some(path) => {
                for authority in certificates(path)? {
                    roots.add(authority).map_err(|error| unusable(path, &error))?;
                }
            }
            // Some systems have certificates that cannot be read; the others are enough.
            None => {
                roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            }
        }
        Ok(roots)
    }
}

fn certificates(path: &Path) -> io::Result<Vec<CertificateDer<'static>>> {
    let pem = fs::read(path).map_err(|error| unusable(path, &error))?;
    network::certificates(path, &pem).map_err(io::Error::other)
}

/// Text only: if it kept the error of rustls, `tls_fault` would find it and blame the broker.
fn unusable(path: &Path, reason: &dyn std::fmt::Display) -> io::Error {
    io::Error::other(format!("{}: {reason}", path.display()))
}
