//! What a guest asks of a disk: a chain, read and checked.
//!
//! ```text
//!  readable: type u32 │ reserved u32 │ sector u64 │ data to write, or one discard segment
//!  writable: data that is read, or the id … │ status u8
//! ```
//! Source: virtio 1.2, 5.2.6. Buffers may be split anywhere.
//! Invariant: what a [`Request`] touches lies within the disk.

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_WRITE_ZEROES, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_UNSUPP,
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
};
use vm_memory::GuestMemoryMmap;

use crate::micro::virtio::chain::{Buffers, Chain};

/// Unit of all positions in requests, in bytes.
pub(super) const SECTOR: u64 = 512;

/// Most sectors of one discard request: a gibibyte, which file systems free in milliseconds.
pub(super) const MOST_DISCARD_SECTORS: u32 = 1 << 21;

/// Most sectors of one write-zeroes request: 64 MiB, which may have to be written out.
pub(super) const MOST_ZERO_SECTORS: u32 = 1 << 17;

/// Bytes of an id.
pub(super) const ID_BYTES: usize = 20;

const HEADER_BYTES: usize = 16;
/// sector u64, sectors u32, flags u32.
const SEGMENT_BYTES: usize = 16;
const FLAG_UNMAP: u32 = 1;

/// What a request may do.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    /// Size of the disk.
    pub(super) sectors: u64,
    /// Nothing may change.
    pub(super) readonly: bool,
    /// What the driver accepted.
    pub(super) features: u64,
}

/// What is to be done. Positions are in bytes.
#[derive(Debug)]
pub(super) enum Request {
    Read {
        offset: u64,
        room: Buffers,
    },
    Write {
        offset: u64,
        data: Buffers,
    },
    Flush,
    GetId {
        room: Buffers,
    },
    Discard {
        offset: u64,
        length: u64,
    },
    WriteZeroes {
        offset: u64,
        length: u64,
        unmap: bool,
    },
}

/// Why nothing is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// Out of range, half a sector, read-only, or too short to be understood.
    Invalid,
    /// Nothing that this device offers.
    Unsupported,
}

impl Refusal {
    /// As the driver is told.
    pub(super) fn status(self) -> u8 {
        let status = match self {
            Self::Invalid => VIRTIO_BLK_S_IOERR,
            Self::Unsupported => VIRTIO_BLK_S_UNSUPP,
        };
        // These are 1 and 2.
        u8::try_from(status).unwrap_or(u8::MAX)
    }
}

impl Request {
    /// Reads a chain that ends in a status byte.
    pub(super) fn parse(
        chain: &Chain,
        memory: &GuestMemoryMmap,
        shape: &Shape,
    ) -> Result<Self, Refusal> {
        let mut header = [0; HEADER_BYTES];
        if chain.readable.read(memory, 0, &mut header) < header.len() {
            return Err(Refusal::Invalid);
        }
        let data = || chain.readable.part(HEADER_BYTES as u64, u64::MAX);
        let room = || {
            let length = chain.writable.length().saturating_sub(1);
            chain.writable.part(0, length)
        };
        let sector = u64_at(&header, 8);
        match u32_at(&header, 0) {
            VIRTIO_BLK_T_IN => {
                let room = room();
                let offset = shape.place(sector, room.length())?;
                Ok(Self::Read { offset, room })
            }
            VIRTIO_BLK_T_OUT => {
                let data = data();
                let offset = shape.place(sector, data.length())?;
                shape.check_writable()?;
                Ok(Self::Write { offset, data })
            }
            VIRTIO_BLK_T_FLUSH => Ok(Self::Flush),
            VIRTIO_BLK_T_GET_ID => Ok(Self::GetId { room: room() }),
            kind @ (VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES) => {
                Self::parse_segment(kind, &data(), memory, shape)
            }
            _ => Err(Refusal::Unsupported),
        }
    }

    fn parse_segment(
        kind: u32,
        data: &Buffers,
        memory: &GuestMemoryMmap,
        shape: &Shape,
    ) -> Result<Self, Refusal> {
        let discards = kind == VIRTIO_BLK_T_DISCARD;
        let (feature, most) = match discards {
            true => (VIRTIO_BLK_F_DISCARD, MOST_DISCARD_SECTORS),
            false => (VIRTIO_BLK_F_WRITE_ZEROES, MOST_ZERO_SECTORS),
        };
        if shape.features & 1 << feature == 0 {
            return Err(Refusal::Unsupported);
        }
        let mut segment = [0; SEGMENT_BYTES];
        // One segment is what the configuration allows.
        if data.length() != SEGMENT_BYTES as u64
            || data.read(memory, 0, &mut segment) < segment.len()
        {
            return Err(Refusal::Invalid);
        }
        let flags = u32_at(&segment, 12);
        let known = if discards { 0 } else { FLAG_UNMAP };
        if flags & !known != 0 {
            return Err(Refusal::Unsupported);
        }
        let sectors = u32_at(&segment, 8);
        if sectors > most {
            return Err(Refusal::Invalid);
        }
        let length = u64::from(sectors) * SECTOR;
        let offset = shape.place(u64_at(&segment, 0), length)?;
        shape.check_writable()?;
        Ok(match discards {
            true => Self::Discard { offset, length },
            false => Self::WriteZeroes {
                offset,
                length,
                unmap: flags & FLAG_UNMAP != 0,
            },
        })
    }
}

impl Shape {
    /// Where `length` bytes from `sector` on begin, if they are whole sectors of the disk.
    fn place(&self, sector: u64, length: u64) -> Result<u64, Refusal> {
        let end = sector.checked_add(length / SECTOR);
        let fits = length.is_multiple_of(SECTOR) && end.is_some_and(|end| end <= self.sectors);
        // The disk's size in bytes fits an i64, as `open` checked.
        fits.then(|| sector * SECTOR).ok_or(Refusal::Invalid)
    }

    fn check_writable(&self) -> Result<(), Refusal> {
        match self.readonly {
            true => Err(Refusal::Invalid),
            false => Ok(()),
        }
    }
}

fn u32_at(bytes: &[u8; 16], at: usize) -> u32 {
    let mut value = [0; 4];
    value.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(value)
}

fn u64_at(bytes: &[u8; 16], at: usize) -> u64 {
    u64::from(u32_at(bytes, at + 4)) << 32 | u64::from(u32_at(bytes, at))
}
