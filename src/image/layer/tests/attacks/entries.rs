//! Entries that lead out, hide one another, or are nothing that a file system has.

use super::*;

pub(super) fn names() -> Vec<Attack> {
    let long_path = ["p/"; 2100].concat();
    let below_ten_folders = ["../"; 10].concat();
    vec![
        attack(
            "a name that leads out",
            new().file("../out", b"x").end(),
            "\"../out\" is refused: its name leaves the root",
        ),
        attack(
            "one that does so in its middle",
            new().file("a/../../out", b"x").end(),
            "leaves the root",
        ),
        attack(
            "one that does so behind the root",
            new().file("/../out", b"x").end(),
            "leaves the root",
        ),
        attack(
            "one that leads far out, into the host's /etc",
            new().file(&format!("{below_ten_folders}etc/x"), b"x").end(),
            "leaves the root",
        ),
        attack(
            "a folder that is the one above",
            new().dir("..").end(),
            "leaves the root",
        ),
        attack(
            "one that leads out by a PAX record",
            pax("path", b"../out"),
            "leaves the root",
        ),
        attack(
            "one that leads out by a sparse file's own name",
            new()
                .pax(&[(b"GNU.sparse.name", b"../out"), (b"GNU.sparse.size", b"0")])
                .file("fine", b"")
                .end(),
            "leaves the root",
        ),
        attack(
            "one that leads out by the POSIX prefix",
            raw(|h| {
                h[257..265].copy_from_slice(b"ustar\x0000");
                h[345..347].copy_from_slice(b"..");
            }),
            "\"../raw\" is refused: its name leaves",
        ),
        attack(
            "a name of 256 bytes",
            new().file(&"n".repeat(256), b"").end(),
            "more than 255 bytes",
        ),
        attack(
            "a path of 4200 bytes",
            new().file(&long_path, b"").end(),
            "more than 4096 bytes",
        ),
        attack("no name", new().file("", b"").end(), "is empty"),
        attack(
            "a NUL in a PAX name",
            pax("path", b"a\0b"),
            "\"a\\0b\" is refused: its name has a NUL",
        ),
        attack(
            "a NUL in a GNU name",
            extension(b'L', 4, b"a\0b\0"),
            "has a NUL",
        ),
        attack(
            "a name that moves the cursor, of an entry that is refused",
            pax("path", b"../\x1b[2J\n"),
            "\"../\\u{1b}[2J\\n\" is refused",
        ),
        attack("a newline in a name", pax("path", b"a\nb"), ACCEPTED),
        attack(
            "a name that is no UTF-8",
            pax("path", b"\xff\xfe\x80"),
            ACCEPTED,
        ),
        attack(
            "data of the root folder",
            new().file("./", b"data").end(),
            "has data but is no file",
        ),
        attack(
            "a root folder that is a link",
            new().link(b'2', "/", "x").end(),
            "only a directory can be the root",
        ),
    ]
}

#[expect(clippy::too_many_lines, reason = "a table")]
pub(super) fn links() -> Vec<Attack> {
    vec![
        attack(
            "a file through a link that leads out",
            new().link(b'2', "ln", "/etc").file("ln/passwd", b"x").end(),
            "\"ln/passwd\" is refused: it lies below a symbolic link",
        ),
        attack(
            "a folder through such a link",
            new().link(b'2', "ln", "/etc").dir("ln/sub").end(),
            "below a symbolic link",
        ),
        attack(
            "a whiteout through such a link",
            new()
                .link(b'2', "ln", "/etc")
                .file("ln/.wh.passwd", b"")
                .end(),
            "below a symbolic link",
        ),
        attack(
            "an opaque mark through such a link",
            new()
                .link(b'2', "ln", "/etc")
                .file("ln/.wh..wh..opq", b"")
                .end(),
            "below a symbolic link",
        ),
        attack(
            "a hard link through such a link",
            new()
                .file("f", b"")
                .link(b'2', "ln", "/etc")
                .link(b'1', "ln/f", "f")
                .end(),
            "below a symbolic link",
        ),
        attack(
            "a kernel through a link to itself",
            new()
                .link(b'2', "boot", "boot")
                .file("boot/vmlinuz", b"k")
                .end(),
            "below a symbolic link",
        ),
        attack(
            "a kernel through links that go round",
            new()
                .link(b'2', "boot", "b/oot")
                .link(b'2', "b", "boot")
                .file("boot/vmlinuz", b"k")
                .end(),
            "below a symbolic link",
        ),
        attack(
            "a folder that becomes a link, then has a file",
            new()
                .dir("d")
                .link(b'2', "d", "/etc")
                .file("d/passwd", b"x")
                .end(),
            "below a symbolic link",
        ),
        attack(
            "a file that has a file",
            new().file("f", b"").file("f/x", b"").end(),
            "below a file",
        ),
        attack(
            "a hard link to nothing",
            new().link(b'1', "hard", "nowhere").end(),
            "\"hard\" is refused: it is a hard link to what",
        ),
        attack(
            "a hard link to a file of the host",
            new().link(b'1', "hard", "../../etc/shadow").end(),
            "leaves the root",
        ),
        attack(
            "a hard link to an absolute name",
            new().link(b'1', "hard", "/etc/shadow").end(),
            "hard link to what",
        ),
        attack(
            "a hard link through a symbolic one",
            new()
                .link(b'2', "ln", "/etc")
                .link(b'1', "hard", "ln/shadow")
                .end(),
            "hard link to what",
        ),
        attack(
            "a hard link to what comes later",
            new().link(b'1', "later", "f").file("f", b"").end(),
            "hard link to what",
        ),
        attack(
            "a hard link to itself",
            new().link(b'1', "self", "self").end(),
            "hard link to what",
        ),
        attack(
            "two hard links to each other",
            new().link(b'1', "a", "b").link(b'1', "b", "a").end(),
            "hard link to what",
        ),
        attack(
            "a hard link to a folder",
            new().dir("d").link(b'1', "hard", "d").end(),
            "hard link to a directory",
        ),
        attack(
            "a hard link into its own folder",
            new().dir("d").link(b'1', "d/hard", "d").end(),
            "hard link to a directory",
        ),
        attack(
            "a hard link to the root",
            new().link(b'1', "root", "/").end(),
            "hard link to a directory",
        ),
        attack(
            "a hard link in the root's place",
            new().file("f", b"").link(b'1', "/", "f").end(),
            "only a directory can be the root",
        ),
        attack(
            "a hard link to a whiteout",
            new().file(".wh.gone", b"").link(b'1', "hard", "gone").end(),
            "hard link to what",
        ),
        attack(
            "a link without a target",
            new().link(b'2', "ln", "").end(),
            "link target is empty",
        ),
        attack(
            "a link to a path of 4096 bytes",
            new().link(b'2', "ln", &"t".repeat(4096)).end(),
            "too long",
        ),
        attack(
            "a NUL in a link",
            new()
                .pax(&[(b"linkpath", b"a\0b")])
                .link(b'2', "ln", "x")
                .end(),
            "has a NUL",
        ),
        attack(
            "links that go round, which mean something in the guest alone",
            new().link(b'2', "a", "b").link(b'2', "b", "a").end(),
            ACCEPTED,
        ),
        attack(
            "a kernel that is a link to a file of the host",
            new().link(b'2', "boot/vmlinuz", "/etc/shadow").end(),
            ACCEPTED,
        ),
    ]
}

pub(super) fn whiteouts() -> Vec<Attack> {
    vec![
        attack(
            "a whiteout of nothing",
            new().file(".wh.", b"").end(),
            "whiteout",
        ),
        attack(
            "a whiteout of the folder",
            new().file(".wh..", b"").end(),
            "whiteout",
        ),
        attack(
            "a whiteout of the folder above",
            new().file("a/.wh...", b"").end(),
            "whiteout",
        ),
        attack(
            "a file below a whiteout",
            new().file(".wh.a/b", b"").end(),
            "whiteout",
        ),
        attack(
            "a whiteout that leads out",
            new().file(".wh.a/../../b", b"").end(),
            "leaves the root",
        ),
        attack(
            "an opaque mark below a whiteout",
            new().file(".wh.a/.wh..wh..opq", b"").end(),
            "whiteout",
        ),
        attack(
            "an opaque mark of a file",
            new().file("f", b"").file("f/.wh..wh..opq", b"").end(),
            "below a file",
        ),
        attack(
            "an opaque mark of the root, twice",
            new()
                .file(".wh..wh..opq", b"")
                .file("./.wh..wh..opq", b"")
                .end(),
            ACCEPTED,
        ),
        attack(
            "an opaque mark that is forged by an attribute, and real",
            new()
                .pax(&[(b"SCHILY.xattr.trusted.overlay.opaque", b"y")])
                .dir("d")
                .file("d/.wh..wh..opq", b"")
                .end(),
            ACCEPTED,
        ),
        attack(
            "a whiteout that is forged by a device 0:0, with a file below",
            new()
                .entry(b"gone", &Fields::of(b'3'), b"")
                .file("gone/x", b"")
                .end(),
            ACCEPTED,
        ),
        attack(
            "an opaque mark on top of 64 KiB of attributes",
            new()
                .pax(&[(b"SCHILY.xattr.user.x", &[1; 65_520])])
                .dir("d")
                .file("d/.wh..wh..opq", b"")
                .end(),
            "more than 64 KiB",
        ),
    ]
}

pub(super) fn kinds() -> Vec<Attack> {
    let device = |kind, device| {
        let mut fields = Fields::of(kind);
        fields.device = device;
        new().entry(b"dev", &fields, b"").end()
    };
    let kinds = [b'0', b'5', b'2', b'3', b'6', b'4', b'5', b'0'];
    let turns = kinds.iter().fold(new(), |tar, kind| {
        let mut fields = Fields::of(*kind);
        fields.link = b"/etc/passwd".to_vec();
        tar.entry(b"turncoat", &fields, b"")
    });
    let mut many = new();
    for _ in 0..1000 {
        many = many.file("same", b"x").dir("same").file("same/below", b"");
    }
    vec![
        attack(
            "a major number of 5000",
            device(b'3', (5000, 1)),
            "12 bits of major",
        ),
        attack(
            "a minor number of 2^20",
            device(b'4', (1, 1 << 20)),
            "20 of minor",
        ),
        attack(
            "a negative device number",
            raw(|h| {
                h[156] = b'3';
                h[329..337].fill(0xff);
            }),
            "device number is not a number that fits",
        ),
        attack(
            "a device number that is text",
            raw(|h| {
                h[156] = b'4';
                h[337..345].copy_from_slice(b"nonsense");
            }),
            "device number is not a number",
        ),
        attack(
            "several volumes",
            new().entry(b"odd", &Fields::of(b'M'), b"").end(),
            "type 'M'",
        ),
        attack(
            "a kind that no program knows",
            new().entry(b"odd", &Fields::of(0xff), b"").end(),
            "are not supported",
        ),
        attack(
            "data of a folder",
            new().entry(b"dir", &Fields::of(b'5'), b"data").end(),
            "has data but is no file",
        ),
        attack(
            "data of a pipe",
            new().entry(b"pipe", &Fields::of(b'6'), b"data").end(),
            "has data but is no file",
        ),
        attack(
            "a name that is one thing after another",
            turns.end(),
            ACCEPTED,
        ),
        attack(
            "a name that is file and folder in turn, 1000 times",
            many.end(),
            ACCEPTED,
        ),
    ]
}
