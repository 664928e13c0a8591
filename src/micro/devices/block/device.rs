//! A disk: its file, its configuration space, and how it begins.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ,
    VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use super::backend::Backend;
use super::persist::State;
use super::queue::{BlockQueue, Requests};
use super::request::{ID_BYTES, MOST_DISCARD_SECTORS, MOST_ZERO_SECTORS, SECTOR, Shape};
use crate::micro::bus::{Shared, lock};
use crate::micro::devices::DeviceState;
use crate::micro::notice::Fault;
use crate::micro::virtio::device::{Activation, ActiveQueue, Device, Placed};
use crate::vm::spec::{Disk, DiskFormat, QUEUE_SIZE};

/// Bytes of the configuration up to `write_zeroes_may_unmap` and its padding (virtio 1.2, 5.2.4).
const CONFIG_BYTES: usize = 60;

/// What Linux aligns file systems and discards to: 4096 bytes are 2^3 sectors, the blocks of the
/// host's file systems.
const SECTORS_PER_BLOCK_LOG2: u8 = 3;

/// A disk that cannot be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BlockError {
    /// The file.
    #[error("cannot open disk {}", path.display())]
    Open {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A guest reads and writes whole sectors.
    #[error("disk {} is {bytes} bytes long, which is no multiple of 512", path.display())]
    Size {
        /// Which.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// The guest that was saved knows a larger disk.
    #[error("disk {} has {actual} sectors, but had {saved} when the VM was saved", path.display())]
    Shrunk {
        /// Which.
        path: PathBuf,
        /// Then.
        saved: u64,
        /// Now.
        actual: u64,
    },
    /// virtio has room for 20 bytes.
    #[error("the serial {serial} of a disk is longer than 20 bytes")]
    Serial {
        /// The serial.
        serial: String,
    },
}

/// A disk.
#[derive(Debug)]
pub(crate) struct Block {
    name: String,
    sectors: u64,
    /// Since it was saved.
    has_grown: bool,
    readonly: bool,
    id: [u8; ID_BYTES],
    queue_sizes: Vec<u16>,
    config: [u8; CONFIG_BYTES],
    /// One for each queue; made once, so that the threads of a running guest make no io_uring.
    backends: Vec<Shared<Backend>>,
}

impl Block {
    /// Opens a disk, which is the one that was `saved`, if one was, and may have grown since.
    ///
    /// # Errors
    /// The file or the specification is not a disk's.
    pub(crate) fn open(disk: &Disk, saved: Option<&State>) -> Result<Self, BlockError> {
        Self::open_with(disk, saved, true)
    }

    /// Opens a disk, with io_uring if `ring`.
    pub(super) fn open_with(
        disk: &Disk,
        saved: Option<&State>,
        ring: bool,
    ) -> Result<Self, BlockError> {
        let DiskFormat::Raw = disk.format;
        let mut id = [0; ID_BYTES];
        let serial = disk.serial.as_bytes();
        id.get_mut(..serial.len())
            .ok_or_else(|| BlockError::Serial {
                serial: disk.serial.clone(),
            })?
            .copy_from_slice(serial);
        let (file, sectors) = open_file(disk)?;
        let known = saved.map_or(sectors, |saved| saved.sectors);
        if known > sectors {
            return Err(BlockError::Shrunk {
                path: disk.path.clone(),
                saved: known,
                actual: sectors,
            });
        }
        let file = Arc::new(file);
        let queues = disk.queues.max(1);
        let backend = |_| Backend::new(Arc::clone(&file), QUEUE_SIZE, ring);
        let backends: Vec<_> = (0..queues).map(backend).collect();
        let name = format!("disk {}", disk.serial);
        if let Some(first) = backends.first() {
            tracing::debug!(disk = name, backend = first.kind(), sectors, "disk opened");
        }
        Ok(Self {
            name,
            sectors,
            has_grown: known < sectors,
            readonly: disk.readonly,
            id,
            queue_sizes: vec![QUEUE_SIZE; usize::from(queues)],
            config: config(sectors, queues),
            backends: backends
                .into_iter()
                .map(|backend| Arc::new(Mutex::new(backend)))
                .collect(),
        })
    }
}

fn open_file(disk: &Disk) -> Result<(File, u64), BlockError> {
    let failed = |source| BlockError::Open {
        path: disk.path.clone(),
        source,
    };
    // Rust opens all files with O_CLOEXEC.
    let mut options = OpenOptions::new();
    let mut file = options
        .read(true)
        .write(!disk.readonly)
        .open(&disk.path)
        .map_err(failed)?;
    // A block device has a size only to seek to.
    let bytes = file.seek(SeekFrom::End(0)).map_err(failed)?;
    if !bytes.is_multiple_of(SECTOR) || i64::try_from(bytes).is_err() {
        let path = disk.path.clone();
        return Err(BlockError::Size { path, bytes });
    }
    Ok((file, bytes / SECTOR))
}

/// virtio 1.2, 5.2.4: struct virtio_blk_config.
fn config(sectors: u64, queues: u16) -> [u8; CONFIG_BYTES] {
    let mut config = [0; CONFIG_BYTES];
    let mut put = |at: usize, bytes: &[u8]| config[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &sectors.to_le_bytes());
    // seg_max: what is left of a chain beside the header and the status.
    put(12, &u32::from(QUEUE_SIZE - 2).to_le_bytes());
    put(20, &512_u32.to_le_bytes());
    put(24, &[SECTORS_PER_BLOCK_LOG2]);
    put(34, &queues.to_le_bytes());
    put(36, &MOST_DISCARD_SECTORS.to_le_bytes());
    // max_discard_seg, and the alignment in sectors.
    put(40, &1_u32.to_le_bytes());
    put(44, &(1_u32 << SECTORS_PER_BLOCK_LOG2).to_le_bytes());
    put(48, &MOST_ZERO_SECTORS.to_le_bytes());
    // max_write_zeroes_seg, write_zeroes_may_unmap.
    put(52, &1_u32.to_le_bytes());
    put(56, &[1]);
    config
}

impl Device for Block {
    fn name(&self) -> &str {
        &self.name
    }

    fn kind(&self) -> u32 {
        VIRTIO_ID_BLOCK
    }

    fn features(&self) -> u64 {
        let always = [
            VIRTIO_BLK_F_SEG_MAX,
            VIRTIO_BLK_F_BLK_SIZE,
            VIRTIO_BLK_F_TOPOLOGY,
            VIRTIO_RING_F_EVENT_IDX,
            VIRTIO_RING_F_INDIRECT_DESC,
        ];
        let of_kind: &[u32] = match self.readonly {
            true => &[VIRTIO_BLK_F_RO],
            false => &[
                VIRTIO_BLK_F_FLUSH,
                VIRTIO_BLK_F_DISCARD,
                VIRTIO_BLK_F_WRITE_ZEROES,
            ],
        };
        let many = (self.backends.len() > 1).then_some(VIRTIO_BLK_F_MQ);
        let all = always.iter().chain(of_kind).chain(&many);
        all.fold(0, |features, bit| features | 1 << bit)
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn config(&self) -> Vec<u8> {
        self.config.to_vec()
    }

    fn has_changed(&self) -> bool {
        self.has_grown
    }

    fn activate(&mut self, activation: Activation) -> Result<Vec<Placed>, Fault> {
        let mut placed = Vec::new();
        for ActiveQueue { index, queue, kick } in activation.queues {
            let Some(backend) = self.backends.get(usize::from(index)) else {
                continue;
            };
            let done = {
                let mut backend = lock(backend);
                backend.attach(activation.memory.clone());
                backend.event().cloned()
            };
            let requests = Requests {
                index,
                queue,
                memory: activation.memory.clone(),
                shape: Shape {
                    sectors: self.sectors,
                    readonly: self.readonly,
                    features: activation.features,
                },
                id: self.id,
                backend: Arc::clone(backend),
            };
            placed.push(Placed {
                lane: usize::from(index),
                handler: Box::new(BlockQueue {
                    device: self.name.clone(),
                    requests,
                    kick,
                    done,
                    interrupt: Arc::clone(&activation.interrupt),
                    notices: activation.notices.clone(),
                    over: false,
                }),
            });
        }
        Ok(placed)
    }

    fn save(&self) -> DeviceState {
        DeviceState::Block(State {
            sectors: self.sectors,
        })
    }
}
