//! The socket of a socketmap: which process gets it, and when its file is removed.

use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind};
use std::net::TcpListener;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use socket2::{Domain, SockAddr, Socket, Type};
use tokio_util::either::Either;

use super::address::{SocketMode, SocketmapAddress};

/// Connections that wait to be accepted: more than a mail server has processes by default, which is 100.
const BACKLOG: i32 = 1024;

/// A socket that listens.
#[derive(Debug)]
pub(super) struct BoundSocket {
    /// Where the clients come from.
    pub(super) listener: Either<UnixListener, TcpListener>,
    /// Its file, while other processes must not replace it.
    pub(super) file: Option<SocketFile>,
}

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotBound {
    /// A live process has it.
    #[error("another process listens there")]
    Taken,
    /// It cannot be bound.
    #[error(transparent)]
    Failed(#[from] io::Error),
}

/// Binds the address and listens. A socket file that a killed process left behind is replaced; one that a
/// live process serves is not, and neither is a file of another kind.
pub(super) fn bind(address: &SocketmapAddress, mode: SocketMode) -> Result<BoundSocket, NotBound> {
    match address {
        SocketmapAddress::Unix(path) => bind_unix(path, mode),
        SocketmapAddress::Tcp(address) => match TcpListener::bind(address) {
            Ok(listener) => {
                listener.set_nonblocking(true)?;
                Ok(BoundSocket { listener: Either::Right(listener), file: None })
            }
            Err(error) if error.kind() == ErrorKind::AddrInUse => Err(NotBound::Taken),
            Err(error) => Err(error.into()),
        },
    }
}

fn bind_unix(path: &Path, mode: SocketMode) -> Result<BoundSocket, NotBound> {
    // Without it, one of two processes that start together could take the other's new socket for a stale one.
    let _turn = turn(path)?;
    clear(path)?;
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SockAddr::unix(path)?)?;
    let file = SocketFile::of(path)?;
    // No client can connect before it listens, whatever the permissions are until then.
    fs::set_permissions(path, fs::Permissions::from_mode(mode.0))?;
    socket.listen(BACKLOG)?;
    Ok(BoundSocket { listener: Either::Left(socket.into()), file: Some(file) })
}

/// A lock on the directory of the socket, held until it is dropped.
fn turn(path: &Path) -> Result<File, NotBound> {
    let directory = File::open(path.parent().unwrap_or(path))?;
    match directory.try_lock() {
        Ok(()) => Ok(directory),
        Err(TryLockError::WouldBlock) => Err(NotBound::Taken),
        Err(TryLockError::Error(error)) => Err(error.into()),
    }
}

/// Removes a socket that a killed process left at the path.
fn clear(path: &Path) -> Result<(), NotBound> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error.into()),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            let reason = "there is a file that is not a socket";
            return Err(io::Error::new(ErrorKind::AlreadyExists, reason).into());
        }
        Ok(_) => {}
    }
    let probe = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // Otherwise it would wait for a process that accepts no connection.
    probe.set_nonblocking(true)?;
    match probe.connect(&SockAddr::unix(path)?) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(fs::remove_file(path)?),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Ok(()) => Err(NotBound::Taken),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Err(NotBound::Taken),
        Err(error) => Err(error.into()),
    }
}

/// The file of a socket, removed with this value unless it now belongs to another process.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl SocketFile {
    fn of(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), identity: identity(path)? })
    }
}

/// The identity of a file: its device and inode.
fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let _turn = turn(&self.path);
        if identity(&self.path).is_ok_and(|identity| identity == self.identity) {
            // The next process replaces a file that is left behind.
            let _ = fs::remove_file(&self.path);
        }
    }
}
