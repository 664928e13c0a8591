//! Where fuzz targets enter: one function each, which takes any bytes.
//!
//! ```text
//! fuzz/fuzz_targets/<name>.rs ─▶ fuzzing::<name>(bytes) ─▶ what a registry, an archive or a user can reach
//!
//! a layer's bytes:  0    1 ...
//!                   ├how ┼ the stream as it is, or entries of which a tar is made
//!  an entry:        kind │ flags │ 3 lengths: name, link, data (2 bytes) │ mode │ number │ name, link, data
//! ```
//! Random bytes would hardly ever have the checksum of a tar's header, or the length of a PAX record: both
//! are put right, unless the flags say otherwise.

use std::fs;
use std::io::{self, Write as _};

use super::decode;
use super::layer::{self, Compression, LayerPaths, Limits};
use super::manifest::{self, Document, INDEXES, MANIFESTS, Platform, Wrapping};
use super::reference::Reference;
use crate::units::VmName;

/// Small enough that each of them is met.
const LIMITS: Limits = Limits {
    max_bytes: 1 << 20,
    max_entries: 200,
    max_metadata_bytes: 64 << 10,
};

/// Kinds of entries: those of POSIX and GNU, and one that nobody knows.
const KINDS: &[u8; 16] = b"00512346LKxgS7VQ";

/// Bytes of an entry before its name.
const HEAD: usize = 10;

/// The name of an image.
pub fn reference(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else {
        return;
    };
    if let Ok(reference) = text.parse::<Reference>() {
        for form in [reference.to_string(), reference.familiar()] {
            assert_eq!(form.parse().as_ref(), Ok(&reference), "{form:?}");
        }
        VmName::from_text(&reference.default_vm_name(), 8);
    }
}

/// The documents of an image: what the first byte says is an index or a manifest, then after a NUL its config.
pub fn documents(data: &[u8]) {
    let Some((how, documents)) = data.split_first() else {
        return;
    };
    let mut parts = documents.splitn(2, |byte| *byte == 0);
    let (first, config) = (parts.next(), parts.next());
    let told = [INDEXES, MANIFESTS].as_flattened()[usize::from(how & 3)];
    let platform = Platform::host();
    let config = manifest::read_config(config.unwrap_or_default(), platform);
    match manifest::read(first.unwrap_or_default(), Some(told)) {
        Ok(Document::Index(index)) => {
            if let Ok(chosen) = manifest::choose(&index, platform) {
                let _ = manifest::digest_of(chosen, "index");
                let _ = manifest::check_size(chosen, documents, "manifest");
            }
        }
        Ok(Document::Manifest(manifest)) => {
            let _ = manifest::config_of(&manifest);
            let layers = config.and_then(|config| manifest::layers(&manifest, &config));
            let layers = layers.map_or(1, |layers| layers.len());
            assert!((1..=127).contains(&layers), "{layers} layers");
        }
        Err(error) => assert!(!error.to_string().contains(char::is_control), "{error}"),
    }
}

/// A layer, and the EROFS image that it becomes.
pub fn layer(data: &[u8]) -> Option<Vec<u8>> {
    thread_local! {
        static FOLDER: tempfile::TempDir = tempfile::tempdir().expect("a folder");
    }
    let (how, content) = data.split_first()?;
    let tar = match how & 0x10 {
        0 => tar_of(content, how & 0x20 == 0),
        _ => content.to_vec(),
    };
    let compression = [Compression::None, Compression::Lz4][usize::from(how & 1)];
    let (stream, wrapping) = wrapped(tar, how >> 1 & 7);
    FOLDER.with(|folder| {
        let [blob, kernel, initrd] = ["blob", "kernel", "initrd"].map(|it| folder.path().join(it));
        let paths = LayerPaths {
            blob: &blob,
            kernel: &kernel,
            initrd: &initrd,
        };
        let mut tar = decode::decoder(&stream[..], wrapping).expect("a decoder");
        let converted = layer::convert(&mut tar, compression, &LIMITS, &paths);
        let made = converted.and_then(|it| it.finish(*b"cocoon fuzz uuid"));
        let image = made.ok().map(|report| {
            let image = fs::read(&blob).expect("an image");
            assert_eq!(report.blob_size, image.len() as u64);
            // Holes of the largest file, and an inode and a name for each entry.
            assert!(image.len() < 4 << 20, "{} bytes", image.len());
            assert_eq!(
                (report.has_kernel, report.has_initrd),
                (kernel.exists(), initrd.exists())
            );
            for path in [&blob, &kernel, &initrd] {
                let _ = fs::remove_file(path);
            }
            image
        });
        let left = fs::read_dir(folder.path()).expect("the folder").count();
        assert_eq!(left, 0, "files that nobody said were made");
        image
    })
}

/// The stream of a tar: as it is, compressed, or passed off as compressed.
fn wrapped(tar: Vec<u8>, how: u8) -> (Vec<u8>, Wrapping) {
    match how {
        1 => (tar, Wrapping::Gzip),
        2 => (tar, Wrapping::Zstd),
        3 => {
            let level = flate2::Compression::fast();
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), level);
            let stream = encoder.write_all(&tar).and_then(|()| encoder.finish());
            (stream.expect("memory"), Wrapping::Gzip)
        }
        4 => {
            let stream = zstd::encode_all(io::Cursor::new(tar), 1);
            (stream.expect("memory"), Wrapping::Zstd)
        }
        _ => (tar, Wrapping::None),
    }
}

fn tar_of(mut content: &[u8], has_end: bool) -> Vec<u8> {
    let mut tar = Vec::new();
    while let Some((head, rest)) = content.split_first_chunk::<HEAD>() {
        content = append(&mut tar, head, rest);
    }
    if has_end {
        tar.resize(tar.len() + 1024, 0);
    }
    tar
}

/// Adds an entry, and gives what follows it.
fn append<'a>(tar: &mut Vec<u8>, head: &[u8; HEAD], rest: &'a [u8]) -> &'a [u8] {
    let [kind, flags, name, link, low, high, mode @ .., number, other] = *head;
    let (is_raw, lies, is_posix, keeps) = (flags & 1, flags & 2, flags & 4, flags & 8);
    let part = |from: &mut &'a [u8], count: usize| {
        let (part, after) = from.split_at(count.min(from.len()));
        *from = after;
        part
    };
    let mut rest = rest;
    let mut header = tar::Header::new_gnu();
    if is_posix != 0 {
        header = tar::Header::new_ustar();
    }
    let fields = header.as_mut_bytes();
    if is_raw != 0 {
        let raw = part(&mut rest, fields.len());
        fields[..raw.len()].copy_from_slice(raw);
        header.set_cksum();
        tar.extend(header.as_bytes());
        return rest;
    }
    let (name, link) = (part(&mut rest, name.into()), part(&mut rest, link.into()));
    fields[..name.len().min(100)].copy_from_slice(&name[..name.len().min(100)]);
    fields[157..157 + link.len().min(100)].copy_from_slice(&link[..link.len().min(100)]);
    let body = part(&mut rest, u16::from_le_bytes([low, high]).into());
    let kind = KINDS[usize::from(kind & 15)];
    let body = match kind {
        b'x' | b'g' if keeps == 0 => records(body),
        b'L' | b'K' if keeps == 0 => [body, b"\0"].concat(),
        _ => body.to_vec(),
    };
    header.set_entry_type(tar::EntryType::new(kind));
    header.set_mode(u32::from(u16::from_le_bytes(mode)));
    header.set_uid(number.into());
    header.set_gid(other.into());
    header.set_mtime(number.into());
    header.set_size(match lies {
        0 => body.len() as u64,
        _ => u64::from(other) << (number & 63),
    });
    // A header of either kind has both.
    let _ = header.set_device_major(number.into());
    let _ = header.set_device_minor(other.into());
    header.set_cksum();
    tar.extend(header.as_bytes());
    tar.extend(&body);
    tar.resize(tar.len().next_multiple_of(512), 0);
    rest
}

/// PAX records, one of each line of `body`.
fn records(body: &[u8]) -> Vec<u8> {
    let mut records = Vec::new();
    for line in body.split(|byte| *byte == b'\n') {
        let rest = [b" ", line, b"\n"].concat();
        let mut len = rest.len();
        while len != rest.len() + len.to_string().len() {
            len = rest.len() + len.to_string().len();
        }
        records.extend(len.to_string().into_bytes());
        records.extend(rest);
    }
    records
}

/// So that the entries stay alive where nobody fuzzes.
#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Entries with short names out of few letters, so that they meet.
    fn layers() -> impl Strategy<Value = Vec<u8>> {
        let entry = (
            0..16_u8,
            0..16_u8,
            0..8_u8,
            0..8_u8,
            0..2_u8,
            "[a./\n=]{0,600}",
        );
        let entry = entry.prop_map(|(kind, flags, name, link, high, text)| {
            let head = [kind, flags, name, link, 9, high, 0xed, 1, 3, 7];
            [&head[..], text.as_bytes()].concat()
        });
        let entries = prop::collection::vec(entry, 0..12);
        (any::<u8>(), entries).prop_map(|(how, entries)| [vec![how], entries.concat()].concat())
    }

    proptest! {
        // A look, not a search.
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn no_bytes_harm_the_reader_of_layers(data in layers()) {
            layer(&data);
        }

        #[test]
        fn no_bytes_harm_the_readers_of_names_and_documents(data in any::<Vec<u8>>()) {
            reference(&data);
            documents(&data);
        }
    }

    #[test]
    fn entries_become_a_tar_that_can_be_read() {
        let head = |kind, name, link, data| [kind, 0, name, link, data, 0, 0xed, 1, 0, 0];
        let file = [&head(0, 1, 0, 4)[..], b"fdata"].concat();
        let link = [&head(4, 2, 1, 0)[..], b"lnf"].concat();
        let pax = [&head(10, 1, 0, 8)[..], b"xpath=pax"].concat();
        for how in [0, 1, 6, 7, 8, 9] {
            let data = [&[how][..], &file, &link, &pax, &file].concat();
            let image = layer(&data).unwrap();
            for name in ["f", "ln", "pax"] {
                let is_there = image.windows(name.len()).any(|it| it == name.as_bytes());
                assert!(is_there, "{name}, made as {how}");
            }
        }
    }
}
