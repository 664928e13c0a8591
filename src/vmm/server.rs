//! The VM process's side of the control socket: one thread that accepts, one for each connection.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::protocol::{self, Request, Response};

/// Connections served at once; more are closed unserved, so that a loop cannot exhaust the process.
const MAX_CONNECTIONS: usize = 32;

/// A connection that says nothing for this long is closed.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// Answers one request.
pub type Handler = dyn Fn(Request) -> Response + Send + Sync;

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

fn serve(mut stream: UnixStream, handler: &Handler) -> io::Result<()> {
    stream.set_read_timeout(Some(IDLE_TIMEOUT))?;
    stream.set_write_timeout(Some(IDLE_TIMEOUT))?;
    while let Some(request) = protocol::receive(&mut stream)? {
        protocol::send(&mut stream, &handler(request))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vmm::Client;
    use crate::vmm::client::ClientError;

    #[test]
    fn a_command_and_a_vm_process_understand_each_other() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("control.sock");
        std::fs::write(&socket, "stale").unwrap();
        let handler = |request| match request {
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
}
