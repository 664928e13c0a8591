//! The console's socket: where the hub listens and viewers connect.
//!
//! Invariant: from its first moment the socket belongs to the VM's owner alone (0600). A socket
//! file without a listener is what a killed VM process left; the next one replaces it.
//!
//! An address in the kernel has room for 107 bytes of path (`struct sockaddr_un`, unix(7)), which a
//! long `--root-dir` exceeds; so both sides name the socket through a descriptor of its folder.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::Mode;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// Viewers that wait to be accepted: the hub accepts at once, so few.
const BACKLOG: i32 = 16;

/// A failure of the console's socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// The hub cannot listen.
    #[error("cannot listen on the console socket {path}")]
    Listen {
        /// The socket.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// No hub listens, or it may not be spoken to.
    #[error("cannot connect to the console socket {path}")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

/// Connects a viewer to the hub that listens on `path`.
///
/// # Errors
/// No hub listens there, which is so when the VM does not run; or permission is lacking.
pub fn connect(path: &Path) -> Result<UnixStream, SocketError> {
    let connect = || UnixStream::connect(ShortPath::of(path)?.path);
    connect().map_err(|source| SocketError::Connect {
        path: path.to_owned(),
        source,
    })
}

/// A listening socket; dropping it removes its file.
#[derive(Debug)]
pub(super) struct ConsoleSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl ConsoleSocket {
    /// Listens on `path`, replacing a socket that is there.
    pub(super) fn listen(path: &Path) -> Result<Self, SocketError> {
        let listener = listen(path).map_err(|source| SocketError::Listen {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self {
            listener,
            path: path.to_owned(),
        })
    }

    /// The listener, which does not block.
    pub(super) fn listener(&self) -> &UnixListener {
        &self.listener
    }
}

impl Drop for ConsoleSocket {
    fn drop(&mut self) {
        // Left behind it harms no one: the next hub replaces it.
        let _ = std::fs::remove_file(&self.path);
    }
}

fn listen(path: &Path) -> io::Result<UnixListener> {
    match std::fs::symlink_metadata(path) {
        Ok(metadata) if metadata.file_type().is_socket() => std::fs::remove_file(path)?,
        // Anything else is refused by bind, with "address in use".
        _ => {}
    }
    let short = ShortPath::of(path)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    // bind gives the file the mode of the socket, so it is never open to others.
    rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(&short.path)?)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket.into())
}

/// A name of a path that is valid and short for as long as this lives.
struct ShortPath {
    path: PathBuf,
    _folder: File,
}

impl ShortPath {
    fn of(path: &Path) -> io::Result<Self> {
        let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let folder = if folder.as_os_str().is_empty() {
            Path::new(".")
        } else {
            folder
        };
        let folder = File::options()
            .read(true)
            .custom_flags(libc::O_PATH | libc::O_DIRECTORY)
            .open(folder)?;
        let path = Path::new("/proc/self/fd")
            .join(folder.as_raw_fd().to_string())
            .join(name);
        Ok(Self {
            path,
            _folder: folder,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_socket_is_private_and_goes_with_its_listener() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.sock");
        let socket = ConsoleSocket::listen(&path).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        connect(&path).unwrap();
        drop(socket);
        assert!(!path.exists());
        let error = connect(&path).unwrap_err().to_string();
        assert!(error.contains("console.sock"), "{error}");
    }

    #[test]
    fn a_stale_socket_is_replaced_and_any_other_file_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.sock");
        drop(UnixListener::bind(&path).unwrap());
        assert!(connect(&path).is_err());
        let _socket = ConsoleSocket::listen(&path).unwrap();
        connect(&path).unwrap();

        let file = dir.path().join("precious");
        std::fs::write(&file, "data").unwrap();
        assert!(ConsoleSocket::listen(&file).is_err());
        assert_eq!(std::fs::read(&file).unwrap(), b"data");
    }

    #[test]
    fn a_path_longer_than_a_socket_address_works() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("x".repeat(100)).join("y".repeat(100));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("console.sock");
        let _socket = ConsoleSocket::listen(&path).unwrap();
        connect(&path).unwrap();
    }
}
