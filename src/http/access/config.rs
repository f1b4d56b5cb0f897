//! The arguments and variables about access.

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::Arc;

use clap::ArgAction;
use clap::builder::{BoolishValueParser, PathBufValueParser, TypedValueParser};

use super::admission::Admission;
use super::allowance::Rates;
use super::proxies::ProxyNet;
use super::token_set::TokenSet;
use crate::grant::{Grant, grants};
use crate::reload::{Contents, FileError, Reloaded};
use crate::token::TOKEN_PREFIX;

/// Who may come in.
#[derive(Clone, Debug, clap::Args)]
#[group(skip)]
pub(in crate::http) struct AccessConfig {
    /// File of the tokens that let clients in, one per line, or a directory of such files; catchall-token
    /// makes them. A change takes effect within 5 s. Without tokens a service listens on this machine only
    #[arg(
        long,
        env = "CATCHALL_TOKENS",
        value_name = "PATH",
        // A path is not secret, but a token may be given here by mistake.
        hide_env_values = true,
        value_parser = PathBufValueParser::new().try_map(no_token)
    )]
    tokens: Option<PathBuf>,

    /// Let in every client that can reach the ports, without a token
    #[arg(
        long,
        env = "CATCHALL_OPEN",
        value_name = "WHETHER",
        default_value = "no",
        action = ArgAction::Set,
        value_parser = BoolishValueParser::new()
    )]
    open: bool,
}

impl AccessConfig {
    /// Checks that no listener that other machines can reach lacks tokens by mistake. Each address comes with
    /// the variable that sets it.
    ///
    /// # Errors
    ///
    /// A sentence that says what to set.
    pub(in crate::http) fn check(&self, addresses: &[(&str, SocketAddr)]) -> Result<(), String> {
        if self.open {
            return match self.tokens {
                Some(_) => {
                    Err("CATCHALL_OPEN lets everybody in, and CATCHALL_TOKENS does not: set only one of them"
                        .into())
                }
                None => Ok(()),
            };
        }
        match (&self.tokens, addresses.iter().find(|address| is_reachable(address))) {
            (None, Some((variable, address))) => Err(format!(
                "{variable} is {address}, which other machines can reach: name a file of tokens in \
                 CATCHALL_TOKENS (catchall-token makes them), or let everybody in with CATCHALL_OPEN=yes"
            )),
            _ => Ok(()),
        }
    }

    /// The same for a listener whose protocol has no tokens.
    ///
    /// # Errors
    ///
    /// A sentence that says what to set.
    pub(in crate::http) fn check_without_tokens(
        &self,
        variable: &str,
        address: SocketAddr,
    ) -> Result<(), String> {
        if self.open || !is_reachable(&(variable, address)) {
            return Ok(());
        }
        Err(format!(
            "{variable} is {address}, which other machines can reach, and its protocol has no tokens: name \
             an address of this machine or a Unix socket, or let everybody in with CATCHALL_OPEN=yes"
        ))
    }

    /// Whether tokens are sent to an address that other machines can reach.
    pub(in crate::http) fn sends_tokens_over(&self, addresses: &[(&str, SocketAddr)]) -> bool {
        self.tokens.is_some() && addresses.iter().any(is_reachable)
    }

    /// Whom the listeners let in. Reads the tokens, if the service uses any.
    pub(in crate::http) fn load(&self, rates: Rates) -> Result<Admission, FileError> {
        let Some(path) = self.tokens.clone() else {
            return Ok(if self.open { Admission::Everybody } else { Admission::ThisMachine });
        };
        let make = move |contents: &Contents, before: Option<&TokenSet>| {
            let none = TokenSet::default();
            let set = TokenSet::new(all_grants(contents)?, rates, before.unwrap_or(&none));
            let set = set.map_err(FileError::new)?;
            #[expect(clippy::cast_precision_loss, reason = "there are not so many")]
            metrics::gauge!("catchall_tokens").set(set.len() as f64);
            Ok(set)
        };
        let tokens = Reloaded::load(vec![path], make).map_err(|error| error.of_setting("CATCHALL_TOKENS"))?;
        Ok(Admission::Holders(Arc::new(tokens)))
    }
}

/// Refuses a token given instead of a path: errors about a path print it.
fn no_token(path: PathBuf) -> Result<PathBuf, String> {
    if path.as_os_str().as_encoded_bytes().starts_with(TOKEN_PREFIX.as_bytes()) {
        return Err(format!(
            "it looks like a token, but must be a file of tokens: if it is a file, write ./{TOKEN_PREFIX}..."
        ));
    }
    Ok(path)
}

/// Whether other machines may reach an address.
fn is_reachable((_, address): &(&str, SocketAddr)) -> bool {
    !address.ip().to_canonical().is_loopback()
}

fn all_grants(contents: &Contents) -> Result<Vec<Grant>, FileError> {
    let mut all = Vec::new();
    for (path, bytes) in contents.iter() {
        let no_text = |error| FileError::of(format_args!("{}: it is not text", path.display()), error);
        let no_grants = |reason| FileError::new(format!("{}: {reason}", path.display()));
        all.extend(grants(std::str::from_utf8(bytes).map_err(no_text)?).map_err(no_grants)?);
    }
    Ok(all)
}

/// How much one client may use this process.
#[derive(Clone, Debug, Default, clap::Args)]
#[group(skip)]
pub struct LimitConfig {
    /// Addresses or networks of proxies whose header X-Forwarded-For is trusted, separated by commas. The
    /// limits for addresses then apply to the clients of the proxies
    #[arg(long, env = "CATCHALL_PROXIES", value_name = "NETWORKS", value_delimiter = ',')]
    pub(in crate::http) proxies: Vec<ProxyNet>,

    /// Connections that one address may have at a time, so that it cannot shut out the others; by default
    /// half of all. IPv6 addresses of the same /64 count as one
    #[arg(
        long,
        env = "CATCHALL_ADDRESS_CONNECTIONS",
        value_name = "N",
        value_parser = clap::value_parser!(u32).range(1..)
    )]
    pub(in crate::http) address_connections: Option<u32>,

    /// Requests that one address may send to this process per second; more get a 429. Not limited by default
    #[arg(long, env = "CATCHALL_ADDRESS_REQUESTS_PER_SEC", value_name = "N")]
    pub(in crate::http) address_requests_per_sec: Option<NonZeroU32>,

    /// The same for the holder of one token
    #[arg(long, env = "CATCHALL_TOKEN_REQUESTS_PER_SEC", value_name = "N")]
    pub(in crate::http) token_requests_per_sec: Option<NonZeroU32>,
}

/// How many events one client may send to this process.
#[derive(Clone, Debug, Default, clap::Args)]
#[group(skip)]
pub struct EventRates {
    /// Events that one address may send to this process per second; more get a 429, but a full bulk request
    /// is always allowed at once. Not limited by default
    #[arg(long, env = "CATCHALL_ADDRESS_EVENTS_PER_SEC", value_name = "N")]
    pub(in crate::http) address_events_per_sec: Option<NonZeroU32>,

    /// The same for the holder of one token
    #[arg(long, env = "CATCHALL_TOKEN_EVENTS_PER_SEC", value_name = "N")]
    pub(in crate::http) token_events_per_sec: Option<NonZeroU32>,
}
