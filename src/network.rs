//! The network between a process and its servers: whether connections must be protected.

use std::error::Error;
use std::net::IpAddr;
use std::path::Path;

use clap::ArgAction;
use clap::builder::BoolishValueParser;
use rustls::CertificateError;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::process::ExitError;
use crate::reload::FileError;

/// Whether the network is trusted.
#[derive(Clone, Copy, Debug, clap::Args)]
#[group(skip)]
pub struct NetworkConfig {
    /// Trust the network to the broker and the databases: their URLs may then lead to other machines without
    /// TLS, or with TLS that does not verify the server
    #[arg(
        long,
        env = "CATCHALL_TRUSTED_NETWORK",
        value_name = "WHETHER",
        default_value = "no",
        action = ArgAction::Set,
        value_parser = BoolishValueParser::new(),
        global = true
    )]
    trusted_network: bool,
}

impl NetworkConfig {
    /// Checks the URLs of servers. Each comes with its variable, and with what a stranger on the network path
    /// could do, if anything.
    ///
    /// # Errors
    ///
    /// What to change, for the first one that is not protected.
    pub fn check(&self, urls: &[(&str, Option<&str>)]) -> Result<(), ExitError> {
        let open = urls.iter().find_map(|(variable, exposure)| Some((variable, (*exposure)?)));
        match open {
            Some((variable, exposure)) if !self.trusted_network => Err(ExitError::new(
                2,
                format!(
                    "{variable} leads to another machine, and {exposure}; or trust the network with \
                     CATCHALL_TRUSTED_NETWORK=yes"
                ),
            )),
            _ => Ok(()),
        }
    }
}

/// Whether a host is this machine, which is reached without a network.
#[must_use]
pub fn is_local(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let address = bare.parse::<IpAddr>();
    bare.eq_ignore_ascii_case("localhost")
        || address.is_ok_and(|address| address.to_canonical().is_loopback())
}

/// The certificates of a file in PEM, of which there has to be one.
///
/// # Errors
///
/// What is wrong with the file, which is named.
pub(crate) fn certificates(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, FileError> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let certificates = read.map_err(|error| FileError::of(path.display(), error))?;
    if certificates.is_empty() {
        return Err(FileError::new(format!("{}: no certificate in it", path.display())));
    }
    Ok(certificates)
}

/// What is wrong with a server whose TLS failed, in words an operator can act on; `None` where the error is
/// of another kind.
#[must_use]
pub fn tls_fault(error: &(dyn Error + 'static)) -> Option<String> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(fault) = error.downcast_ref::<rustls::Error>() {
            return Some(fault_of(fault));
        }
        // Only this method shows the error that an I/O error wraps.
        let wrapped = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        cause = wrapped.map(|wrapped| wrapped as &(dyn Error + 'static)).or_else(|| error.source());
    }
    None
}

fn fault_of(error: &rustls::Error) -> String {
    match error {
        rustls::Error::InvalidCertificate(fault) => match fault {
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                "its certificate is not signed by a trusted authority".into()
            }
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                "its certificate has expired".into()
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                "its certificate is not valid yet".into()
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                "its certificate is for another name".into()
            }
            fault => format!("its certificate cannot be accepted: {fault}"),
        },
        rustls::Error::InvalidMessage(_) => "it does not speak TLS on this port".into(),
        rustls::Error::AlertReceived(alert) => format!("it refused the TLS handshake: {alert:?}"),
        error => format!("TLS failed: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_several_names() {
        for host in ["localhost", "LOCALHOST", "127.0.0.1", "127.9.9.9", "::1", "[::1]", "::ffff:127.0.0.1"] {
            assert!(is_local(host), "{host}");
        }
        for host in ["", "db", "localhost.example.com", "10.0.0.1", "0.0.0.0", "::2", "127.0.0.1.example.com"]
        {
            assert!(!is_local(host), "{host}");
        }
    }

    #[test]
    fn what_is_open_is_refused_unless_the_network_is_trusted() {
        let urls = [("CATCHALL_AMQP_URL", None), ("CATCHALL_REPLICA_URL", Some("anybody reads along"))];
        let check = |trusted_network| NetworkConfig { trusted_network }.check(&urls);
        assert_eq!(check(true), Ok(()));
        let error = check(false).unwrap_err();
        assert_eq!(error.status, 2);
        assert!(
            error.sentence.starts_with("CATCHALL_REPLICA_URL leads to another machine, and anybody"),
            "{error}"
        );
        assert_eq!(NetworkConfig { trusted_network: false }.check(&urls[..1]), Ok(()));
    }

    #[test]
    fn a_fault_is_found_in_whatever_wraps_it() {
        let fault = rustls::Error::InvalidCertificate(CertificateError::Expired);
        let wrapped = std::io::Error::other(std::io::Error::new(std::io::ErrorKind::InvalidData, fault));
        assert_eq!(tls_fault(&wrapped).as_deref(), Some("its certificate has expired"));
        assert_eq!(tls_fault(&std::io::Error::other("disk")), None);
    }
}
