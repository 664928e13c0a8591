//! Disk images, judged by QEMU's own program.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::*;

/// Bytes of the disks of these tests: more than one L2 table of small clusters has.
const SIZE: u64 = 8 << 20;

struct Bench {
    folder: tempfile::TempDir,
}

/// A folder, or nothing where there is no qemu-img to judge.
fn bench() -> Option<Bench> {
    if Command::new("qemu-img").arg("--version").output().is_err() {
        println!("SKIPPED: there is no qemu-img");
        return None;
    }
    let folder = tempfile::tempdir().unwrap();
    Some(Bench { folder })
}

impl Bench {
    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Runs qemu-img in the folder.
    fn qemu(&self, line: &str) {
        let mut command = Command::new("qemu-img");
        command.args(line.split_whitespace());
        let output = command.current_dir(&self.folder).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "qemu-img {line}: {said}");
    }

    /// A raw disk with something in it, and a hole.
    fn raw(&self) -> PathBuf {
        let path = self.path("disk.raw");
        let file = File::create(&path).unwrap();
        file.set_len(SIZE).unwrap();
        let text: Vec<u8> = (0..200_000_u32).flat_map(u32::to_le_bytes).collect();
        file.write_all_at(&text, 4096).unwrap();
        file.write_all_at(b"the end", SIZE - 512).unwrap();
        path
    }

    /// A qcow2 image of the raw disk, made with these options.
    fn image(&self, name: &str, options: &str) -> PathBuf {
        self.raw();
        self.qemu(&format!("convert -O qcow2 {options} disk.raw {name}"));
        self.path(name)
    }

    fn normalised(&self, from: &Path, format: Format) -> Result<PathBuf, MakeError> {
        let to = self.path("normal.qcow2");
        let normal = normalise(from, format, &to, &|_| true)?;
        assert_eq!(normal.virtual_size, SIZE);
        Ok(to)
    }

    fn assert_is_the_disk(&self, image: &Path) {
        let file = File::open(image).unwrap();
        let header = qcow2::inspect(&file).unwrap();
        assert!(header.is_normal(), "{header:?}");
        let name = image.file_name().unwrap().to_str().unwrap();
        self.qemu(&format!("check -f qcow2 {name}"));
        self.qemu(&format!("compare -f raw -F qcow2 disk.raw {name}"));
    }
}

fn refused(path: &Path) -> String {
    let error = qcow2::inspect(&File::open(path).unwrap()).unwrap_err();
    error.to_string()
}

#[test]
fn every_kind_of_qcow2_and_a_raw_disk_become_the_form_that_is_stored() {
    let Some(bench) = bench() else { return };
    let kinds = [
        "",
        "-o compat=0.10",
        "-c",
        "-c -o compat=0.10",
        "-o cluster_size=512",
        "-o cluster_size=2M",
        "-c -o compression_type=zstd",
        "-o extended_l2=on,cluster_size=64k",
        "-o lazy_refcounts=on",
    ];
    for options in kinds {
        let image = bench.image("image.qcow2", options);
        let normal = bench.normalised(&image, Format::Qcow2).unwrap();
        bench.assert_is_the_disk(&normal);
        let disk = Image::open(&normal, Format::Qcow2).unwrap();
        let mut end = [0; 7];
        disk.read_at(SIZE - 512, &mut end).unwrap();
        assert_eq!(&end, b"the end", "{options}");
        assert!(disk.read_at(SIZE - 3, &mut end).is_err(), "{options}");
        std::fs::remove_file(normal).unwrap();
    }
    let raw = bench.raw();
    let normal = bench.normalised(&raw, Format::Raw).unwrap();
    bench.assert_is_the_disk(&normal);
    let copied = std::fs::metadata(normal).unwrap().len();
    assert!(copied < SIZE / 4, "zeros are not stored: {copied}");
}

#[test]
fn states_of_the_disk_that_were_saved_in_an_image_are_left_behind() {
    let Some(bench) = bench() else { return };
    let image = bench.image("image.qcow2", "");
    bench.qemu("snapshot -c before image.qcow2");
    let normal = bench.normalised(&image, Format::Qcow2).unwrap();
    bench.assert_is_the_disk(&normal);
}

#[test]
fn an_image_that_names_another_file_is_refused_and_the_file_never_opened() {
    let Some(bench) = bench() else { return };
    // Nobody could open it without being seen to wait.
    let trap = bench.path("trap");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &trap,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    let trap = trap.display();
    bench.qemu(&format!(
        "create -q -u -f qcow2 -F raw -b {trap} backing.qcow2 8M"
    ));
    let said = refused(&bench.path("backing.qcow2"));
    assert!(
        said.contains(&format!("{trap:?}").replace('"', "")),
        "{said}"
    );
    bench.qemu("create -q -f qcow2 -o data_file=other.raw,data_file_raw=on data.qcow2 8M");
    let said = refused(&bench.path("data.qcow2"));
    assert!(said.contains("keeps its data in another file"), "{said}");
    let to = bench.path("to.qcow2");
    let made = normalise(&bench.path("backing.qcow2"), Format::Qcow2, &to, &|_| true);
    assert!(matches!(made, Err(MakeError::Refused { .. })), "{made:?}");
    assert!(!to.exists());
}

/// Where numbers stand in a header, what is written there, and what is said of it.
#[test]
fn headers_that_lie_are_refused_by_what_they_say() {
    let Some(bench) = bench() else { return };
    let image = bench.image("image.qcow2", "");
    let whole = std::fs::read(&image).unwrap();
    let cases: [(usize, &[u8], &str); 18] = [
        (0, b"QFJ", "no qcow2 image"),
        (4, &4_u32.to_be_bytes(), "version 4"),
        (8, &1_u64.to_be_bytes(), "another file"),
        (16, &9_u32.to_be_bytes(), "another file"),
        (20, &8_u32.to_be_bytes(), "cluster bits"),
        (20, &63_u32.to_be_bytes(), "cluster bits"),
        (24, &0_u64.to_be_bytes(), "size"),
        (24, &513_u64.to_be_bytes(), "size"),
        (24, &u64::MAX.to_be_bytes(), "16 TiB"),
        (24, &(1_u64 << 43).to_be_bytes(), "L1 table"),
        (32, &1_u32.to_be_bytes(), "encrypted"),
        (36, &u32::MAX.to_be_bytes(), "L1 table"),
        (40, &(1_u64 << 40).to_be_bytes(), "behind the end"),
        (40, &7_u64.to_be_bytes(), "place of a table"),
        (56, &u32::MAX.to_be_bytes(), "reference counts"),
        (72, &2_u64.to_be_bytes(), "corrupt"),
        (72, &(1_u64 << 5).to_be_bytes(), "bit 5"),
        (100, &3_u32.to_be_bytes(), "header's size"),
    ];
    for (at, bytes, word) in cases {
        let mut broken = whole.clone();
        broken[at..at + bytes.len()].copy_from_slice(bytes);
        std::fs::write(&image, broken).unwrap();
        let said = refused(&image);
        assert!(said.contains(word), "{word:?} is not in {said:?}");
    }
    for length in [
        0,
        3,
        71,
        103,
        4096,
        whole.len() / 2,
        whole.len() - (128 << 10),
    ] {
        std::fs::write(&image, &whole[..length]).unwrap();
        refused(&image);
    }
}

#[test]
fn a_flat_copy_is_raw_sparse_and_as_large_as_wanted() {
    let Some(bench) = bench() else { return };
    let base = bench.image("base.qcow2", "-c");
    let flat = bench.path("flat.raw");
    flatten(&base, &flat, SIZE * 2, &|_| true).unwrap();
    bench.qemu("compare -f raw -F raw disk.raw flat.raw");
    assert_eq!(flat.metadata().unwrap().len(), SIZE * 2);
    let again = flatten(&base, &bench.path("no.raw"), 0, &|_| false);
    assert!(matches!(again, Err(MakeError::Cancelled)), "{again:?}");
}
