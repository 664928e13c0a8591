//! A VM without a VM: a Unix socket that speaks `CONNECT`, with the agent's own server behind it.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use cocoon_agent::protocol::PORT;

/// What happens to a connection after its `CONNECT`.
type Behaviour = dyn Fn(UnixStream) + Send + Sync;

/// The socket of a VM; it goes with the value, its threads with the process.
pub(super) struct Guest {
    folder: tempfile::TempDir,
    connections: Arc<AtomicUsize>,
}

impl Guest {
    /// One in which the real agent answers.
    pub(super) fn with_agent() -> Self {
        Self::that(|stream| {
            say(&stream, b"OK 1024\n");
            let _ = cocoon_agent::server::serve(File::from(OwnedFd::from(stream)));
        })
    }

    /// One that says these bytes, and then nothing until its caller is gone.
    pub(super) fn saying(bytes: Vec<u8>) -> Self {
        Self::that(move |mut stream| {
            say(&stream, &bytes);
            let _ = stream.read_to_end(&mut Vec::new());
        })
    }

    /// One that does `behaviour` with each connection that wants the agent's port.
    pub(super) fn that(behaviour: impl Fn(UnixStream) + Send + Sync + 'static) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("vsock.sock")).unwrap();
        let (behaviour, connections): (Arc<Behaviour>, _) =
            (Arc::new(behaviour), Arc::new(AtomicUsize::new(0)));
        let count = Arc::clone(&connections);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (stream, behaviour) = (stream.unwrap(), Arc::clone(&behaviour));
                count.fetch_add(1, Ordering::Relaxed);
                std::thread::spawn(move || {
                    let mut line = vec![0; format!("CONNECT {PORT}\n").len()];
                    let read = (&stream).read_exact(&mut line);
                    if read.is_ok() && line == format!("CONNECT {PORT}\n").as_bytes() {
                        behaviour(stream);
                    }
                });
            }
        });
        Self {
            folder,
            connections,
        }
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.folder.path().join("vsock.sock")
    }

    /// How many connections there have been.
    pub(super) fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }
}

fn say(mut stream: &UnixStream, bytes: &[u8]) {
    let _ = stream.write_all(bytes);
}
