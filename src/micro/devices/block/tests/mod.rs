//! Disks behind their transport: real files, real memory, real lanes, both backends.

use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex};

use tempfile::NamedTempFile;
use virtio_queue::Queue;
use vm_memory::GuestMemoryMmap;

use super::backend::Backend;
use super::device::Block;
use super::queue::Requests;
use super::request::Shape;
use crate::micro::virtio::device::Device;
use crate::micro::virtio::fixture::{Buffer, Driver};
use crate::vm::spec::{Disk, DiskFormat};

mod device;
mod finish;
mod hostile;
mod model;
mod requests;

const ALL: u64 = u64::MAX;
const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;

/// With io_uring and without.
const BACKENDS: [bool; 2] = [true, false];

/// Where a test without a transport has its ring, a header and its data.
const HEADER_AT: u64 = 0x20_0000;
const DATA_AT: u64 = 0x30_0000;
const TABLE_AT: u64 = 0x10_0000;

fn file(sectors: u64) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(&pattern(sectors)).unwrap();
    file
}

/// No two sectors are the same.
fn pattern(sectors: u64) -> Vec<u8> {
    let words = (0..sectors * 64).map(|word| word.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    words.flat_map(u64::to_le_bytes).collect()
}

fn disk(path: &Path) -> Disk {
    Disk {
        path: path.to_owned(),
        readonly: false,
        format: DiskFormat::Raw,
        serial: "cocoon-cow".to_owned(),
        queues: 2,
    }
}

fn open(path: &Path, ring: bool) -> Box<dyn Device> {
    Box::new(Block::open_with(&disk(path), None, ring).unwrap())
}

fn header(kind: u32, sector: u64) -> Vec<u8> {
    let (kind, sector) = (u64::from(kind).to_le_bytes(), sector.to_le_bytes());
    [kind, sector].concat()
}

fn segment(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    let (sectors, flags) = (u64::from(sectors), u64::from(flags));
    [sector, flags << 32 | sectors]
        .map(u64::to_le_bytes)
        .concat()
}

impl Driver {
    /// One request with data in `buffers`: its status and used length.
    fn ask(&mut self, kind: u32, sector: u64, buffers: &[Buffer]) -> (u8, u32) {
        self.ask_on(0, kind, sector, buffers)
    }

    fn ask_on(&mut self, queue: usize, kind: u32, sector: u64, buffers: &[Buffer]) -> (u8, u32) {
        let (head, status) = self.begin_on(queue, kind, sector, buffers);
        let (used, length) = self.wait(queue);
        assert_eq!(used, head);
        (self.bytes(status)[0], length)
    }

    fn begin_on(
        &mut self,
        queue: usize,
        kind: u32,
        sector: u64,
        buffers: &[Buffer],
    ) -> (u16, Buffer) {
        let header = self.put(&header(kind, sector));
        let status = self.room(1);
        let chain = [&[header], buffers, &[status]].concat();
        (self.send(queue, &chain), status)
    }
}

/// A queue of a read-only disk of 8 sectors, on no lane.
fn requests(queue: Queue, memory: &GuestMemoryMmap, backend: Backend) -> Requests {
    Requests {
        index: 0,
        queue,
        memory: memory.clone(),
        shape: Shape {
            sectors: 8,
            readonly: true,
            features: ALL,
        },
        id: [0; 20],
        backend: Arc::new(Mutex::new(backend)),
    }
}
