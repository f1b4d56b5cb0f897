//! The arguments and variables about the socketmap.

use anyhow::bail;

use super::address::{SocketMode, SocketmapAddress};
use super::server::{Socketmap, cannot_listen};
use crate::http::GuardConfig;

/// Where mail servers ask.
#[derive(Clone, Debug, clap::Args)]
#[group(skip)]
pub struct SocketmapConfig {
    /// Address at which mail servers look up domains with Postfix's socketmap protocol, which has no tokens:
    /// "unix:" and a path, or ADDRESS:PORT of this machine. Without it, the socketmap is off
    #[arg(long, env = "CATCHALL_SOCKETMAP", value_name = "ADDRESS")]
    socketmap: Option<SocketmapAddress>,

    /// Permissions of that Unix socket, in octal: users with write permission may ask
    #[arg(long, env = "CATCHALL_SOCKETMAP_MODE", value_name = "MODE", default_value = "660")]
    socketmap_mode: SocketMode,
}

impl SocketmapConfig {
    /// Binds the address, if there is one. If another process has it, that process keeps it until it ends.
    ///
    /// # Errors
    ///
    /// When a network could reach it, or it cannot be bound.
    pub(crate) fn bind(&self, guard: &GuardConfig) -> anyhow::Result<Option<Socketmap>> {
        let Some(address) = &self.socketmap else { return Ok(None) };
        if let SocketmapAddress::Tcp(address) = address {
            guard.check_without_tokens("CATCHALL_SOCKETMAP", *address)?;
        }
        Socketmap::bind(address.clone(), self.socketmap_mode).map(Some)
    }

    /// The same for a process whose data no other process shares: it does not wait for another one.
    ///
    /// # Errors
    ///
    /// Also when another process has the address.
    pub(crate) fn bind_alone(&self, guard: &GuardConfig) -> anyhow::Result<Option<Socketmap>> {
        let socketmap = self.bind(guard)?;
        match (&socketmap, &self.socketmap) {
            (Some(socketmap), Some(address)) if socketmap.is_taken() => {
                bail!("{}: another process listens there", cannot_listen(address));
            }
            _ => Ok(socketmap),
        }
    }
}
