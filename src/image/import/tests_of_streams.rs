//! Layers whose compression lies, with digests that are right.

use std::io::Write as _;

use super::tests::*;
use super::tests_of_attacks::*;
use crate::image::fixture::{gzip, tar_of};

fn zeros(count: usize) -> Vec<u8> {
    vec![0; count]
}

/// Bytes, and 16 MiB of zeros behind them, in gzip.
fn gzip_of_zeros(before: &[u8]) -> Vec<u8> {
    let level = flate2::Compression::best();
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), level);
    encoder.write_all(before).unwrap();
    for _ in 0..16 {
        encoder.write_all(&zeros(1 << 20)).unwrap();
    }
    encoder.finish().unwrap()
}

/// A zstd frame of the bytes `before`, and then one of 128 GiB of zeros: a million blocks of 4 bytes.
fn zstd_of_zeros(before: &[u8]) -> Vec<u8> {
    let mut stream = zstd::encode_all(before, 1).unwrap();
    // Magic number; no size, no checksum; a window of 128 KiB.
    stream.extend(b"\x28\xb5\x2f\xfd\x00\x38");
    // A block that repeats one byte 128 KiB times: its size, its kind, whether it is the last.
    let block = (128_u32 << 10 << 3 | 1 << 1).to_le_bytes();
    for _ in 0..1 << 20 {
        stream.extend(&block[..3]);
        stream.push(0);
    }
    stream
}

fn cut(mut stream: Vec<u8>, less: usize) -> Vec<u8> {
    stream.truncate(stream.len() - less);
    stream
}

fn flipped(mut stream: Vec<u8>, from_end: usize) -> Vec<u8> {
    let at = stream.len() - from_end;
    stream[at] ^= 1;
    stream
}

#[expect(clippy::too_many_lines, reason = "a table")]
pub(super) fn streams() -> Vec<Row> {
    let of = At::Layer;
    vec![
        (
            "a layer of zeros, in gzip",
            of(GZIP, || gzip_of_zeros(&cut(tar_of(&[("f", b"x")]), 1024))),
            "it has more than",
        ),
        (
            "zeros behind a whole layer, in gzip",
            of(GZIP, || gzip_of_zeros(&root(1))),
            "it has more than 4603904 bytes",
        ),
        (
            "128 GiB of zeros behind a whole layer, in zstd",
            of(ZSTD, || zstd_of_zeros(&root(1))),
            "it has more than 4603904 bytes",
        ),
        (
            "a file of zeros",
            of(GZIP, || gzip(&tar_of(&[("boot/vmlinuz", &zeros(5 << 20))]))),
            "with it the layer unpacks to more than 4194304 bytes",
        ),
        (
            "a window of 2 GiB",
            of(ZSTD, || b"\x28\xb5\x2f\xfd\x00\xa8\x01\x00\x00".to_vec()),
            "cannot",
        ),
        (
            "a dictionary that nobody has",
            of(ZSTD, || {
                b"\x28\xb5\x2f\xfd\x21\x2a\x01\x01\x00\x00x".to_vec()
            }),
            "cannot",
        ),
        (
            "a frame to skip of 4 GiB, of which there is nothing",
            of(ZSTD, || b"\x50\x2a\x4d\x18\xff\xff\xff\xff".to_vec()),
            "cannot",
        ),
        (
            "gzip whose last byte is missing",
            of(GZIP, || cut(gzip(&root(1)), 1)),
            "cannot",
        ),
        (
            "gzip whose checksum is wrong",
            of(GZIP, || flipped(gzip(&root(1)), 8)),
            "cannot",
        ),
        (
            "gzip whose length is wrong",
            of(GZIP, || flipped(gzip(&root(1)), 4)),
            "cannot",
        ),
        (
            "gzip that is a header alone",
            of(GZIP, || gzip(&root(1))[..10].to_vec()),
            "cannot",
        ),
        (
            "gzip whose method is unknown",
            of(GZIP, || b"\x1f\x8b\x07\0\0\0\0\0\0\0\0\0".to_vec()),
            "cannot",
        ),
        (
            "gzip whose name never ends",
            of(GZIP, || {
                [b"\x1f\x8b\x08\x08\0\0\0\0\0\0", &[b'n'; 1 << 20][..]].concat()
            }),
            "cannot",
        ),
        (
            "noise behind gzip",
            of(GZIP, || [&gzip(&root(1))[..], b"noise"].concat()),
            "cannot",
        ),
        (
            "a second gzip, that is cut",
            of(GZIP, || [gzip(&root(1)), cut(gzip(b"more"), 9)].concat()),
            "cannot",
        ),
        (
            "a layer in two pieces of gzip, which is one",
            of(GZIP, || {
                let tar = root(1);
                [gzip(&tar[..70_000]), gzip(&tar[70_000..])].concat()
            }),
            ACCEPTED,
        ),
        (
            "zstd whose last byte is missing",
            of(ZSTD, || cut(zstd::encode_all(&root(1)[..], 1).unwrap(), 1)),
            "cannot",
        ),
        (
            "zstd whose checksum is wrong",
            of(ZSTD, || {
                let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
                encoder.include_checksum(true).unwrap();
                encoder.write_all(&root(1)).unwrap();
                flipped(encoder.finish().unwrap(), 1)
            }),
            "cannot",
        ),
        (
            "noise behind zstd",
            of(ZSTD, || {
                [&zstd::encode_all(&root(1)[..], 1).unwrap()[..], b"noise"].concat()
            }),
            "cannot",
        ),
        (
            "a layer of no bytes",
            of(GZIP, Vec::new),
            "by its first bytes not compressed",
        ),
        (
            "a layer of nothing",
            of(GZIP, || gzip(&zeros(1024))),
            "but the image's config says",
        ),
        (
            "another layer",
            of(GZIP, || gzip(&root(5))),
            "but the image's config says",
        ),
        (
            "gzip within gzip",
            of(GZIP, || gzip(&gzip(&root(1)))),
            "wrong checksum",
        ),
        (
            "an archive of another kind",
            of("application/vnd.oci.image.layer.v1.tar", || {
                b"070701".repeat(200)
            }),
            "wrong checksum",
        ),
    ]
}
