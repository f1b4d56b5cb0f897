//! A throw-away authority and its certificates.

use std::fs;
use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use time::{Duration, OffsetDateTime};

/// An authority that signs certificates for tests.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate and its key, in PEM.
#[derive(Clone, Debug)]
pub struct Certificate {
    /// The certificate.
    pub cert: String,
    /// Its private key.
    pub key: String,
}

impl Default for Authority {
    fn default() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // Of its own: clients take two authorities of one name for the same.
        params.distinguished_name.push(DnType::CommonName, uuid::Uuid::now_v7().to_string());
        let key = KeyPair::generate().expect("a key");
        Self(CertifiedIssuer::self_signed(params, key).expect("an authority"))
    }
}

impl Authority {
    /// The authority's own certificate, in PEM.
    #[must_use]
    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// A certificate that is valid today, for these names or addresses.
    #[must_use]
    pub fn certificate(&self, names: &[&str]) -> Certificate {
        let now = OffsetDateTime::now_utc();
        self.sign(names, now - Duration::days(1), now + Duration::days(1))
    }

    /// A certificate that was valid until yesterday.
    #[must_use]
    pub fn expired(&self, names: &[&str]) -> Certificate {
        let now = OffsetDateTime::now_utc();
        self.sign(names, now - Duration::days(2), now - Duration::days(1))
    }

    fn sign(&self, names: &[&str], from: OffsetDateTime, until: OffsetDateTime) -> Certificate {
        let names: Vec<String> = names.iter().copied().map(str::to_owned).collect();
        let mut params = CertificateParams::new(names.clone()).expect("names");
        params.distinguished_name.push(DnType::CommonName, names.first().map_or("nobody", String::as_str));
        (params.not_before, params.not_after) = (from, until);
        let key = KeyPair::generate().expect("a key");
        let signed = params.signed_by(&key, &self.0).expect("a certificate");
        Certificate { cert: signed.pem(), key: key.serialize_pem() }
    }
}

impl Certificate {
    /// Writes both into a directory, as `cert.pem` and `key.pem`, in the place of what is there.
    #[must_use]
    pub fn write(&self, directory: &Path) -> (PathBuf, PathBuf) {
        let (cert, key) = (directory.join("cert.pem"), directory.join("key.pem"));
        fs::write(&cert, &self.cert).expect("the directory can be written");
        fs::write(&key, &self.key).expect("the directory can be written");
        (cert, key)
    }
}
