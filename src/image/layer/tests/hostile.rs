//! Archives that lie.

use std::error::Error as _;
use std::io::{self, Read};

use super::super::{Compression, LayerError, LayerPaths, Limits, convert};
use super::support::*;

/// The error of a conversion, with its cause.
fn refusal(tar: &[u8], limits: &Limits) -> String {
    match try_make(tar, Compression::Lz4, limits) {
        Ok(_) => "accepted".to_owned(),
        Err(error) => match error.source() {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        },
    }
}

fn raw(name: &[u8], change: impl FnOnce(&mut [u8; 512])) -> tar::Header {
    let mut header = header(name, b'0', 0);
    change(header.as_mut_bytes());
    header.set_cksum();
    header
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table")]
fn hostile_archives_are_refused_by_name() {
    let new = TarBuilder::new;
    let long_path = ["p/"; 2100].concat();
    let huge_pax = noise(2 << 20, 1);
    let pax_size = |value: &[u8]| new().pax(&[(b"size", value)]).file("liar", b"").end();
    let sparse = |map: &[u8], data: &[u8]| {
        let records: [(&[u8], &[u8]); 2] = [(b"GNU.sparse.size", b"100"), (b"GNU.sparse.map", map)];
        new().pax(&records).file("sparse", data).end()
    };
    let mut flipped = new().file("flip", b"").end();
    flipped[0] ^= 1;
    let mut device = Fields::of(b'3');
    device.device = (5000, 1);
    let table: Vec<(Vec<u8>, &str)> = vec![
        (
            new().file("../out", b"x").end(),
            "\"../out\" is refused: its name leaves the root",
        ),
        (new().file("a/../../out", b"x").end(), "leaves the root"),
        (new().file("/../out", b"x").end(), "leaves the root"),
        (
            new().link(b'2', "ln", "/etc").file("ln/passwd", b"x").end(),
            "\"ln/passwd\" is refused: it lies below a symbolic link",
        ),
        (
            new().link(b'2', "ln", "/etc").dir("ln/sub").end(),
            "below a symbolic link",
        ),
        (
            new()
                .link(b'2', "ln", "/etc")
                .file("ln/.wh.passwd", b"")
                .end(),
            "below a symbolic link",
        ),
        (new().file("f", b"").file("f/x", b"").end(), "below a file"),
        (
            new().link(b'1', "hard", "nowhere").end(),
            "\"hard\" is refused: it is a hard link to what",
        ),
        (
            new().link(b'1', "hard", "../../etc/shadow").end(),
            "leaves the root",
        ),
        (
            new().link(b'1', "later", "f").file("f", b"").end(),
            "hard link to what",
        ),
        (
            new().dir("d").link(b'1', "hard", "d").end(),
            "hard link to a directory",
        ),
        (
            new().link(b'1', "root", "/").end(),
            "hard link to a directory",
        ),
        (
            new().file(".wh.gone", b"").link(b'1', "hard", "gone").end(),
            "hard link to what",
        ),
        (new().link(b'2', "ln", "").end(), "link target is empty"),
        (new().link(b'2', "ln", &"t".repeat(4096)).end(), "too long"),
        (new().file("./", b"data").end(), "has data but is no file"),
        (
            new().link(b'2', "/", "x").end(),
            "only a directory can be the root",
        ),
        (
            new().file(&"n".repeat(256), b"").end(),
            "more than 255 bytes",
        ),
        (new().file(&long_path, b"").end(), "more than 4096 bytes"),
        (
            new().pax(&[(b"path", b"a\0b")]).file("x", b"").end(),
            "\"a\\0b\" is refused: its name has a NUL",
        ),
        (
            new()
                .record(&header(b"L", b'L', 4), b"a\0b\0")
                .file("x", b"")
                .end(),
            "has a NUL",
        ),
        (new().file("", b"").end(), "is empty"),
        (new().file(".wh.", b"").end(), "whiteout"),
        (new().file(".wh..", b"").end(), "whiteout"),
        (new().file("a/.wh...", b"").end(), "whiteout"),
        (new().file(".wh.a/b", b"").end(), "whiteout"),
        (new().entry(b"dev", &device, b"").end(), "12 bits of major"),
        (
            new().entry(b"odd", &Fields::of(b'M'), b"").end(),
            "type 'M'",
        ),
        (
            new().entry(b"dir", &Fields::of(b'5'), b"data").end(),
            "has data but is no file",
        ),
        (
            new()
                .record(&raw(b"neg", |h| h[124..136].fill(0xff)), b"")
                .end(),
            "size is not a number",
        ),
        (
            new()
                .record(&raw(b"neg", |h| h[124..136].fill(b'9')), b"")
                .end(),
            "not a number",
        ),
        (
            new()
                .record(&raw(b"u", |h| h[108..116].fill(0xff)), b"")
                .end(),
            "owner is not a number",
        ),
        (
            new()
                .record(
                    &raw(b"big", |h| {
                        h[124..136].copy_from_slice(b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff")
                    }),
                    b"",
                )
                .end(),
            "size is not a number that fits",
        ),
        (
            pax_size(b"18446744073709551615"),
            "size is not a number that fits",
        ),
        (pax_size(b"99999999999999999999"), "not a number"),
        (pax_size(b"-1"), "not a number"),
        (
            pax_size(b"9000000000000000000"),
            "\"liar\" is refused: with it the layer unpacks to more",
        ),
        (pax_size(b"60000"), "ends within entry \"liar\""),
        (
            new().pax(&[(b"uid", b"4294967295")]).file("u", b"").end(),
            "owner",
        ),
        (
            new()
                .pax(&[(b"SCHILY.xattr.user.x", &[1; 65_536])])
                .file("x", b"")
                .end(),
            "more than 64 KiB",
        ),
        (
            new().record(&header(b"x", b'x', 2 << 20), &huge_pax).end(),
            "more than 1 MiB",
        ),
        (
            new().record(&header(b"x", b'L', 2 << 20), &huge_pax).end(),
            "more than 1 MiB",
        ),
        (
            new().record(&header(b"x", b'x', 6), b"junk\n\n").end(),
            "a record is broken",
        ),
        (
            new().pax(&[(b"a", b"b")]).pax(&[(b"a", b"b")]).end(),
            "two of a kind",
        ),
        (new().pax(&[(b"a", b"b")]).end(), "ends within"),
        (
            new()
                .record(&header(b"glob", b'g', 13), b"13 path=evil\n")
                .end(),
            "\"glob\" is refused: its extension header is malformed: a global",
        ),
        (sparse(b"0,50", b"short"), "does not match"),
        (sparse(b"0,5,2,5", b"0123456789"), "overlap"),
        (sparse(b"99,5", b"01234"), "behind the file's end"),
        (sparse(b"0,5,7", b"01234"), "no length"),
        (sparse(b"0,x", b"01234"), "not a number"),
        (
            new()
                .pax(&[(b"GNU.sparse.major", b"2"), (b"GNU.sparse.size", b"9")])
                .file("s", b"")
                .end(),
            "format is unknown",
        ),
        (
            new()
                .pax(&[
                    (b"GNU.sparse.size", b"9223372036854775807"),
                    (b"GNU.sparse.map", b"0,1"),
                ])
                .file("s", b"x")
                .end(),
            "unpacks to more",
        ),
        // A kernel of 8 EiB, all of it a hole.
        (
            new()
                .pax(&[
                    (b"GNU.sparse.size", b"9223372036854775807"),
                    (b"GNU.sparse.map", b"0,0"),
                ])
                .file("vmlinuz", b"")
                .end(),
            "unpacks to more",
        ),
        (flipped, "wrong checksum"),
        (noise(2048, 3), "wrong checksum"),
    ];
    for (i, (tar, expected)) in table.iter().enumerate() {
        let said = refusal(tar, &Limits::default());
        assert!(
            said.contains(expected),
            "row {i}: {said:?} is not {expected:?}"
        );
    }
}

#[test]
fn a_stream_cut_anywhere_within_an_entry_is_refused() {
    let tar = TarBuilder::new()
        .file("a", &noise(700, 1))
        .pax(&[(b"path", b"long")])
        .file("b", &noise(100, 1))
        .cut();
    for cut in (1..tar.len()).step_by(37) {
        let said = refusal(&tar[..cut], &Limits::default());
        // After the first entry there may be an end.
        let is_boundary = cut == 512 + 1024;
        assert_eq!(said.contains("ends within"), !is_boundary, "{cut}: {said}");
    }
}

#[test]
fn bombs_stop_at_each_limit() {
    let limits = Limits {
        max_bytes: 1_000_000,
        max_entries: 50,
        max_metadata_bytes: 10_000,
    };
    let zeros = vec![0; 600_000];
    let tar = TarBuilder::new().file("a", &zeros).file("b", &zeros).end();
    assert!(refusal(&tar, &limits).contains("\"b\" is refused: with it the layer unpacks"));
    // Replacing a file does not give its bytes back.
    let tar = TarBuilder::new().file("a", &zeros).file("a", &zeros).end();
    assert!(refusal(&tar, &limits).contains("unpacks to more"));
    let deep = ["d/"; 60].concat();
    assert!(refusal(&TarBuilder::new().dir(&deep).end(), &limits).contains("more than 50 files"));
    let mut links = TarBuilder::new().file("f", b"");
    for i in 0..60 {
        links = links.link(b'1', &format!("l{i}"), "f");
    }
    assert!(refusal(&links.end(), &limits).contains("more than 50 files"));
    let xattr: (&[u8], &[u8]) = (b"SCHILY.xattr.user.x", &[1; 4000]);
    let mut tar = TarBuilder::new();
    for name in ["a", "b", "c", "a"] {
        tar = tar.pax(&[xattr]).file(name, b"");
    }
    assert!(refusal(&tar.end(), &limits).contains("names and attributes"));
    // Every byte of a sparse file costs a chunk.
    let map: Vec<String> = (0..300).map(|i| format!("{},1", i * 8192)).collect();
    let tar = TarBuilder::new()
        .pax(&[
            (b"GNU.sparse.size", b"9000000"),
            (b"GNU.sparse.map", map.join(",").as_bytes()),
        ])
        .file("s", &[1; 300])
        .end();
    assert!(refusal(&tar, &limits).contains("unpacks to more"));
}

#[test]
fn existing_files_are_not_touched() {
    let tar = TarBuilder::new().file("vmlinuz", b"new").end();
    for taken in ["blob", "kernel"] {
        let dir = tempfile::tempdir().unwrap();
        let [blob, kernel, initrd] = ["blob", "kernel", "initrd"].map(|name| dir.path().join(name));
        std::fs::write(dir.path().join(taken), "mine").unwrap();
        let paths = LayerPaths {
            blob: &blob,
            kernel: &kernel,
            initrd: &initrd,
        };
        let result = convert(&mut &tar[..], Compression::None, &Limits::default(), &paths);
        assert!(matches!(result, Err(LayerError::Create { .. })));
        assert_eq!(std::fs::read(dir.path().join(taken)).unwrap(), b"mine");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}

/// Fails after some bytes.
struct Breaking<'a>(&'a [u8]);

impl Read for Breaking<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.0.is_empty() {
            return Err(io::Error::from(io::ErrorKind::ConnectionReset));
        }
        self.0.read(buffer)
    }
}

#[test]
fn a_failing_stream_is_reported_with_its_cause_and_leaves_nothing() {
    let tar = TarBuilder::new().file("vmlinuz", &noise(100_000, 1)).end();
    for cut in [0, 100, 512, 50_000, tar.len()] {
        let dir = tempfile::tempdir().unwrap();
        let [blob, kernel, initrd] = ["blob", "kernel", "initrd"].map(|name| dir.path().join(name));
        let paths = LayerPaths {
            blob: &blob,
            kernel: &kernel,
            initrd: &initrd,
        };
        let mut stream = Breaking(&tar[..cut]);
        let result = convert(&mut stream, Compression::None, &Limits::default(), &paths);
        match result {
            Err(LayerError::Read { source, .. }) => {
                assert_eq!(source.kind(), io::ErrorKind::ConnectionReset, "{cut}");
            }
            other => panic!("{cut}: {other:?}"),
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
