//! Disks as installers make them, and as nobody should.

use std::error::Error as _;

use proptest::prelude::*;

use super::*;

mod fixture;
mod tables;

use fixture::{BOOT, Disk, ROOT, Tree, environment, noise};

/// What Debian 12's own scripts make (see `grub/menu/tests.rs`).
const DEBIAN: &str = include_str!("tests/samples/debian12.cfg");
const DEBIAN_SAVED: &str = include_str!("tests/samples/debian12-saved.cfg");
const UBUNTU: &str = include_str!("tests/samples/ubuntu2404-cloud.cfg");
const FEDORA: &str = include_str!("tests/samples/fedora39.cfg");

/// Debian's cloud images: the root is partition 1, and lies behind those of BIOS and UEFI.
const DEBIAN_TABLE: &str = "label: gpt\n\
    1: start=8192, size=57344, type=linux, uuid=99999999-8888-7777-6666-555555555555\n\
    14: start=2048, size=2048, type=21686148-6449-6E6F-744E-656564454649\n\
    15: start=4096, size=4096, type=uefi\n";

fn found(disk: &Disk) -> Installed {
    find(&disk.open()).unwrap()
}

fn error(disk: &Disk) -> String {
    let error = find(&disk.open()).unwrap_err();
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

fn kernel(installed: &Installed) -> Vec<u8> {
    let mut bytes = Vec::new();
    let size = installed.copy_kernel(&mut bytes).unwrap();
    assert_eq!(
        (size, installed.kernel.size),
        (bytes.len() as u64, bytes.len() as u64)
    );
    bytes
}

fn initrd(installed: &Installed) -> Vec<u8> {
    let mut bytes = Vec::new();
    let size = installed.copy_initrd(&mut bytes).unwrap();
    assert_eq!(size, bytes.len() as u64);
    bytes
}

/// A disk of one ext4 without partitions.
fn whole(tree: &Tree) -> Disk {
    Disk::new(32).ext4(0, 32, ROOT, tree, &["-b", "4096"])
}

#[test]
fn a_debian_disk_boots_what_its_grub_cfg_says() {
    if !fixture::can_make_disks() {
        return;
    }
    let tree = Tree::root()
        .kernels("boot/")
        .file("boot/grub/grub.cfg", DEBIAN);
    for options in [
        &["-b", "4096"][..],
        &["-b", "1024", "-O", "^metadata_csum,^64bit"],
        &["-O", "^has_journal,^extent,^metadata_csum,^64bit"],
    ] {
        let disk = Disk::partitioned(40, DEBIAN_TABLE).ext4(8192, 28, ROOT, &tree, options);
        fixture::run("mkfs.vfat", &["--offset=4096", disk.path(), "2048"], "");
        let installed = found(&disk);
        assert_eq!(installed.title, "Debian GNU/Linux");
        assert_eq!(
            installed.kernel.to_string(),
            "/boot/vmlinuz-6.1.0-13-amd64 of partition 1"
        );
        let expected = format!("{{console}} root=UUID={ROOT} ro consoleblank=0 quiet");
        assert_eq!(installed.cmdline, expected);
        assert!(kernel(&installed) == noise(13, 2_500_000), "another kernel");
        assert!(initrd(&installed) == noise(14, 3_000_001), "another initrd");
    }
}

#[test]
fn the_entry_that_was_saved_boots_and_a_new_choice_counts_at_once() {
    if !fixture::can_make_disks() {
        return;
    }
    let id = format!("gnulinux-advanced-{ROOT}>gnulinux-6.1.0-9-amd64-advanced-{ROOT}");
    let tree = Tree::root()
        .kernels("boot/")
        .file("boot/grub/grub.cfg", DEBIAN_SAVED)
        .file(
            "boot/grub/grubenv",
            environment(&format!("saved_entry={id}")),
        );
    let disk = whole(&tree);
    let installed = found(&disk);
    assert_eq!(
        installed.title,
        "Debian GNU/Linux, with Linux 6.1.0-9-amd64"
    );
    assert_eq!(
        (installed.kernel.partition, kernel(&installed)),
        (None, noise(9, 1000))
    );
    assert_eq!(initrd(&installed), noise(10, 1001));
    let block = tree.file("new", environment("saved_entry=0"));
    let tree = block.file("boot/grub/grubenv", environment("saved_entry=0"));
    assert_eq!(found(&whole(&tree)).title, "Debian GNU/Linux");
}

#[test]
fn an_ubuntu_disk_has_its_kernels_on_a_partition_of_their_own() {
    if !fixture::can_make_disks() {
        return;
    }
    let table = "label: gpt\n\
        1: start=34816, size=16384, type=linux, uuid=0a1b2c3d-0000-4000-8000-00000000000f\n\
        16: start=2048, size=32768, type=BC13C2FF-59E6-4262-A352-B275FD6F7172\n";
    let boot = Tree::new()
        .file("grub/grub.cfg", UBUNTU)
        .file("grub/grubenv", environment(""))
        .file("vmlinuz-6.8.0-31-generic", noise(1, 100_000))
        .file("initrd.img-6.8.0-31-generic", noise(2, 1_100_000))
        .file("microcode.cpio", noise(3, 1001))
        .link("vmlinuz", "vmlinuz-6.8.0-31-generic");
    // What a root may have as well: the folder that is mounted over, and links into it.
    let root = Tree::root()
        .link("vmlinuz", "boot/vmlinuz")
        .file("boot/readme", "empty");
    let disk = Disk::partitioned(32, table)
        .ext4(2048, 16, BOOT, &boot, &[])
        .ext4(34816, 8, ROOT, &root, &[]);
    let installed = found(&disk);
    assert_eq!(installed.title, "Ubuntu");
    assert_eq!(
        installed.kernel.to_string(),
        "/vmlinuz-6.8.0-31-generic of partition 16"
    );
    let root = "root=PARTUUID=0a1b2c3d-0000-4000-8000-00000000000f";
    assert_eq!(installed.cmdline, format!("{{console}} {root} ro"));
    // The second begins where the kernel looks for it.
    let parts = [noise(3, 1001), vec![0; 3], noise(2, 1_100_000)].concat();
    assert!(
        initrd(&installed) == parts,
        "the initrds are not one behind the other"
    );
    assert_eq!(kernel(&installed), noise(1, 100_000));
}

/// A `/boot` of Fedora with two kernels.
fn fedora() -> Tree {
    let entry = |version: &str, options: &str| {
        format!(
            "title Fedora Linux ({version}) 39 (Cloud Edition)\nversion {version}\n\
             linux /vmlinuz-{version}\ninitrd /initramfs-{version}.img $tuned_initrd\noptions {options}\n\
             grub_users $grub_users\ngrub_arg --unrestricted\ngrub_class fedora\n"
        )
    };
    let [old, new] = ["6.5.6-300.fc39.x86_64", "6.5.10-300.fc39.x86_64"];
    let options =
        "root=UUID=55555555-2222-3333-4444-555555555555 ro rootflags=subvol=root console=ttyS0";
    Tree::new()
        .file(&format!("vmlinuz-{old}"), noise(1, 1000))
        .file(&format!("initramfs-{old}.img"), noise(2, 1000))
        .file(&format!("vmlinuz-{new}"), noise(3, 1000))
        .file(&format!("initramfs-{new}.img"), noise(4, 1000))
        .file(
            &format!("loader/entries/0a1b-{old}.conf"),
            entry(old, options),
        )
        .file(
            &format!("loader/entries/0a1b-{new}.conf"),
            entry(new, "$kernelopts $tuned_params"),
        )
}

#[test]
fn a_fedora_disk_boots_though_its_root_is_no_ext4() {
    if !fixture::can_make_disks() {
        return;
    }
    let table = "label: gpt\n1: start=2048, size=2048, type=uefi\n2: start=4096, size=32768, type=linux\n\
                 3: start=36864, size=16384, type=linux\n";
    let disk = |tree: &Tree| Disk::partitioned(32, table).ext4(4096, 16, BOOT, tree, &[]);
    let with_grub = || fedora().file("grub2/grub.cfg", FEDORA);

    let newest = found(&disk(&with_grub()));
    assert_eq!(
        newest.title,
        "Fedora Linux (6.5.10-300.fc39.x86_64) 39 (Cloud Edition)"
    );
    let root = "root=UUID=55555555-2222-3333-4444-555555555555 ro rootflags=subvol=root";
    assert_eq!(newest.cmdline, format!("{{console}} {root}"));
    assert_eq!(
        (kernel(&newest), initrd(&newest)),
        (noise(3, 1000), noise(4, 1000))
    );

    let saved = environment("saved_entry=0a1b-6.5.6-300.fc39.x86_64\nboot_success=1");
    let old = found(&disk(&with_grub().file("grub2/grubenv", &saved)));
    assert_eq!(old.kernel.path, "/vmlinuz-6.5.6-300.fc39.x86_64");
    assert_eq!(old.cmdline, format!("{{console}} {root}"));

    // As where grub.cfg is on the partition of UEFI.
    let entries_alone = found(&disk(&fedora().file("grub2/grubenv", &saved)));
    assert_eq!(entries_alone.kernel.path, "/vmlinuz-6.5.6-300.fc39.x86_64");

    // The new entry's options are in nobody's environment, and nothing else tells of a root.
    let title = "Fedora Linux (6.5.10-300.fc39.x86_64) 39 (Cloud Edition)";
    assert_eq!(
        error(&disk(&fedora())),
        format!(
            "{title:?} does not say where its root file system is, and the disk has none that cocoon reads"
        )
    );
}

#[test]
fn entries_of_a_root_without_a_boot_partition_have_its_folder_in_their_paths() {
    if !fixture::can_make_disks() {
        return;
    }
    let entry = "title AlmaLinux (4.18.0) 8\nlinux /boot/vmlinuz-4.18.0\ninitrd /boot/initramfs-4.18.0.img\n\
                 options $kernelopts $tuned_params\n";
    let kernelopts = "kernelopts=root=/dev/sda1 ro crashkernel=auto";
    let tree = Tree::root()
        .file("boot/loader/entries/a-4.18.0.conf", entry)
        .file("boot/grub2/grubenv", environment(kernelopts))
        .file("boot/vmlinuz-4.18.0", "kernel")
        .file("boot/initramfs-4.18.0.img", "initrd");
    let table = "label: dos\nlabel-id: 0x1234abcd\n1: start=2048, size=32768, type=83, bootable\n";
    let installed = found(&Disk::partitioned(20, table).ext4(2048, 16, ROOT, &tree, &[]));
    assert_eq!(installed.title, "AlmaLinux (4.18.0) 8");
    assert_eq!(
        installed.cmdline,
        format!("{{console}} root=UUID={ROOT} ro crashkernel=auto")
    );
    assert_eq!(
        (kernel(&installed), initrd(&installed)),
        (b"kernel".to_vec(), b"initrd".to_vec())
    );
}

#[test]
fn without_a_configuration_the_newest_kernel_boots() {
    if !fixture::can_make_disks() {
        return;
    }
    let tree = Tree::root()
        .kernels("boot/")
        .file("boot/vmlinuz-6.1.0-20-amd64.old", "no");
    let installed = found(&whole(&tree));
    assert_eq!(
        installed.title,
        "Debian GNU/Linux 12 (bookworm), with Linux 6.1.0-13-amd64"
    );
    assert_eq!(
        installed.cmdline,
        format!("{{console}} ro root=UUID={ROOT}")
    );
    assert_eq!(
        installed.kernel.to_string(),
        "/boot/vmlinuz-6.1.0-13-amd64 of the disk"
    );
    assert!(initrd(&installed) == noise(14, 3_000_001), "another initrd");
}

#[test]
fn a_kernel_without_an_initrd_is_told_a_root_that_it_finds_alone() {
    if !fixture::can_make_disks() {
        return;
    }
    let tree = Tree::root().file("boot/vmlinuz", "kernel");
    let installed = found(&whole(&tree));
    assert_eq!(installed.cmdline, "{console} ro root=/dev/vda");
    assert_eq!(
        (installed.title.as_str(), initrd(&installed).len()),
        ("Debian GNU/Linux 12 (bookworm)", 0)
    );
    let disk = Disk::partitioned(40, DEBIAN_TABLE).ext4(8192, 28, ROOT, &tree, &[]);
    let expected = "{console} ro root=PARTUUID=99999999-8888-7777-6666-555555555555";
    assert_eq!(found(&disk).cmdline, expected);
}

#[test]
fn links_are_followed_within_the_file_system_and_never_out_of_it() {
    if !fixture::can_make_disks() {
        return;
    }
    let config = "menuentry a { linux /boot/vmlinuz root=a }";
    let tree = |target: &str| {
        Tree::root()
            .file("boot/real/kernel", "kernel")
            .file("boot/grub/grub.cfg", config)
            .link("boot/here", "/boot/real")
            .link("boot/loop", "loop")
            .link("boot/vmlinuz", target)
    };
    for target in [
        "real/kernel",
        "/boot/real/kernel",
        "here/kernel",
        "../../../../boot//./here/../real/kernel",
    ] {
        let installed = found(&whole(&tree(target)));
        assert_eq!(installed.kernel.path, "/boot/real/kernel", "{target}");
    }
    for target in [
        "loop",
        "loop/a",
        "../../../../../etc/hostname",
        "real",
        "real/kernel/x",
        "none",
        "here/none",
    ] {
        let expected = "\"a\" boots /boot/vmlinuz, which is not on the disk";
        assert_eq!(error(&whole(&tree(target))), expected, "{target}");
    }
}

#[test]
fn what_cannot_be_booted_is_said() {
    if !fixture::can_make_disks() {
        return;
    }
    let config = |text: &str| {
        Tree::root()
            .file("boot/grub/grub.cfg", text)
            .file("boot/vmlinuz", "")
    };
    let table = [
        (
            Tree::root(),
            "\"Debian GNU/Linux 12 (bookworm)\" is on the disk, without a kernel in its /boot",
        ),
        (
            Tree::new(),
            "the disk has no partition with an operating system (found: ext4)",
        ),
        (
            config("menuentry 'Windows' { chainloader +1 }"),
            "the boot loader would start \"Windows\", which boots no Linux kernel",
        ),
        (
            config("menuentry a { linux /boot/none }"),
            "\"a\" boots /boot/none, which is not on the disk",
        ),
        (
            config("menuentry a { linux /boot/vmlinuz\ninitrd /none }"),
            "\"a\" boots /none, which is not on the disk",
        ),
        (
            config("\nmenuentry a { linux 'x }"),
            "cannot follow the boot loader's /boot/grub/grub.cfg: line 2 is not understood: a quote is not closed",
        ),
        (
            config(&format!(
                "menuentry a {{ linux /boot/vmlinuz {} }}",
                "x".repeat(2048)
            )),
            "the kernel command line of \"a\" has more than 1984 bytes",
        ),
        (
            config("menuentry a { linux /boot/vmlinuz '\u{1b}[2J' }"),
            "the kernel command line of \"a\" has a control character in it",
        ),
        (
            config(&format!(
                "menuentry a {{ linux /boot/vmlinuz\ninitrd {} }}",
                "/boot/vmlinuz ".repeat(33)
            )),
            "\"a\" has more than 32 initrds",
        ),
        (
            Tree::root().hole("boot/grub/grub.cfg", 1025 << 10),
            "/boot/grub/grub.cfg has more than 1MiB",
        ),
        (
            Tree::root().hole("boot/vmlinuz", 257 << 20),
            "/boot/vmlinuz has more than 256MiB",
        ),
        (
            Tree::root()
                .file("boot/vmlinuz", "")
                .hole("boot/initrd.img", 1025 << 20),
            "/boot/initrd.img has more than 1GiB",
        ),
    ];
    for (tree, expected) in table {
        assert_eq!(error(&whole(&tree)), expected);
    }
}

#[test]
fn a_title_cannot_make_a_terminal_obey() {
    if !fixture::can_make_disks() {
        return;
    }
    let text = "menuentry 'a\u{1b}]0;b\u{7}' { linux /boot/vmlinuz root=a }";
    let tree = Tree::root()
        .file("boot/grub/grub.cfg", text)
        .file("boot/vmlinuz", "");
    assert_eq!(found(&whole(&tree)).title, "a]0;b");
}

#[test]
fn an_ext4_that_cannot_be_read_is_named_with_the_reason() {
    if !fixture::can_make_disks() {
        return;
    }
    let tree = Tree::root().kernels("boot/");
    let disk = Disk::new(32).ext4(0, 32, ROOT, &tree, &["-O", "inline_data"]);
    let said = error(&disk);
    assert!(
        said.starts_with("cannot read the ext4 file system of the disk: incompatible"),
        "{said}"
    );

    let disk = whole(&tree);
    // The superblock's count of blocks, their size, and how many are a group.
    let table = [
        (4, u32::MAX, "it is larger than its partition"),
        (0x18, 7, "its blocks would be larger than 64 KiB"),
        (0x20, 0, "it has too many groups of blocks"),
    ];
    for (at, value, expected) in table {
        let before = disk.bytes(1024 + at, 4);
        disk.write(1024 + at, &value.to_le_bytes());
        assert_eq!(
            error(&disk),
            format!("cannot read the ext4 file system of the disk: {expected}")
        );
        disk.write(1024 + at, &before);
    }
    assert_eq!(found(&disk).kernel.path, "/boot/vmlinuz-6.1.0-13-amd64");
}

#[test]
fn what_is_only_in_the_journal_is_read_too() {
    if !fixture::can_make_disks() {
        return;
    }
    let config = |kernel: &str| format!("menuentry a {{ linux /boot/{kernel} root=a }}");
    let tree = Tree::root()
        .file("boot/new", "new")
        .file("boot/old", "old")
        .file("boot/grub/grub.cfg", config("old"));
    let disk = whole(&tree);
    let block = disk.debugfs("blocks /boot/grub/grub.cfg\n");
    let block = block
        .lines()
        .last()
        .unwrap()
        .split_whitespace()
        .last()
        .unwrap();
    let mut content = config("new").into_bytes();
    content.resize(4096, b'\n');
    let mut new = tempfile::NamedTempFile::new().unwrap();
    io::Write::write_all(&mut new, &content).unwrap();
    assert_eq!(found(&disk).kernel.path, "/boot/old");
    disk.debugfs(&format!(
        "jo -c\njw -b {block} {}\njc\n",
        new.path().display()
    ));
    let features = disk.debugfs("features\n");
    assert!(features.contains("needs_recovery"), "{features}");
    // The file has as many bytes as before.
    assert_eq!(found(&disk).kernel.path, "/boot/new");
}

#[test]
fn an_index_of_a_folder_that_lies_does_no_harm() {
    if !fixture::can_make_disks() {
        return;
    }
    let many = (0..400).fold(Tree::root().kernels("boot/"), |tree, number| {
        tree.file(&format!("etc/some-file-of-a-service-{number}"), "")
    });
    let disk = whole(&many);
    fixture::run("e2fsck", &["-fyD", disk.path()], "");
    let blocks = disk.debugfs("stat /etc\nblocks /etc\n");
    assert!(blocks.contains("0x81000"), "no index was made: {blocks}");
    let first: u64 = blocks
        .lines()
        .last()
        .unwrap()
        .split_whitespace()
        .next()
        .unwrap()
        .parse()
        .unwrap();
    assert_eq!(found(&disk).kernel.path, "/boot/vmlinuz-6.1.0-13-amd64");
    // How many entries the index has.
    disk.write(first * 4096 + 0x22, &[0xff, 0xff]);
    let _ = find(&disk.open());
    // A link that claims to be as long as a file may be.
    disk.debugfs(
        "sif /usr/lib/os-release mode 0120777\nsif /usr/lib/os-release size 0xfffffffff\n",
    );
    let _ = find(&disk.open());
}

proptest! {
    // A look; `fuzz/` has the search.
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn a_damaged_disk_does_no_harm(
        damages in prop::collection::vec((0..8_u8, any::<u32>(), any::<u8>()), 1..20)
    ) {
        use std::sync::OnceLock;
        static DISK: OnceLock<Option<(Vec<u8>, Vec<usize>)>> = OnceLock::new();
        let disk = DISK.get_or_init(|| fixture::can_make_disks().then(|| {
            // Little content, so that most of what is written are structures.
            let config = "set default=1\nsubmenu a { menuentry b { linux /boot/k root=a\ninitrd /boot/k } }";
            let tree = Tree::root().file("boot/grub/grub.cfg", config).link("boot/k", "../k").file("k", "k");
            let table = "label: gpt\n1: start=2048, size=4096, type=linux\n";
            let disk = Disk::partitioned(4, table).ext4(2048, 2, ROOT, &tree, &["-O", "^metadata_csum"]);
            assert_eq!(found(&disk).kernel.path, "/k");
            let bytes = disk.bytes(0, 4 << 20);
            let written = (0..bytes.len()).filter(|at| bytes[*at] != 0).collect();
            (bytes, written)
        }));
        let Some((disk, written)) = disk else { return Ok(()) };
        let mut damaged = disk.clone();
        for (bit, at, value) in damages {
            let at = written[usize::try_from(at).unwrap() % written.len()];
            damaged[at] = if bit == 0 { value } else { damaged[at] ^ (1 << (bit - 1)) };
        }
        fuzzing::installed(&damaged);
    }
}
