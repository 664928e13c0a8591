//! What the driver sees of the device beside its queues: the guest's CID.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::muxer::Muxer;
use super::queue::Queues;
use super::socket::HostSocket;
use crate::micro::devices::DeviceState;
use crate::micro::notice::{Fault, Problem};
use crate::micro::virtio::device::{Activation, ActiveQueue, Device, Placed};

/// The device's type (virtio 1.2, 5.10.1).
const KIND: u32 = 19;

/// To the guest, from it, events. Linux fills the first, with 4 KiB a buffer, and 8 of the last.
const QUEUE_SIZES: [u16; 3] = [256, 256, 16];

/// The device cannot be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot make the vsock socket {path}")]
pub(crate) struct VsockError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// virtio-vsock, with Unix sockets at the host's end.
#[derive(Debug)]
pub(crate) struct Vsock {
    name: String,
    cid: u64,
    socket: Arc<HostSocket>,
    /// The guest is still to be told that its connections are gone.
    owes_reset: bool,
}

impl Vsock {
    /// The device of guest `cid`, whose socket is `path`; dropping it and its handler removes the
    /// socket's file, so the last device of a path goes before the next one comes. `saved` is given for a guest that is restored.
    ///
    /// # Errors
    /// The socket cannot be made.
    pub(crate) fn new(
        cid: u64,
        path: &Path,
        saved: Option<&DeviceState>,
    ) -> Result<Self, VsockError> {
        let socket = HostSocket::bind(path).map_err(|source| VsockError {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self {
            name: format!("vsock {cid}"),
            cid,
            socket: Arc::new(socket),
            owes_reset: saved.is_some(),
        })
    }

    fn fault(&self, problem: Problem) -> Fault {
        Fault {
            device: self.name.clone(),
            problem,
        }
    }
}

impl Device for Vsock {
    fn name(&self) -> &str {
        &self.name
    }

    fn kind(&self) -> u32 {
        KIND
    }

    /// Streams need no feature.
    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn config(&self) -> Vec<u8> {
        self.cid.to_le_bytes().to_vec()
    }

    fn activate(&mut self, activation: Activation) -> Result<Vec<Placed>, Fault> {
        let missing = |queue| Problem::Request {
            queue,
            what: "to begin without it",
        };
        let mut queues: [Option<ActiveQueue>; 3] = [None, None, None];
        for queue in activation.queues {
            if let Some(place) = queues.get_mut(usize::from(queue.index)) {
                *place = Some(queue);
            }
        }
        let [rx, tx, events] = queues;
        let rx = rx.ok_or_else(|| self.fault(missing(0)))?;
        let tx = tx.ok_or_else(|| self.fault(missing(1)))?;
        let events = events.ok_or_else(|| self.fault(missing(2)))?;
        let muxer = Muxer::new(self.cid, Arc::clone(&self.socket)).map_err(|source| {
            self.fault(Problem::Host {
                operation: "make what watches vsock connections",
                source,
            })
        })?;
        let handler = Queues {
            device: self.name.clone(),
            memory: activation.memory,
            rx,
            tx,
            events,
            interrupt: activation.interrupt,
            notices: activation.notices,
            muxer,
            owes_reset: std::mem::take(&mut self.owes_reset),
            buffer: Vec::new(),
        };
        let handler = Box::new(handler);
        Ok(vec![Placed { lane: 0, handler }])
    }

    /// Connections are not saved, and a restored guest is always told so.
    fn save(&self) -> DeviceState {
        DeviceState::Nothing
    }
}
