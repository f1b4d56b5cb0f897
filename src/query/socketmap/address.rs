//! Where mail servers ask.

use std::fmt::{self, Display};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

/// The address of a socketmap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum SocketmapAddress {
    /// A socket in the file system.
    Unix(PathBuf),
    /// An address and a port.
    Tcp(SocketAddr),
}

impl FromStr for SocketmapAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.strip_prefix("unix:") {
            Some(path) if path.starts_with('/') && !path.ends_with('/') => Ok(Self::Unix(path.into())),
            Some(_) => {
                Err("the path of a socket begins with a slash, as in unix:/run/catchall/socketmap".into())
            }
            None => text
                .parse()
                .map(Self::Tcp)
                .map_err(|error| format!("{error}: give unix:/PATH or ADDRESS:PORT, as in 127.0.0.1:8082")),
        }
    }
}

impl Display for SocketmapAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(address) => address.fmt(f),
        }
    }
}

/// The permissions of a socket in the file system: those who may write to it may ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SocketMode(pub(super) u32);

impl FromStr for SocketMode {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mode = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o777);
        mode.map(Self).ok_or("permissions are three octal digits, as in 660")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_path_or_a_port() {
        for text in ["unix:/run/catchall/socketmap", "127.0.0.1:8082", "[::1]:0"] {
            assert_eq!(text.parse::<SocketmapAddress>().unwrap().to_string(), text);
        }
        for text in ["", "unix:", "unix:socketmap", "unix:/run/", "/run/socketmap", "8082", "localhost:8082"]
        {
            assert!(text.parse::<SocketmapAddress>().is_err(), "{text}");
        }
    }

    #[test]
    fn permissions_are_octal() {
        assert_eq!("660".parse(), Ok(SocketMode(0o660)));
        for text in ["", "rw", "888", "1777", "-1"] {
            assert!(text.parse::<SocketMode>().is_err(), "{text}");
        }
    }
}
