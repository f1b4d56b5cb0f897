//! The arguments and variables about the guard.

use std::net::SocketAddr;
use std::sync::Arc;

use super::access::{Access, AccessConfig, Admission, EventRates, Rates};
use super::guard::Guard;
use super::listen::HttpConfig;
use super::ops::OpsConfig;
use super::tls::TlsConfig;
use crate::process::ExitError;
use crate::reload::FileError;

/// Who is let in, and the certificate of the listeners.
#[derive(Clone, Debug, clap::Args)]
#[group(skip)]
pub struct GuardConfig {
    #[command(flatten)]
    access: AccessConfig,

    #[command(flatten)]
    tls: TlsConfig,
}

impl GuardConfig {
    /// Checks that other machines cannot reach, by mistake, a listener whose protocol has no tokens.
    ///
    /// # Errors
    ///
    /// A sentence that says what to set.
    pub fn check_without_tokens(&self, variable: &str, address: SocketAddr) -> Result<(), ExitError> {
        let checked = self.access.check_without_tokens(variable, address);
        checked.map_err(|sentence| ExitError::new(2, sentence))
    }

    /// Reads tokens and certificates, and keeps them current while the event loop runs on which this is
    /// called. `http` and `events` are for a process that serves clients. Nothing is bound yet.
    ///
    /// # Errors
    ///
    /// When a file cannot be read or used, or other machines could reach a port without tokens.
    pub fn load(
        &self,
        http: Option<&HttpConfig>,
        ops: &OpsConfig,
        events: Option<&EventRates>,
    ) -> Result<Guard, ExitError> {
        let invalid = |sentence: String| ExitError::new(2, sentence);
        let listen = http.map(|http| ("CATCHALL_LISTEN", http.listen));
        let addresses: Vec<_> = listen.into_iter().chain([("CATCHALL_OPS_LISTEN", ops.ops_listen)]).collect();
        self.access.check(&addresses).map_err(invalid)?;
        if self.access.sends_tokens_over(&addresses) && !self.tls.is_on() {
            tracing::warn!(
                "tokens cross the network in plain text: set CATCHALL_TLS_CERT, or let a proxy on this machine \
                 speak TLS"
            );
        }
        let limits = http.map(|http| &http.limits);
        let per_token = Rates {
            requests: limits.and_then(|limits| limits.token_requests_per_sec),
            events: events.and_then(|events| events.token_events_per_sec),
        };
        let unusable = |error: FileError| ExitError::of(2, error);
        let admission = self.access.load(per_token).map_err(unusable)?;
        let tls = self.tls.load().map_err(unusable)?;
        if let Admission::Holders(tokens) = &admission {
            let stale = metrics::gauge!("catchall_tokens_stale");
            tokio::spawn(Arc::clone(tokens).watch("tokens", stale));
        }
        if let Some(tls) = &tls {
            let stale = metrics::gauge!("catchall_tls_stale");
            tokio::spawn(Arc::clone(tls).watch("certificates", stale));
        }
        let per_address = Rates {
            requests: limits.and_then(|limits| limits.address_requests_per_sec),
            events: events.and_then(|events| events.address_events_per_sec),
        };
        let proxies = limits.map(|limits| limits.proxies.as_slice()).unwrap_or_default();
        let connections = http.map(HttpConfig::address_connections).unwrap_or_default();
        Ok(Guard {
            public: Arc::new(Access::new(admission.clone(), proxies, per_address, connections)),
            // Their listener divides its places itself.
            operations: Arc::new(Access::new(admission, &[], Rates::default(), u32::MAX)),
            tls,
        })
    }
}
