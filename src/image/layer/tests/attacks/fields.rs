//! Numbers, extension headers and maps that say what cannot be.

use super::*;

#[expect(clippy::too_many_lines, reason = "a table")]
pub(super) fn numbers() -> Vec<Attack> {
    let mut flipped = new().file("flip", b"").end();
    flipped[0] ^= 1;
    let at = |place: std::ops::Range<usize>, with: &[u8]| raw(|h| h[place].copy_from_slice(with));
    let most = b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff";
    vec![
        attack(
            "a size of -1, in base 256",
            at(124..136, &[0xff; 12]),
            "size is not a number",
        ),
        attack(
            "the most negative size",
            at(124..136, b"\xc0\0\0\0\x80\0\0\0\0\0\0\0"),
            "size is not a number",
        ),
        attack(
            "a size that is no octal number",
            at(124..136, b"999999999999"),
            "not a number",
        ),
        attack(
            "a size of -1, in text",
            at(124..136, b"-00000000001"),
            "not a number",
        ),
        attack(
            "a size that overflows with its padding",
            at(124..136, most),
            "size is not a number that fits",
        ),
        attack(
            "an owner of -1",
            at(108..116, &[0xff; 8]),
            "owner is not a number",
        ),
        attack(
            "a group of -1",
            at(116..124, &[0xff; 8]),
            "group is not a number",
        ),
        attack(
            "a time that is text",
            at(136..148, b"long ago\0\0\0\0"),
            "time is not a number",
        ),
        attack(
            "permissions that are text",
            at(100..108, b"rwxr-xr-"),
            "mode is not a number",
        ),
        attack(
            "the most negative time",
            at(136..148, b"\xff\xff\xff\xff\x80\0\0\0\0\0\0\0"),
            ACCEPTED,
        ),
        attack("a changed byte", flipped, "wrong checksum"),
        attack("noise", noise(2048, 3), "wrong checksum"),
        attack(
            "a checksum that is none",
            {
                let mut tar = new().file("x", b"").end();
                tar[148..156].fill(b'x');
                tar
            },
            "wrong checksum",
        ),
        attack(
            "a PAX size of 2^64 - 1",
            pax("size", b"18446744073709551615"),
            "size is not a number that fits",
        ),
        attack(
            "a PAX size of more",
            pax("size", b"99999999999999999999"),
            "not a number",
        ),
        attack("a PAX size of -1", pax("size", b"-1"), "not a number"),
        attack(
            "a PAX size of 9 EB",
            pax("size", b"9000000000000000000"),
            "\"pax\" is refused: with it the layer unpacks to more",
        ),
        attack(
            "a PAX size of more than there is",
            pax("size", b"60000"),
            "ends within entry \"pax\"",
        ),
        attack(
            "a PAX owner that means none",
            pax("uid", b"4294967295"),
            "owner",
        ),
        attack("a PAX group of -1", pax("gid", b"-1"), "group"),
        attack(
            "a PAX time of more than 64 bits",
            pax("mtime", b"-99999999999999999999.5"),
            "time is not a number",
        ),
        attack(
            "a PAX time whose fraction is text",
            pax("mtime", b"1.x"),
            "time is not a number",
        ),
        attack(
            "the least PAX time",
            pax("mtime", b"-9223372036854775807.9"),
            ACCEPTED,
        ),
    ]
}

#[expect(clippy::too_many_lines, reason = "a table")]
pub(super) fn extensions() -> Vec<Attack> {
    let large = noise(2 << 20, 1);
    let attributes: Vec<_> = (0..4000)
        .map(|i| format!("SCHILY.xattr.user.{i}"))
        .collect();
    let attributes: Vec<(&[u8], &[u8])> = attributes
        .iter()
        .map(|name| (name.as_bytes(), &b"0123456789"[..]))
        .collect();
    let long_name = format!("SCHILY.xattr.user.{}", "n".repeat(251));
    vec![
        attack(
            "a PAX header of 2 MiB",
            extension(b'x', 2 << 20, &large),
            "more than 1 MiB",
        ),
        attack(
            "a GNU name of 2 MiB",
            extension(b'L', 2 << 20, &large),
            "more than 1 MiB",
        ),
        attack(
            "a GNU link of 8 EB, of which there is nothing",
            extension(b'K', 1 << 62, b""),
            "more than 1 MiB",
        ),
        attack(
            "a GNU name that says it is longer than the stream",
            extension(b'L', 1 << 20, b"short"),
            "ends within",
        ),
        attack(
            "a record without a length",
            extension(b'x', 6, b"junk\n\n"),
            "a record is broken",
        ),
        attack(
            "a record that is longer than its header",
            extension(b'x', 12, b"99 path=evil"),
            "a record is broken",
        ),
        attack(
            "a record of no length",
            extension(b'x', 8, b"0 path=\n"),
            "a record is broken",
        ),
        attack(
            "a record whose length overflows",
            extension(b'x', 33, b"99999999999999999999999999 path=x\n"),
            "a record is broken",
        ),
        attack(
            "a record without a key",
            extension(b'x', 5, b"5 =x\n"),
            "a record is broken",
        ),
        attack(
            "two PAX headers",
            new().pax(&[(b"a", b"b")]).pax(&[(b"a", b"b")]).end(),
            "two of a kind",
        ),
        attack(
            "two GNU names",
            new()
                .record(&header(b"l", b'L', 1), b"a")
                .record(&header(b"l", b'L', 1), b"b")
                .file("x", b"")
                .end(),
            "two of a kind",
        ),
        attack(
            "a header of nothing",
            new().pax(&[(b"a", b"b")]).end(),
            "ends within",
        ),
        attack(
            "a global name",
            extension(b'g', 13, b"13 path=evil\n"),
            "its extension header is malformed: a global",
        ),
        attack(
            "a global attribute",
            extension(b'g', 27, b"27 SCHILY.xattr.user.a=evil"),
            "is malformed",
        ),
        attack(
            "an attribute of 64 KiB",
            pax("SCHILY.xattr.user.x", &[1; 65_536]),
            "more than 64 KiB",
        ),
        attack(
            "4000 attributes",
            new().pax(&attributes).file("x", b"").end(),
            "more than 64 KiB",
        ),
        attack(
            "an attribute's name of 256 bytes",
            pax(&long_name, b"x"),
            "more than 255 bytes",
        ),
        attack(
            "an attribute without a name",
            pax("SCHILY.xattr.", b"x"),
            "is empty",
        ),
        attack(
            "a NUL in an attribute's name",
            pax("SCHILY.xattr.user.a\0b", b"x"),
            "has a NUL",
        ),
    ]
}

#[expect(clippy::too_many_lines, reason = "a table")]
pub(super) fn sparse_files() -> Vec<Attack> {
    let map = |size: &[u8], map: &[u8], data: &[u8]| {
        let records: [(&[u8], &[u8]); 2] = [(b"GNU.sparse.size", size), (b"GNU.sparse.map", map)];
        new().pax(&records).file("sparse", data).end()
    };
    let before_data = |numbers: &str| {
        let records: [(&[u8], &[u8]); 3] = [
            (b"GNU.sparse.major", b"1"),
            (b"GNU.sparse.minor", b"0"),
            (b"GNU.sparse.realsize", b"100"),
        ];
        let mut data = numbers.as_bytes().to_vec();
        data.resize(data.len().next_multiple_of(512), 0);
        new().pax(&records).file("sparse", &data).end()
    };
    let old = |change: fn(&mut [u8])| {
        let mut header = header(b"old", b'S', 0);
        change(header.as_mut_bytes());
        header.set_cksum();
        new().record(&header, b"").end()
    };
    let most = b"9223372036854775807";
    vec![
        attack(
            "a map of more than there is",
            map(b"100", b"0,50", b"short"),
            "does not match",
        ),
        attack(
            "a map whose parts overlap",
            map(b"100", b"0,5,2,5", b"0123456789"),
            "overlap",
        ),
        attack(
            "a map that goes backwards",
            map(b"100", b"50,5,0,5", b"0123456789"),
            "overlap",
        ),
        attack(
            "a map that goes past the end",
            map(b"100", b"99,5", b"01234"),
            "behind the file's end",
        ),
        attack(
            "a map that overflows",
            map(b"100", b"18446744073709551615,5", b"01234"),
            "behind the file's end",
        ),
        attack(
            "an offset without a length",
            map(b"100", b"0,5,7", b"01234"),
            "no length",
        ),
        attack(
            "a map that is text",
            map(b"100", b"0,x", b"01234"),
            "not a number",
        ),
        attack(
            "a sparse file of -1 bytes",
            map(b"-1", b"0,0", b""),
            "not a number",
        ),
        attack(
            "a format that there is not",
            new()
                .pax(&[(b"GNU.sparse.major", b"2"), (b"GNU.sparse.size", b"9")])
                .file("s", b"")
                .end(),
            "format is unknown",
        ),
        attack(
            "two lengths, one after the other",
            new()
                .pax(&[
                    (b"GNU.sparse.size", b"9"),
                    (b"GNU.sparse.offset", b"0"),
                    (b"GNU.sparse.numbytes", b"1"),
                    (b"GNU.sparse.numbytes", b"1"),
                ])
                .file("s", b"xx")
                .end(),
            "do not alternate",
        ),
        attack(
            "a map of 2^64 parts",
            before_data("18446744073709551615\n"),
            "too many segments",
        ),
        attack(
            "a map of more parts than it has",
            before_data("9\n0\n1\n"),
            "is refused",
        ),
        attack(
            "a number of 500 digits",
            before_data(&"9".repeat(500)),
            "a number is broken",
        ),
        attack(
            "an old map that says more follows, and ends",
            old(|h| {
                h[386] = b'0';
                h[482] = 1;
            }),
            "too many segments",
        ),
        attack(
            "an old map with a negative part",
            old(|h| h[386..398].fill(0xff)),
            "sparse offset is not a number",
        ),
        attack(
            "8 EiB, of them one byte",
            map(most, b"0,1", b"x"),
            "unpacks to more",
        ),
        attack(
            "a kernel of 8 EiB, all of it a hole",
            new()
                .pax(&[(b"GNU.sparse.size", most), (b"GNU.sparse.map", b"0,0")])
                .file("vmlinuz", b"")
                .end(),
            "unpacks to more",
        ),
    ]
}
