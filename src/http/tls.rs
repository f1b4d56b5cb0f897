//! TLS of the listeners.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};

use crate::network::certificates;
use crate::reload::{Contents, FileError, Reloaded};

/// The protocols that clients may choose from, the preferred one first.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// The certificate of the listeners. Without one they speak plain HTTP.
#[derive(Clone, Debug, clap::Args)]
#[group(skip)]
pub(super) struct TlsConfig {
    /// Certificate chain of this service in PEM, its own certificate first: with it, all ports speak TLS
    /// only. A renewed file takes effect within 5 s
    #[arg(
        id = "tls_cert",
        long = "tls-cert",
        env = "CATCHALL_TLS_CERT",
        value_name = "FILE",
        requires = "tls_key"
    )]
    cert: Option<PathBuf>,

    /// Private key of the certificate, in PEM
    #[arg(
        id = "tls_key",
        long = "tls-key",
        env = "CATCHALL_TLS_KEY",
        value_name = "FILE",
        requires = "tls_cert"
    )]
    key: Option<PathBuf>,

    /// Certificates in PEM of the authorities for clients: with it, a client needs a certificate that one of
    /// them has signed, besides its token
    #[arg(
        id = "tls_client_ca",
        long = "tls-client-ca",
        env = "CATCHALL_TLS_CLIENT_CA",
        value_name = "FILE",
        requires = "tls_cert"
    )]
    client_ca: Option<PathBuf>,
}

impl TlsConfig {
    /// Reads the files, if any are configured.
    pub(super) fn load(&self) -> Result<Option<Arc<Reloaded<ServerConfig>>>, FileError> {
        let (Some(cert), Some(key)) = (self.cert.clone(), self.key.clone()) else { return Ok(None) };
        let authorities = self.client_ca.clone();
        let paths =
            [Some(cert.clone()), Some(key.clone()), authorities.clone()].into_iter().flatten().collect();
        let make = move |contents: &Contents, _: Option<&ServerConfig>| {
            config(contents, &cert, &key, authorities.as_deref())
        };
        let config = Reloaded::load(paths, make);
        Ok(Some(Arc::new(config.map_err(|error| error.of_setting("CATCHALL_TLS_CERT and _KEY"))?)))
    }

    /// Whether the listeners speak TLS.
    pub(super) fn is_on(&self) -> bool {
        self.cert.is_some()
    }
}

fn config(
    contents: &Contents,
    cert: &Path,
    key: &Path,
    authorities: Option<&Path>,
) -> Result<ServerConfig, FileError> {
    let chain = certificates(cert, contents.of(cert)?)?;
    let no_key = |error| FileError::of(format_args!("{}: no private key", key.display()), error);
    let secret = PrivateKeyDer::from_pem_slice(contents.of(key)?).map_err(no_key)?;
    let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| FileError::of("TLS", error))?;
    let builder = match authorities {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for authority in certificates(path, contents.of(path)?)? {
                roots.add(authority).map_err(|error| FileError::of(path.display(), error))?;
            }
            let provider = Arc::new(ring::default_provider());
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
            builder.with_client_cert_verifier(verifier.map_err(|error| FileError::of(path.display(), error))?)
        }
    };
    let mismatch = |error| FileError::of(format_args!("{} and {}", cert.display(), key.display()), error);
    let mut config = builder.with_single_cert(chain, secret).map_err(mismatch)?;
    config.alpn_protocols = PROTOCOLS.map(Vec::from).into();
    Ok(config)
}
