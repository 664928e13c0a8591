//! The host's sockets: where it connects to the guest, and where the guest finds it.
//!
//! ```text
//! <path>          we listen: "CONNECT <port>\n" ─▶ guest's port; "OK <our port>\n" when it answers
//! <path>_<port>   the host listens: connections of the guest to (CID 2, port)
//! ```
//! As Firecracker does, so that its clients work. Invariants: the socket belongs to the VM's owner
//! alone (0600). No call waits: a host that is too busy to accept refuses, and so do we while the guest
//! has no driver that could answer.
//!
//! An address in the kernel has room for 107 bytes of path (unix(7)), so sockets are named through
//! a descriptor of their folder, as the console's is.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// Connections that wait to be accepted: some scripts open many at once.
const BACKLOG: i32 = 128;

/// The socket at `<path>`; dropping it removes its file.
#[derive(Debug)]
pub(super) struct HostSocket {
    folder: OwnedFd,
    name: OsString,
    listener: UnixListener,
}

impl HostSocket {
    /// Takes `path`, replacing a socket there, which a killed VM process left. Who connects is refused
    /// until [`HostSocket::listen`].
    pub(super) fn bind(path: &Path) -> io::Result<Self> {
        let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        match std::fs::symlink_metadata(path) {
            Ok(metadata) if metadata.file_type().is_socket() => std::fs::remove_file(path)?,
            // Anything else is refused by bind, with "address in use".
            _ => {}
        }
        let folder = if folder.as_os_str().is_empty() {
            Path::new(".")
        } else {
            folder
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = rustix::fs::open(folder, flags, Mode::empty())?;
        let socket = socket()?;
        // bind gives the file the mode of the socket, so it is never open to others.
        rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
        rustix::net::bind(&socket, &SocketAddrUnix::new(short(&folder, name))?)?;
        Ok(Self {
            name: name.to_owned(),
            listener: socket.into(),
            folder,
        })
    }

    /// Lets the host connect, from now on.
    pub(super) fn listen(&self) -> io::Result<()> {
        Ok(rustix::net::listen(&self.listener, BACKLOG)?)
    }

    /// The listener, which does not block.
    pub(super) fn listener(&self) -> &UnixListener {
        &self.listener
    }

    /// Accepts a connection, which does not block either.
    pub(super) fn accept(&self) -> io::Result<UnixStream> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        Ok(rustix::net::accept_with(&self.listener, flags)?.into())
    }

    /// Connects to whom the guest means by `port`.
    ///
    /// # Errors
    /// Nobody listens there, or they are too busy.
    pub(super) fn connect(&self, port: u32) -> io::Result<UnixStream> {
        let mut name = self.name.clone();
        name.push(format!("_{port}"));
        let socket = socket()?;
        rustix::net::connect(&socket, &SocketAddrUnix::new(short(&self.folder, &name))?)?;
        Ok(socket.into())
    }
}

impl Drop for HostSocket {
    fn drop(&mut self) {
        // Left behind it harms no one: the next VM process replaces it.
        let _ = rustix::fs::unlinkat(&self.folder, &self.name, AtFlags::empty());
    }
}

fn socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        flags,
        None,
    )?)
}

/// A short name of `name` in `folder`.
fn short(folder: &OwnedFd, name: impl AsRef<Path>) -> PathBuf {
    Path::new("/proc/self/fd")
        .join(folder.as_raw_fd().to_string())
        .join(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_socket_is_private_replaces_a_dead_one_refuses_at_first_and_goes_with_its_owner() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vsock.sock");
        drop(UnixListener::bind(&path).unwrap());
        let socket = HostSocket::bind(&path).unwrap();
        let refused = UnixStream::connect(&path).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        socket.listen().unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let _client = UnixStream::connect(&path).unwrap();
        socket.accept().unwrap();
        assert_eq!(
            socket.accept().unwrap_err().kind(),
            io::ErrorKind::WouldBlock
        );
        drop(socket);
        assert!(!path.exists());
    }

    #[test]
    fn a_file_that_is_no_socket_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vsock.sock");
        std::fs::write(&path, "precious").unwrap();
        assert!(HostSocket::bind(&path).is_err());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    }

    #[test]
    fn a_path_longer_than_an_address_serves_both_ways() {
        let folder = tempfile::tempdir().unwrap();
        let deep = folder.path().join("d".repeat(200));
        std::fs::create_dir(&deep).unwrap();
        let socket = HostSocket::bind(&deep.join("vsock.sock")).unwrap();
        // The host's service has the same trouble, so it is reached by a link.
        let short = folder.path().join("s");
        std::os::unix::fs::symlink(&deep, &short).unwrap();
        let service = UnixListener::bind(short.join("vsock.sock_52")).unwrap();
        socket.connect(52).unwrap();
        service.accept().unwrap();
        assert!(socket.connect(53).is_err());
    }

    #[test]
    fn a_service_that_does_not_accept_is_refused_without_waiting() {
        let folder = tempfile::tempdir().unwrap();
        let socket = HostSocket::bind(&folder.path().join("v")).unwrap();
        let service = UnixListener::bind(folder.path().join("v_1")).unwrap();
        rustix::net::listen(&service, 1).unwrap();
        let mut held = Vec::new();
        let refused = loop {
            match socket.connect(1) {
                Ok(stream) => held.push(stream),
                Err(error) => break error,
            }
        };
        assert_eq!(refused.kind(), io::ErrorKind::WouldBlock);
    }
}
