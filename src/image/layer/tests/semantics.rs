//! What entries become.

use super::super::{Compression, LayerPaths, Limits, convert};
use super::support::*;

#[test]
fn all_kinds_of_entries_keep_owner_mode_time_and_content() {
    let fields = |kind, mode| Fields {
        mode,
        uid: 70_000,
        gid: 3_000_000_000,
        mtime: 1_700_000_000,
        ..Fields::of(kind)
    };
    let mut link = fields(b'2', 0o777);
    link.link = b"../tmp/\xff\n".to_vec();
    let mut disk = fields(b'4', 0o660);
    disk.device = (259, 70_000);
    let mut null = fields(b'3', 0o666);
    null.device = (1, 3);
    let tar = TarBuilder::new()
        .entry(b"./", &fields(b'5', 0o700), b"")
        .entry(b"./tmp/", &fields(b'5', 0o1777), b"")
        .entry(b"/bin/su", &fields(b'0', 0o4755), b"program")
        .entry(b"bin/empty", &fields(b'\0', 0o600), b"")
        .entry(b"bin/old/", &fields(b'0', 0o711), b"")
        .entry(b"link", &link, b"")
        .entry(b"dev/disk", &disk, b"")
        .entry(b"dev/null", &null, b"")
        .entry(b"run/pipe", &fields(b'6', 0o622), b"")
        .entry(b"n\xffm\x01e", &fields(b'7', 0o444), b"x")
        .end();
    for compression in BOTH {
        let tree = make(&tar, compression).tree();
        let table: [(&[u8], char, u32, &[u8]); 10] = [
            (b"", 'd', 0o700, b""),
            (b"tmp", 'd', 0o1777, b""),
            (b"bin/su", '-', 0o4755, b"program"),
            (b"bin/empty", '-', 0o600, b""),
            (b"bin/old", 'd', 0o711, b""),
            (b"link", 'l', 0o777, b"../tmp/\xff\n"),
            (b"dev/disk", 'b', 0o660, b""),
            (b"dev/null", 'c', 0o666, b""),
            (b"run/pipe", 'p', 0o622, b""),
            (b"n\xffm\x01e", '-', 0o444, b"x"),
        ];
        for (path, kind, mode, data) in table {
            let seen = &tree[path];
            assert_eq!((seen.kind, seen.permissions), (kind, mode), "{path:?}");
            assert_eq!((seen.uid, seen.gid), (70_000, 3_000_000_000), "{path:?}");
            assert_eq!(seen.mtime, (1_700_000_000, 0), "{path:?}");
            assert_eq!(seen.data, data, "{path:?}");
        }
        assert_eq!(tree[&b"dev/disk"[..]].device, (259, 70_000));
        assert_eq!(tree[&b"dev/null"[..]].device, (1, 3));
        assert_eq!(tree[&b""[..]].links, 2 + 4);
        let implicit = &tree[&b"dev"[..]];
        assert_eq!(
            (implicit.permissions, implicit.uid, implicit.mtime),
            (0o755, 0, (0, 0))
        );
    }
}

#[test]
fn whiteouts_become_what_overlayfs_expects() {
    let tar = TarBuilder::new()
        .file(".wh.gone", b"")
        .file("etc/.wh.passwd", b"")
        .file("var/.wh..wh..opq", b"")
        .file("var/new", b"1")
        .file(".wh..wh.plnk/1.2", b"dropped")
        .file(".wh..wh.aufs", b"dropped")
        .end();
    let tree = make(&tar, Compression::Lz4).tree();
    for path in [&b"gone"[..], b"etc/passwd"] {
        let seen = &tree[path];
        assert_eq!((seen.kind, seen.device), ('c', (0, 0)));
    }
    assert_eq!(
        tree[&b"var"[..]].xattrs[&b"trusted.overlay.opaque"[..]],
        b"y"
    );
    assert!(tree[&b""[..]].xattrs.is_empty());
    let names: Vec<_> = tree
        .keys()
        .map(|name| name.escape_ascii().to_string())
        .collect();
    assert_eq!(names, ["", "etc", "etc/passwd", "gone", "var", "var/new"]);
}

#[test]
fn a_whiteout_never_hides_an_entry_of_its_own_layer() {
    for first in [true, false] {
        let whiteouts = |tar: TarBuilder| tar.file(".wh.file", b"").file(".wh.dir", b"");
        let files = |tar: TarBuilder| tar.file("file", b"new").file("dir/x", b"new");
        let tar = if first {
            files(whiteouts(TarBuilder::new()))
        } else {
            whiteouts(files(TarBuilder::new()))
        };
        let tree = make(&tar.end(), Compression::None).tree();
        assert_eq!(tree[&b"file"[..]].data, b"new");
        assert_eq!(tree[&b"dir/x"[..]].data, b"new");
        // What lower layers have in the directory stays hidden.
        assert_eq!(
            tree[&b"dir"[..]].xattrs[&b"trusted.overlay.opaque"[..]],
            b"y"
        );
    }
}

#[test]
fn an_opaque_root_is_marked_and_forged_marks_are_dropped() {
    let tar = TarBuilder::new()
        .file(".wh..wh..opq", b"")
        .pax(&[(b"SCHILY.xattr.trusted.overlay.opaque", b"y")])
        .dir("d")
        .end();
    let tree = make(&tar, Compression::None).tree();
    assert_eq!(tree[&b""[..]].xattrs.len(), 1);
    assert!(tree[&b"d"[..]].xattrs.is_empty());
}

#[test]
fn extended_attributes_and_nanoseconds_survive() {
    let capability = b"\x01\0\0\x02\n\x04\0\0\0\0\0\0\0\0\0\0\n=\n\xff";
    let many: Vec<(Vec<u8>, Vec<u8>)> = (0..200)
        .map(|i| {
            (
                format!("SCHILY.xattr.user.n{i:03}").into_bytes(),
                noise(i, 9),
            )
        })
        .collect();
    let records: Vec<(&[u8], &[u8])> = many.iter().map(|(k, v)| (&k[..], &v[..])).collect();
    let big = noise(60_000, 4);
    let tar = TarBuilder::new()
        .pax(&[
            (b"SCHILY.xattr.security.capability", capability),
            (b"SCHILY.xattr.user.empty", b""),
            (b"SCHILY.xattr.com.apple.provenance", b"dropped"),
            (b"mtime", b"1234567890.123456789"),
        ])
        .file("ping", &text(10_000, 3))
        .pax(&records)
        .file("many", &text(5_000, 3))
        .pax(&[(b"SCHILY.xattr.user.big", &big)])
        .dir("big")
        .end();
    for compression in BOTH {
        let tree = make(&tar, compression).tree();
        let ping = &tree[&b"ping"[..]];
        assert_eq!(ping.mtime, (1_234_567_890, 123_456_789));
        assert_eq!(ping.xattrs.len(), 2);
        assert_eq!(ping.xattrs[&b"security.capability"[..]], capability);
        assert_eq!(ping.data, text(10_000, 3));
        let seen = &tree[&b"many"[..]];
        assert_eq!(seen.xattrs.len(), 200);
        assert_eq!(seen.xattrs[&b"user.n150"[..]], noise(150, 9));
        assert_eq!(seen.data, text(5_000, 3));
        assert_eq!(tree[&b"big"[..]].xattrs[&b"user.big"[..]], big);
    }
}

#[test]
fn hard_links_share_an_inode_and_count_it() {
    let tar = TarBuilder::new()
        .file("a/one", &text(100_000, 5))
        .link(b'1', "two", "/a/one")
        .link(b'1', "a/three", "./two")
        .link(b'1', "two", "two")
        .link(b'2', "soft", "two")
        .link(b'1', "hard-soft", "soft")
        .end();
    let tree = make(&tar, Compression::Lz4).tree();
    for path in [&b"a/one"[..], b"two", b"a/three"] {
        assert_eq!(tree[path].links, 3);
        assert_eq!(tree[path].data, text(100_000, 5));
    }
    assert_eq!(
        (tree[&b"hard-soft"[..]].kind, tree[&b"soft"[..]].links),
        ('l', 2)
    );
}

#[test]
fn later_entries_win_and_directories_merge() {
    let mut late = Fields::of(b'5');
    (late.mode, late.uid) = (0o750, 5);
    let tar = TarBuilder::new()
        .file("file", b"old")
        .file("file", b"new")
        .file("dir/child", b"kept")
        .entry(b"dir", &late, b"")
        .file("tree/a/b", b"lost")
        .file("tree", b"a file now")
        .file("becomes", b"a file")
        .dir("becomes")
        .file("becomes/inner", b"x")
        .link(b'1', "alias", "dir/child")
        .file("dir/child", b"replaced")
        .end();
    let tree = make(&tar, Compression::None).tree();
    assert_eq!(tree[&b"file"[..]].data, b"new");
    assert_eq!(
        (tree[&b"dir"[..]].permissions, tree[&b"dir"[..]].uid),
        (0o750, 5)
    );
    assert_eq!(tree[&b"tree"[..]].data, b"a file now");
    assert!(!tree.contains_key(&b"tree/a"[..]));
    assert_eq!(tree[&b"becomes/inner"[..]].data, b"x");
    assert_eq!(tree[&b"dir/child"[..]].data, b"replaced");
    assert_eq!(
        (&tree[&b"alias"[..]].data[..], tree[&b"alias"[..]].links),
        (&b"kept"[..], 1)
    );
}

#[test]
fn directories_of_ten_thousand_entries_and_names_of_any_byte_are_found() {
    let mut tar = TarBuilder::new();
    for i in 0..12_000 {
        let pad = "x".repeat(i % 200);
        tar = tar.file(&format!("big/{i}-{pad}"), b"");
    }
    for byte in 1..=255u8 {
        if byte != b'/' && byte != b'.' {
            tar = tar.entry(&[b'b', b'/', byte], &Fields::of(b'0'), &[byte]);
        }
    }
    let longest = [b'n'; 255];
    tar = tar.entry(&longest, &Fields::of(b'0'), b"");
    let made = make(&tar.end(), Compression::Lz4);
    let tree = made.tree();
    assert_eq!(tree.len(), 1 + 1 + 12_000 + 1 + 253 + 1);
    assert_eq!(tree[&b"b/\xff"[..]].data, [0xff]);
    // Lookup by name is a binary search, which a wrong order breaks.
    let bytes = std::fs::read(made.blob()).unwrap();
    let fs = erofs_rs::EroFS::new(erofs_rs::backend::SliceImage::new(&bytes)).unwrap();
    let files = tree.keys().filter(|path| tree[*path].kind == '-');
    for path in files.step_by(97) {
        assert!(fs.open(path).is_ok(), "{}", path.escape_ascii());
    }
}

#[test]
fn an_inode_that_ends_with_its_block_can_be_the_last() {
    // 32 unused bytes, 64 + 1440 of the root, 40 inodes of 64: 4096 bytes of metadata.
    let mut tar = TarBuilder::new();
    for i in 0..40 {
        tar = tar.file(&format!("{i:023}"), b"");
    }
    assert_eq!(make(&tar.end(), Compression::None).tree().len(), 41);
}

#[test]
fn sizes_around_blocks_and_clusters_survive() {
    let sizes = [
        1, 4031, 4032, 4033, 4095, 4096, 4097, 8191, 8192, 8193, 65_535, 65_536, 65_537, 69_631,
        69_632, 69_633, 131_072, 135_167, 135_168, 200_000,
    ];
    let fills: [fn(usize, u64) -> Vec<u8>; 3] = [noise, text, |len, _| vec![0; len]];
    let mut tar = TarBuilder::new();
    for size in sizes {
        for (i, fill) in fills.iter().enumerate() {
            tar = tar.file(&format!("{size}-{i}"), &fill(size, 11));
        }
        // Compressible, not, compressible: clusters of both kinds in one file.
        let mixed = [text(65_536, 1), noise(65_536, 2), text(size, 3)].concat();
        tar = tar.file(&format!("{size}-mixed"), &mixed);
        let mixed = [noise(65_536, 1), text(65_536, 2), noise(size, 3)].concat();
        tar = tar.file(&format!("{size}-mixed2"), &mixed);
    }
    let tar = tar.end();
    for compression in BOTH {
        let tree = make(&tar, compression).tree();
        for size in sizes {
            for (i, fill) in fills.iter().enumerate() {
                let name = format!("{size}-{i}").into_bytes();
                assert!(tree[&name].data == fill(size, 11), "{size} {i}");
            }
            let mixed = [text(65_536, 1), noise(65_536, 2), text(size, 3)].concat();
            assert!(tree[format!("{size}-mixed").as_bytes()].data == mixed);
            let mixed = [noise(65_536, 1), text(65_536, 2), noise(size, 3)].concat();
            assert!(tree[format!("{size}-mixed2").as_bytes()].data == mixed);
        }
    }
}

#[test]
fn long_names_and_link_targets_survive_in_both_forms() {
    let dir = "d".repeat(200);
    let name = format!("{dir}/{dir}/{dir}/file");
    let target = "t".repeat(4095);
    let tar = TarBuilder::new()
        .file(&name, b"gnu")
        .link(b'2', &format!("{dir}/link"), &target)
        .pax(&[
            (b"path", format!("pax/{name}").as_bytes()),
            (b"linkpath", target.as_bytes()),
        ])
        .link(b'2', "short", "short")
        .pax(&[(b"uid", b"4000000000"), (b"gid", b"7"), (b"size", b"3")])
        .file("ids", b"abc")
        .end();
    let tree = make(&tar, Compression::None).tree();
    assert_eq!(tree[name.as_bytes()].data, b"gnu");
    assert_eq!(
        tree[format!("{dir}/link").as_bytes()].data,
        target.as_bytes()
    );
    assert_eq!(
        tree[format!("pax/{name}").as_bytes()].data,
        target.as_bytes()
    );
    let ids = &tree[&b"ids"[..]];
    assert_eq!(
        (ids.uid, ids.gid, &ids.data[..]),
        (4_000_000_000, 7, &b"abc"[..])
    );
}

/// The same file in the four formats: 1 MB, data at 0, at 500,000 and (3 bytes) at the end.
fn sparse_tars() -> (Vec<u8>, [Vec<u8>; 4]) {
    let size = 1_000_000u64;
    let segments = [
        (0, text(5_000, 1)),
        (500_000, noise(70_000, 2)),
        (size - 3, b"end".to_vec()),
    ];
    let mut whole = vec![0; 1_000_000];
    let mut data = Vec::new();
    let mut numbers = Vec::new();
    for (offset, bytes) in &segments {
        let at = usize::try_from(*offset).unwrap();
        whole[at..at + bytes.len()].copy_from_slice(bytes);
        data.extend(bytes);
        numbers.extend([offset.to_string(), bytes.len().to_string()]);
    }
    let size = size.to_string();
    let mut old = header(b"sparse", b'S', data.len() as u64);
    let gnu = old.as_gnu_mut().unwrap();
    for (slot, (offset, bytes)) in gnu.sparse.iter_mut().zip(&segments[..2]) {
        slot.set_offset(*offset);
        slot.set_length(bytes.len() as u64);
    }
    gnu.set_real_size(1_000_000);
    gnu.set_is_extended(true);
    old.set_cksum();
    let mut more = tar::GnuExtSparseHeader::new();
    more.sparse_mut()[0].set_offset(999_997);
    more.sparse_mut()[0].set_length(3);
    let mut old_data = more.as_bytes().to_vec();
    old_data.extend(&data);
    let keys: [&[u8]; 2] = [b"GNU.sparse.offset", b"GNU.sparse.numbytes"];
    let zero: Vec<(&[u8], &[u8])> = (0..6)
        .map(|i| (keys[i % 2], numbers[i].as_bytes()))
        .collect();
    let zero = [&[(&b"GNU.sparse.size"[..], size.as_bytes())][..], &zero].concat();
    let one = numbers.join(",");
    let mut map = format!("3\n{}\n", numbers.join("\n")).into_bytes();
    map.resize(map.len().next_multiple_of(512), 0);
    map.extend(&data);
    let tars = [
        TarBuilder::new().record(&old, &old_data).end(),
        TarBuilder::new().pax(&zero).file("sparse", &data).end(),
        TarBuilder::new()
            .pax(&[
                (b"GNU.sparse.size", size.as_bytes()),
                (b"GNU.sparse.map", one.as_bytes()),
            ])
            .file("sparse", &data)
            .end(),
        TarBuilder::new()
            .pax(&[
                (b"GNU.sparse.major", b"1"),
                (b"GNU.sparse.minor", b"0"),
                (b"GNU.sparse.name", b"sparse"),
                (b"GNU.sparse.realsize", size.as_bytes()),
            ])
            .file("GNUSparseFile.0/sparse", &map)
            .end(),
    ];
    (whole, tars)
}

#[test]
fn sparse_files_of_all_four_formats_keep_their_holes() {
    let (whole, tars) = sparse_tars();
    for (i, tar) in tars.iter().enumerate() {
        let made = make(tar, Compression::Lz4);
        assert!(made.tree()[&b"sparse"[..]].data == whole, "format {i}");
        assert!(
            made.report.blob_size < 120_000,
            "format {i}: the holes were stored"
        );
    }
}

#[test]
fn a_huge_sparse_file_takes_little_space() {
    let size = (1u64 << 40).to_string();
    let map = format!("{},4", (1u64 << 40) - 10);
    let tar = TarBuilder::new()
        .pax(&[
            (b"GNU.sparse.size", size.as_bytes()),
            (b"GNU.sparse.map", map.as_bytes()),
        ])
        .file("lastlog", b"last")
        .end();
    let dir = tempfile::tempdir().unwrap();
    let [blob, kernel, initrd] = ["blob", "kernel", "initrd"].map(|name| dir.path().join(name));
    let paths = LayerPaths {
        blob: &blob,
        kernel: &kernel,
        initrd: &initrd,
    };
    // Without fsck, which would read all of the terabyte.
    let (limits, lz4) = (Limits::default(), Compression::Lz4);
    let converted = convert(&mut &tar[..], lz4, &limits, &paths).unwrap();
    let report = converted.finish(UUID).unwrap();
    assert!(report.blob_size < 8 << 20, "{report:?}");
    let bytes = std::fs::read(&blob).unwrap();
    let fs = erofs_rs::EroFS::new(erofs_rs::backend::SliceImage::new(&bytes)).unwrap();
    let file = fs.open("/lastlog").unwrap();
    let mut end = [1; 12];
    assert_eq!(file.read_at(&mut end, (1 << 40) - 12).unwrap(), 12);
    assert_eq!(&end, b"\0\0last\0\0\0\0\0\0");
}

#[test]
fn boot_files_are_copied_out_and_the_last_one_stays() {
    let kernel = text(150_000, 1);
    let tar = TarBuilder::new()
        .file(
            "boot/vmlinuz-6.1",
            b"older, and longer than what follows it",
        )
        .file("boot/initrd.img-6.1", b"initrd")
        .file("boot/vmlinuz.old", b"old")
        .link(b'2', "vmlinuz", "boot/vmlinuz-6.1")
        .file("./boot/vmlinuz-6.2", &kernel)
        .link(b'1', "boot/vmlinuz-9", "boot/vmlinuz-6.1")
        .file("usr/vmlinuz", b"elsewhere")
        .end();
    let made = make(&tar, Compression::Lz4);
    assert!(made.report.has_kernel && made.report.has_initrd);
    assert_eq!(made.report.entries, 7);
    assert!(made.kernel() == kernel);
    assert_eq!(made.initrd(), b"initrd");
    let none = make(&TarBuilder::new().file("a", b"").end(), Compression::Lz4);
    assert!(!none.report.has_kernel && !none.report.has_initrd);
}

#[test]
fn the_last_kernel_stays_also_when_it_is_shorter_or_sparse() {
    let (_, tars) = sparse_tars();
    let tar = TarBuilder::new()
        .file("vmlinuz", &noise(9_000, 1))
        .file("vmlinuz", b"short")
        .end();
    assert_eq!(make(&tar, Compression::None).kernel(), b"short");
    let map = b"5,3";
    let tar = TarBuilder::new()
        .file("vmlinuz", &noise(9_000, 1))
        .pax(&[(b"GNU.sparse.size", b"12"), (b"GNU.sparse.map", map)])
        .file("vmlinuz", b"abc")
        .end();
    assert_eq!(
        make(&tar, Compression::None).kernel(),
        b"\0\0\0\0\0abc\0\0\0\0"
    );
    assert!(!make(&tars[0], Compression::None).report.has_kernel);
}

#[test]
fn the_same_layer_gives_the_same_bytes_and_another_uuid_others() {
    let mut tar = TarBuilder::new();
    for i in 0..300 {
        let name = format!("{}/{}", i % 7, (i * 7919) % 1000);
        tar = tar
            .file(&name, &text(i * 100, i as u64))
            .file(&format!("{}/.wh..wh..opq", i % 7), b"");
    }
    let tar = tar.end();
    for compression in BOTH {
        let [a, b] = [0; 2].map(|_| std::fs::read(make(&tar, compression).blob()).unwrap());
        assert!(a == b);
        assert_eq!(a[1024 + 48..][..16], UUID);
    }
}

#[test]
fn an_empty_layer_and_what_follows_an_archive_are_read() {
    for tar in [Vec::new(), vec![0; 512], vec![0; 1024], vec![0; 10_240]] {
        let made = make(&tar, Compression::Lz4);
        assert_eq!(made.report.entries, 0);
        assert_eq!(made.tree().len(), 1);
    }
    let mut tar = TarBuilder::new().file("a", b"1").end();
    tar.extend(noise(100_001, 1));
    assert_eq!(make(&tar, Compression::Lz4).tree().len(), 2);
    // An archive without an end record ends with its stream, as for other tar programs.
    let tar = TarBuilder::new().file("a", b"1").cut();
    assert_eq!(make(&tar, Compression::Lz4).tree().len(), 2);
}

#[test]
fn a_git_comment_in_a_global_header_is_ignored() {
    let comment = pax_record(b"comment", b"0123456789");
    let head = header(b"pax_global_header", b'g', comment.len() as u64);
    let tar = TarBuilder::new()
        .record(&head, &comment)
        .file("a", b"1")
        .end();
    assert_eq!(make(&tar, Compression::None).tree()[&b"a"[..]].data, b"1");
}
