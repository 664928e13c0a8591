//! Layers that are too large, and streams that end where they must not.

use super::*;

/// Each stops at a limit, which is small so that it does so soon.
#[expect(clippy::too_many_lines, reason = "a table")]
pub(super) fn bombs() -> Vec<Attack> {
    let limits = Limits {
        max_bytes: 1_000_000,
        max_entries: 50,
        max_metadata_bytes: 10_000,
    };
    let bomb = |what, tar, sentence| Attack {
        what,
        tar,
        limits,
        sentence,
    };
    let zeros = vec![0; 600_000];
    let repeated =
        |count, add: &dyn Fn(TarBuilder, usize) -> TarBuilder| (0..count).fold(new(), add).end();
    let xattr: (&[u8], &[u8]) = (b"SCHILY.xattr.user.x", &[1; 4000]);
    // Every byte of it costs a chunk.
    let map: Vec<String> = (0..300).map(|i| format!("{},1", i * 8192)).collect();
    let mut behind = new().file("f", b"").end();
    behind.resize(2 << 20, 0);
    vec![
        bomb(
            "two files that are too large together",
            new().file("a", &zeros).file("b", &zeros).end(),
            "\"b\" is refused: with it the layer unpacks",
        ),
        bomb(
            "one that replaces another, which gives no byte back",
            new().file("a", &zeros).file("a", &zeros).end(),
            "unpacks to more",
        ),
        bomb(
            "60 folders in each other",
            new().dir(&["d/"; 60].concat()).end(),
            "more than 50 files",
        ),
        bomb(
            "60 names of a file",
            repeated(60, &|tar, i| match i {
                0 => tar.file("f", b""),
                i => tar.link(b'1', &format!("l{i}"), "f"),
            }),
            "more than 50 files",
        ),
        bomb(
            "60 whiteouts",
            repeated(60, &|tar, i| tar.file(&format!(".wh.{i}"), b"")),
            "more than 50 files",
        ),
        bomb(
            "a name that 60 files have in turn",
            repeated(60, &|tar, _| tar.file("f", b"")),
            "more than 50 files",
        ),
        bomb(
            "attributes of a few files",
            repeated(4, &|tar, i| {
                tar.pax(&[xattr]).file(["a", "b", "c", "a"][i], b"")
            }),
            "names and attributes",
        ),
        bomb(
            "attributes that a folder has in turn",
            repeated(4, &|tar, _| tar.pax(&[xattr]).dir("d")),
            "names and attributes",
        ),
        bomb(
            "links to long targets",
            repeated(60, &|tar, i| {
                tar.link(b'2', &format!("l{i}"), &"t".repeat(4000))
            }),
            "more than 50 files",
        ),
        bomb(
            "a byte of data in every second chunk",
            new()
                .pax(&[
                    (b"GNU.sparse.size", b"9000000"),
                    (b"GNU.sparse.map", map.join(",").as_bytes()),
                ])
                .file("s", &[1; 300])
                .end(),
            "unpacks to more",
        ),
        bomb(
            "data of whiteouts, which is skipped",
            repeated(3, &|tar, _| tar.file(".wh.a", &zeros)),
            "more than 1204800 bytes",
        ),
        bomb(
            "zeros behind the archive",
            behind,
            "at entry \"(end)\": it has more than 1204800 bytes",
        ),
        bomb(
            "one folder, over and over",
            repeated(2500, &|tar, _| tar.dir("d")),
            "more than 1204800 bytes",
        ),
        bomb(
            "comments, over and over",
            repeated(1500, &|tar, _| {
                tar.record(&header(b"g", b'g', 16), b"16 comment=hello")
                    .record(&header(b"g", b'g', 0), b"")
            }),
            "is malformed",
        ),
        bomb(
            "headers that mean nothing, over and over",
            repeated(2500, &|tar, _| tar.record(&header(b"g", b'g', 0), b"")),
            "more than 1204800 bytes",
        ),
    ]
}

pub(super) fn ends() -> Vec<Attack> {
    let one = new().file("f", &noise(700, 1)).cut();
    vec![
        attack(
            "an end in the middle of a header",
            one[..300].to_vec(),
            "ends within",
        ),
        attack(
            "an end in the middle of data",
            one[..900].to_vec(),
            "ends within entry \"f\"",
        ),
        attack(
            "an end in the middle of padding",
            one[..1300].to_vec(),
            "ends within entry \"f\"",
        ),
        attack(
            "an entry behind half of an end",
            [&one[..], &[0; 512], &one].concat(),
            "an end-of-archive record stands alone",
        ),
        attack(
            "an entry behind the end, which other programs see",
            [&one[..], &[0; 1024], &one].concat(),
            ACCEPTED,
        ),
        attack("no end", one, ACCEPTED),
    ]
}
