//! cocoon-agent: listens on the virtio socket of its guest, and serves one thread a connection.
//!
//! It has no configuration and takes no argument. Where the guest has no virtio socket yet, it says so and
//! ends with code 1; its init starts it again.
#![expect(clippy::print_stderr, reason = "a service has its log there")]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::ExitCode;

use cocoon_agent::protocol::PORT;
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, VsockAddr};
use rustix::io::Errno;
use rustix::net::SocketFlags;

/// Connections that the kernel keeps while all threads are being started.
const BACKLOG: i32 = 32;

/// A request needs little; the default of 2 MiB is for programs that recurse.
const STACK_BYTES: usize = 512 << 10;

fn main() -> ExitCode {
    let listener = match listen() {
        Ok(listener) => listener,
        Err(error) => {
            eprintln!("cocoon-agent: cannot listen on the virtio socket: {error}");
            return ExitCode::FAILURE;
        }
    };
    loop {
        match rustix::net::accept_with(&listener, SocketFlags::CLOEXEC) {
            Ok(connection) => serve(connection.into()),
            // Its caller was gone before we came.
            Err(Errno::CONNABORTED | Errno::INTR) => {}
            Err(error) => {
                eprintln!("cocoon-agent: cannot accept a connection: {error}");
                return ExitCode::FAILURE;
            }
        }
    }
}

/// Without a thread for it, the connection closes and its caller sees that.
fn serve(connection: File) {
    let serve = || {
        if let Err(error) = cocoon_agent::server::serve(connection) {
            eprintln!("cocoon-agent: {error}");
        }
    };
    if let Err(error) = std::thread::Builder::new()
        .stack_size(STACK_BYTES)
        .spawn(serve)
    {
        eprintln!("cocoon-agent: cannot start a thread: {error}");
    }
}

fn listen() -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let listener = nix::sys::socket::socket(AddressFamily::Vsock, SockType::Stream, flags, None)?;
    let address = VsockAddr::new(libc::VMADDR_CID_ANY, PORT);
    nix::sys::socket::bind(listener.as_raw_fd(), &address)?;
    nix::sys::socket::listen(&listener, Backlog::new(BACKLOG)?)?;
    Ok(listener)
}
