//! How tests and benchmarks get into a service that asks for a token, or speaks TLS.

use std::fs;
use std::path::PathBuf;

use crate::authority::Authority;
use crate::program::run;
use crate::scratch::directory;
use crate::tls::TlsClient;

/// What a client needs for a service, and the variables with which the service asks for it.
#[derive(Default)]
pub struct Access {
    /// The value of the header `Authorization`.
    pub bearer: Option<String>,
    /// For a service that speaks TLS.
    pub tls: Option<TlsClient>,
    service: Vec<(&'static str, String)>,
    client: Vec<(&'static str, String)>,
}

impl Access {
    /// By a token that allows everything.
    #[must_use]
    pub fn by_token() -> Self {
        let file = path(directory().join("tokens"));
        let arguments = ["new", "--name", "all", "--scope", "write,read,operate", "--file", &file];
        let (status, token, stderr) = run("token", &arguments, &[]);
        assert!(status.success(), "{stderr}");
        let token = token.trim_end();
        Self {
            bearer: Some(format!("Bearer {token}")),
            tls: None,
            service: vec![("CATCHALL_TOKENS", file)],
            client: vec![("CATCHALL_TOKEN", token.to_owned())],
        }
    }

    /// By a token and over TLS, with a certificate for `localhost`.
    #[must_use]
    pub fn by_tls() -> Self {
        let mut access = Self::by_token();
        let (authority, directory) = (Authority::default(), directory());
        let (cert, key) = authority.certificate(&["localhost"]).write(&directory);
        let ca = directory.join("ca.pem");
        fs::write(&ca, authority.pem()).expect("the directory can be written");
        access.tls = Some(TlsClient::new(&authority.pem(), None, &["http/1.1"]));
        access.service.extend([("CATCHALL_TLS_CERT", path(cert)), ("CATCHALL_TLS_KEY", path(key))]);
        access.client.push(("CATCHALL_CA", path(ca)));
        access
    }

    /// The variables of the service.
    #[must_use]
    pub fn of_service(&self) -> Vec<(&str, &str)> {
        self.service.iter().map(|(name, value)| (*name, &**value)).collect()
    }

    /// The variables of the load tool.
    #[must_use]
    pub fn of_client(&self) -> Vec<(&str, &str)> {
        self.client.iter().map(|(name, value)| (*name, &**value)).collect()
    }
}

fn path(path: PathBuf) -> String {
    path.into_os_string().into_string().expect("a path in UTF-8")
}
