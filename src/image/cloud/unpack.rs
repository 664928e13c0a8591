//! Unpacks a disk image into a file whose zeros are holes.
//!
//! ```text
//!   file ─▶ gzip | xz | zstd ─▶ blocks that are not zero ─▶ file with holes
//! ```
//! Invariants: checksums that the format has are checked; memory is bounded by the window of the format, 128 MiB
//! at most; and no more than a limit comes out, however little went in.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::fs::FileExt;

use flate2::bufread::MultiGzDecoder;
use lzma_rust2::XzReader;

use super::content::Packing;
use crate::sys::sparse::nonzero_runs;

/// Bytes that are read, and that are written, at once.
const BUFFER: usize = 1 << 20;

/// The largest dictionary of an xz stream, in KiB, and 1 MiB for the decoder itself. `xz -9` has 64 MiB;
/// zstd's decoder has the same limit by itself.
const XZ_MEMORY: u32 = (128 << 10) + (1 << 10);

/// Why something was not unpacked.
#[derive(Debug)]
pub(super) enum Failed {
    /// It is damaged, not whole, or needs too much memory.
    Read(io::Error),
    Write(io::Error),
    /// More than the limit comes out.
    TooLarge,
    Cancelled,
}

/// What is told of unpacking, with the number of bytes read since last told; whether to go on.
pub(super) type Watch<'a> = &'a dyn Fn(u64) -> bool;

/// Unpacks `from` into the empty file `to`, `limit` bytes at most.
pub(super) fn unpack(
    packing: Packing,
    from: &File,
    to: &File,
    limit: u64,
    watch: Watch<'_>,
) -> Result<(), Failed> {
    let counted = Counted {
        inner: BufReader::with_capacity(BUFFER, from),
        watch,
        cancelled: false,
    };
    match packing {
        Packing::Gzip => write(MultiGzDecoder::new(counted), to, limit),
        Packing::Xz => write(XzReader::new_mem_limit(counted, true, XZ_MEMORY), to, limit),
        Packing::Zstd => {
            let decoder = zstd::stream::read::Decoder::with_buffer(counted);
            write(decoder.map_err(Failed::Read)?, to, limit)
        }
    }
    .map_err(|failed| match failed {
        Failed::Read(error) if is_cancelled(&error) => Failed::Cancelled,
        failed => failed,
    })
}

fn write(mut from: impl Read, to: &File, limit: u64) -> Result<(), Failed> {
    let mut buffer = vec![0; BUFFER];
    let mut at = 0;
    loop {
        let count = fill(&mut from, &mut buffer).map_err(Failed::Read)?;
        if count == 0 {
            // What ends in a hole is as long all the same.
            return to.set_len(at).map_err(Failed::Write);
        }
        if at + count as u64 > limit {
            return Err(Failed::TooLarge);
        }
        write_sparse(to, at, &buffer[..count]).map_err(Failed::Write)?;
        at += count as u64;
    }
}

/// Writes `bytes` where the file has a hole, without those blocks that are zero.
pub(super) fn write_sparse(to: &File, at: u64, bytes: &[u8]) -> io::Result<()> {
    for run in nonzero_runs(bytes) {
        to.write_all_at(&bytes[run.clone()], at + run.start as u64)?;
    }
    Ok(())
}

/// Reads until the buffer is full or there is no more, so that blocks of zeros are seen whole.
pub(super) fn fill(from: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut count = 0;
    while count < buffer.len() {
        match from.read(&mut buffer[count..]) {
            Ok(0) => break,
            Ok(more) => count += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(count)
}

/// A reader that tells how far it has come, and stops when it is told to.
struct Counted<'a, R> {
    inner: R,
    watch: Watch<'a>,
    cancelled: bool,
}

/// How it stops. Not `Interrupted`: who gets that tries again.
#[derive(Debug, thiserror::Error)]
#[error("cancelled")]
struct Stopped;

fn is_cancelled(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<Stopped>())
}

impl<R: BufRead> Read for Counted<'_, R> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let from = self.fill_buf()?;
        let count = from.len().min(to.len());
        to[..count].copy_from_slice(&from[..count]);
        self.consume(count);
        Ok(count)
    }
}

impl<R: BufRead> BufRead for Counted<'_, R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        match self.cancelled {
            true => Err(io::Error::other(Stopped)),
            false => self.inner.fill_buf(),
        }
    }

    fn consume(&mut self, count: usize) {
        self.inner.consume(count);
        self.cancelled |= !(self.watch)(count as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::fixture::{gzip, keeps_holes, noise};
    use std::cell::Cell;
    use std::io::{Seek as _, Write as _};
    use std::os::unix::fs::MetadataExt as _;
    use std::process::{Command, Stdio};

    const LIMIT: u64 = 1 << 30;

    fn file_of(content: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        file.rewind().unwrap();
        file
    }

    fn unpacked(packing: Packing, content: &[u8], limit: u64) -> Result<Vec<u8>, Failed> {
        let to = tempfile::tempfile().unwrap();
        unpack(packing, &file_of(content), &to, limit, &|_| true)?;
        let mut all = Vec::new();
        (&to).read_to_end(&mut all).unwrap();
        Ok(all)
    }

    /// What a program of the system makes of something; none where there is no such program.
    fn packed_by(program: &str, args: &[&str], content: &[u8]) -> Option<Vec<u8>> {
        let child = Command::new(program)
            .args(args)
            .stdin(file_of(content))
            .stdout(Stdio::piped())
            .spawn();
        let Ok(child) = child else {
            println!("SKIPPED: {program} is not installed");
            return None;
        };
        let done = child.wait_with_output().unwrap();
        assert!(done.status.success());
        Some(done.stdout)
    }

    fn disk() -> Vec<u8> {
        let mut disk = vec![0; 3 << 20];
        disk[1 << 20..(1 << 20) + 70_000].copy_from_slice(&noise(1, 70_000));
        disk[2_500_000] = 1;
        disk
    }

    #[test]
    fn what_the_systems_tools_have_packed_is_unpacked_and_what_is_cut_or_changed_is_refused() {
        for (program, args, packing) in [
            ("gzip", &["-c"][..], Packing::Gzip),
            ("xz", &["-c"], Packing::Xz),
            ("xz", &["-c", "-9e", "--check=sha256"], Packing::Xz),
            ("xz", &["-c", "--block-size=500000", "-T2"], Packing::Xz),
            ("xz", &["-c", "--x86", "--delta", "--lzma2"], Packing::Xz),
            ("zstd", &["-c", "-q", "--check"], Packing::Zstd),
        ] {
            let Some(packed) = packed_by(program, args, &disk()) else {
                continue;
            };
            assert_eq!(
                unpacked(packing, &packed, LIMIT).unwrap(),
                disk(),
                "{args:?}"
            );
            let twice = [packed.clone(), packed.clone()].concat();
            let both = [disk(), disk()].concat();
            assert_eq!(unpacked(packing, &twice, LIMIT).unwrap(), both, "{args:?}");
            for cut in [1, 9, packed.len() / 2] {
                let cut = unpacked(packing, &packed[..packed.len() - cut], LIMIT);
                assert!(matches!(cut, Err(Failed::Read(_))), "{program} {cut:?}");
            }
            let mut changed = packed.clone();
            changed[packed.len() / 2] ^= 0x10;
            let changed = unpacked(packing, &changed, LIMIT);
            assert!(matches!(changed, Err(Failed::Read(_))), "{program}");
        }
    }

    #[test]
    fn zeros_become_holes() {
        let to = tempfile::tempfile().unwrap();
        let mut disk = vec![0; 8 << 20];
        disk[5 << 20] = 1;
        let told = Cell::new(0);
        let watch = |count| {
            told.set(told.get() + count);
            true
        };
        let packed = gzip(&disk);
        unpack(Packing::Gzip, &file_of(&packed), &to, LIMIT, &watch).unwrap();
        assert_eq!(told.get(), packed.len() as u64);
        let metadata = to.metadata().unwrap();
        assert_eq!(metadata.len(), 8 << 20);
        assert!(!keeps_holes() || metadata.blocks() * 512 < 1 << 20);
    }

    #[test]
    fn a_bomb_ends_at_the_limit_and_a_window_that_is_too_large_is_not_opened() {
        let zeros = vec![0; 4 << 20];
        for (packing, packed) in [
            (Packing::Gzip, Some(gzip(&zeros))),
            (Packing::Zstd, zstd::encode_all(&zeros[..], 1).ok()),
            (Packing::Xz, packed_by("xz", &["-c"], &zeros)),
        ] {
            let Some(packed) = packed else { continue };
            let exact = unpacked(packing, &packed, zeros.len() as u64);
            assert_eq!(exact.unwrap().len(), zeros.len());
            let bomb = unpacked(packing, &packed, zeros.len() as u64 - 1);
            assert!(matches!(bomb, Err(Failed::TooLarge)), "{packing}");
        }
        // The dictionary's size stands in the header of the block, which has a checksum of its own (.xz file
        // format 1.2, sections 3.1 and 5.3.1): 8 MiB as xz made it, 128 MiB, 256 MiB, and 4 GiB.
        for (size, is_good) in [(22, true), (30, true), (32, false), (40, false)] {
            let mut packed = XZ.to_vec();
            packed[16] = size;
            let checksum = crc32fast::hash(&packed[12..20]);
            packed[20..24].copy_from_slice(&checksum.to_le_bytes());
            let found = unpacked(Packing::Xz, &packed, LIMIT);
            assert_eq!(found.is_ok(), is_good, "{size}: {found:?}");
        }
        // A frame that asks for a window of 256 MiB (RFC 8878, section 3.1.1.1.2).
        let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0x00, 18 << 3];
        frame.extend([1, 0, 0]);
        let found = unpacked(Packing::Zstd, &frame, LIMIT);
        assert!(matches!(found, Err(Failed::Read(_))), "{found:?}");
    }

    #[test]
    fn unpacking_stops_when_it_is_told_to() {
        let packed = gzip(&noise(1, 5 << 20));
        let to = tempfile::tempfile().unwrap();
        let told = unpack(Packing::Gzip, &file_of(&packed), &to, LIMIT, &|_| false);
        assert!(matches!(told, Err(Failed::Cancelled)), "{told:?}");
    }

    proptest::proptest! {
        #[test]
        fn no_xz_stream_makes_the_decoder_panic(
            changes in proptest::collection::vec((0usize..400, proptest::num::u8::ANY), 1..4)
        ) {
            let mut packed = XZ.to_vec();
            for (at, byte) in changes {
                let at = at % packed.len();
                packed[at] = byte;
            }
            let _ = unpacked(Packing::Xz, &packed, LIMIT);
        }
    }

    /// What `xz -c` makes of "cocoon" 60 times.
    const XZ: &[u8] =
        b"\xfd7zXZ\0\0\x04\xe6\xd6\xb4F\x02\0!\x01\x16\0\0\0t/\xe5\xa3\xe0\x01g\0\x0e]\0\
        1\x9b\xdc\x04\xdeJ\xbc-?\xc9\xabD\0\0\0\0\0e\xd9\x19\xaf\xa8\xc9h\xa9\0\x01*\xe8\x02\0\0\0\
        \x18\xb6\xcf\xd7\xb1\xc4g\xfb\x02\0\0\0\0\x04YZ";
}
