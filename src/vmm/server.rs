//! The VM process's side of the control socket: one thread that accepts, one for each connection.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::protocol::{self, Request, Response};

/// Connections served at once; more are closed unserved, so that a loop cannot exhaust the process.
const MAX_CONNECTIONS: usize = 32;

/// A connection that says nothing for this long is closed.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// Answers one request of a command.
pub type Handler = dyn Fn(Request, &Peer<'_>) -> Response + Send + Sync;

/// The command that asks.
#[derive(Debug)]
pub struct Peer<'a>(&'a UnixStream);

impl Peer<'_> {
    /// Whether it has gone, and nobody waits for the answer any more.
    pub fn is_gone(&self) -> bool {
        let mut fds = [PollFd::new(self.0, PollFlags::RDHUP)];
        let now = Timespec::default();
        // A poll of one descriptor without a wait does not fail; if it did, nothing would be known.
        let polled = poll(&mut fds, Some(&now));
        polled.is_ok() && !fds[0].revents().is_empty()
    }
}

/// A listening control socket; dropping it removes the socket's file.
#[derive(Debug)]
pub struct Server {
    socket: PathBuf,
}

impl Server {
    /// Listens at `socket`, for root alone, and answers by `handler`. A stale file is replaced.
    ///
    /// # Errors
    /// The socket cannot be bound, or no thread started.
    pub fn start(socket: &Path, handler: Arc<Handler>) -> io::Result<Self> {
        match std::fs::remove_file(socket) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(socket)?;
        std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o600))?;
        std::thread::Builder::new()
            .name("control".into())
            .spawn(move || accept(&listener, &handler))?;
        Ok(Self {
            socket: socket.to_owned(),
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The process is about to end; a file that stays is replaced at the next start.
        let _ = std::fs::remove_file(&self.socket);
    }
}

fn accept(listener: &UnixListener, handler: &Arc<Handler>) {
    let active = Arc::new(AtomicUsize::new(0));
    for stream in listener.incoming() {
        let Ok(stream) = stream else { continue };
        if active.fetch_add(1, Ordering::Relaxed) >= MAX_CONNECTIONS {
            active.fetch_sub(1, Ordering::Relaxed);
            continue;
        }
        let (handler, active) = (Arc::clone(handler), Arc::clone(&active));
        let serve = move || {
            if let Err(error) = serve(stream, &*handler) {
                tracing::debug!(%error, "a control connection ended early");
            }
            active.fetch_sub(1, Ordering::Relaxed);
        };
        if let Err(error) = std::thread::Builder::new()
            .name("control-peer".into())
            .spawn(serve)
        {
            tracing::warn!(%error, "no thread for a control connection");
        }
    }
}

pub(super) fn serve(mut stream: UnixStream, handler: &Handler) -> io::Result<()> {
    stream.set_read_timeout(Some(IDLE_TIMEOUT))?;
    stream.set_write_timeout(Some(IDLE_TIMEOUT))?;
    while let Some(request) = protocol::receive(&mut stream)? {
        let response = handler(request, &Peer(&stream));
        protocol::send(&mut stream, &response)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::interrupt::Interrupt;
    use crate::vmm::Client;
    use crate::vmm::client::ClientError;
    use std::sync::{Mutex, mpsc};

    #[test]
    fn a_command_and_a_vm_process_understand_each_other() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("control.sock");
        std::fs::write(&socket, "stale").unwrap();
        let handler = |request, _: &Peer<'_>| match request {
            Request::Info => Response::Done(serde_json::json!({"state": "running"})),
            _ => Response::Failed("not now".into()),
        };
        let server = Server::start(&socket, Arc::new(handler)).unwrap();
        let mut client = Client::connect(&socket).unwrap();
        assert_eq!(client.call(Request::Info).unwrap()["state"], "running");
        assert!(
            matches!(client.call(Request::PowerOff), Err(ClientError::Refused(reason)) if reason == "not now")
        );
        assert_eq!(
            client.call(Request::Info).unwrap()["state"],
            "running",
            "a refusal does not end the connection"
        );
        drop(server);
        assert!(matches!(
            Client::connect(&socket),
            Err(ClientError::Connect { .. })
        ));
    }

    #[test]
    fn a_user_who_does_not_wait_is_noticed_at_the_other_end() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("control.sock");
        let (arrived, arrival) = mpsc::channel();
        let (left, departure) = mpsc::channel();
        let (go, gone) = mpsc::channel::<()>();
        let gone = Mutex::new(gone);
        let handler = move |_, peer: &Peer<'_>| {
            arrived.send(peer.is_gone()).unwrap();
            gone.lock().unwrap().recv().unwrap();
            left.send(peer.is_gone()).unwrap();
            Response::Done(serde_json::Value::Null)
        };
        let _server = Server::start(&socket, Arc::new(handler)).unwrap();
        let mut client = Client::connect(&socket).unwrap();
        let interrupt = Interrupt::never().unwrap();
        std::thread::scope(|scope| {
            let wait = scope.spawn(|| client.call_patiently(Request::Pause, &interrupt));
            assert!(!arrival.recv().unwrap(), "it waits");
            interrupt.raise();
            assert!(matches!(
                wait.join().unwrap(),
                Err(ClientError::Interrupted)
            ));
        });
        drop(client);
        go.send(()).unwrap();
        assert!(departure.recv().unwrap(), "it has gone");
    }
}
