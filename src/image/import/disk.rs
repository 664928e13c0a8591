//! Tells a disk image from what is made of layers, by its first bytes.

use std::fs::File;
use std::io::{self, BufReader, Cursor, Read};
use std::os::unix::fs::FileExt as _;

use super::source::Input;
use crate::image::cloud::content::{self, Packing, Sniffed};
use crate::image::decode;

/// Bytes that tell what can be a disk. A stream that has fewer for now is waited for.
const HEAD: usize = 2048;

/// What somebody wants to import.
#[derive(Debug)]
pub enum Kind {
    /// Layers, or what may be that.
    Layers(Input),
    /// A disk image, perhaps compressed.
    Disk(Input),
}

/// Looks at the beginning of what is imported. Of a stream it is read, and stays its beginning.
///
/// # Errors
/// It cannot be read.
pub fn kind(input: Input) -> io::Result<Kind> {
    let (input, head) = match input {
        Input::Folder(_) => return Ok(Kind::Layers(input)),
        Input::File(ref path) if path.is_file() => {
            let mut head = vec![0; HEAD];
            let read = File::open(path)?.read_at(&mut head, 0)?;
            head.truncate(read);
            (input, head)
        }
        Input::File(path) => beginning(Box::new(File::open(path)?))?,
        Input::Stream(stream) => beginning(stream)?,
    };
    Ok(match is_disk(&head) {
        true => Kind::Disk(input),
        false => Kind::Layers(input),
    })
}

fn beginning(mut stream: Box<dyn Read>) -> io::Result<(Input, Vec<u8>)> {
    let mut head = Vec::new();
    stream.by_ref().take(HEAD as u64).read_to_end(&mut head)?;
    let whole = Cursor::new(head.clone()).chain(stream);
    Ok((Input::Stream(Box::new(whole)), head))
}

fn is_disk(head: &[u8]) -> bool {
    match content::sniff(head) {
        Sniffed::Qcow2 | Sniffed::Raw => true,
        Sniffed::Foreign(_) => false,
        // No layers come in it.
        Sniffed::Packed(Packing::Xz) => true,
        Sniffed::Packed(Packing::Gzip | Packing::Zstd) => {
            let inner = begin_to_unpack(head);
            matches!(content::sniff(&inner), Sniffed::Qcow2 | Sniffed::Raw)
        }
    }
}

/// The first bytes of what is packed: as far as they come out of its own.
fn begin_to_unpack(head: &[u8]) -> Vec<u8> {
    let mut inner = Vec::new();
    let packed = BufReader::new(Cursor::new(head.to_vec()));
    if let Ok(unpacked) = decode::decoder(packed, decode::wrapping_of(head)) {
        // It ends in the middle, which is an error, behind all that is wanted.
        let _ = unpacked.take(HEAD as u64).read_to_end(&mut inner);
    }
    inner
}
